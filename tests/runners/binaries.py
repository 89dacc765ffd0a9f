"""What real runners are made of, fetched or built once and kept in the user's cache."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import apache_beam as beam

_POM = """<project xmlns="http://maven.apache.org/POM/4.0.0"><modelVersion>4.0.0</modelVersion>
<groupId>contbatch</groupId><artifactId>runners</artifactId><version>1</version><dependencies>
<dependency><groupId>org.apache.beam</groupId><artifactId>beam-runners-flink-1.19</artifactId>
<version>2.70.0</version></dependency>
<dependency><groupId>org.apache.beam</groupId><artifactId>beam-runners-java-job-service</artifactId>
<version>2.65.0</version></dependency>
<dependency><groupId>org.slf4j</groupId><artifactId>slf4j-simple</artifactId><version>2.0.16</version></dependency>
</dependencies></project>
"""


def cache() -> Path:
    """Return the folder of what is fetched or built once."""
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "contbatch"


def classpath() -> str:
    """Return the jars of Flink and of Beam's runner, which Maven fetches the first time (minutes)."""
    folder = cache() / "flink-1.19-beam-2.70.0"
    kept = folder / "classpath.txt"
    if not kept.exists() or not all(Path(jar).exists() for jar in kept.read_text().split(os.pathsep)):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "pom.xml").write_text(_POM)
        command = [
            "mvn",
            "-q",
            "-f",
            str(folder / "pom.xml"),
            "dependency:build-classpath",
            f"-Dmdep.outputFile={kept}",
        ]
        subprocess.run(command, check=True)
    return kept.read_text().strip()


def prism_location() -> str | None:
    """Return the path of Prism, if there is one: ``$CONTBATCH_PRISM``, on the PATH, or built before."""
    built = _prism_folder() / "prism"
    return os.environ.get("CONTBATCH_PRISM") or shutil.which("prism") or (str(built) if built.exists() else None)


def prism_binary() -> str:
    """Return the path of Prism, which Go builds now (minutes) if there is none."""
    found = prism_location()
    if found:
        return found
    module = f"github.com/apache/beam/sdks/v2/go/cmd/prism@v{beam.__version__}"
    folder = _prism_folder()
    subprocess.run(["go", "install", module], check=True, env={**os.environ, "GOBIN": str(folder)})  # noqa: S607
    return str(folder / "prism")


def _prism_folder() -> Path:
    return cache() / f"prism-{beam.__version__}"
