"""A real Flink cluster on free ports of localhost: JobManager, TaskManager, Beam's job server, pools of workers.

Everything is resolved by Maven once and kept in the user's cache; every process is owned, logs into a folder, and is
stopped by its id. One pool serves one job: workers of two jobs in one pool stop each other.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

SLOTS = 4
_SECONDS = 90.0

_POM = """<project xmlns="http://maven.apache.org/POM/4.0.0"><modelVersion>4.0.0</modelVersion>
<groupId>contbatch</groupId><artifactId>runners</artifactId><version>1</version><dependencies>
<dependency><groupId>org.apache.beam</groupId><artifactId>beam-runners-flink-1.19</artifactId>
<version>2.70.0</version></dependency>
<dependency><groupId>org.apache.beam</groupId><artifactId>beam-runners-java-job-service</artifactId>
<version>2.65.0</version></dependency>
<dependency><groupId>org.slf4j</groupId><artifactId>slf4j-simple</artifactId><version>2.0.16</version></dependency>
</dependencies></project>
"""

_OPENED = (
    "java.base/java.lang java.base/java.lang.invoke java.base/java.lang.reflect java.base/java.io java.base/java.net "
    "java.base/java.nio java.base/java.text java.base/java.time java.base/java.util java.base/java.util.concurrent "
    "java.base/java.util.concurrent.atomic java.base/java.util.concurrent.locks java.base/sun.nio.ch "
    "java.base/sun.net.util java.base/sun.security.util"
)

_MEMORY = {
    "taskmanager.cpu.cores": "1.0",
    "taskmanager.memory.task.heap.size": "512m",
    "taskmanager.memory.task.off-heap.size": "0b",
    "taskmanager.memory.managed.size": "128m",
    "taskmanager.memory.network.min": "128m",
    "taskmanager.memory.network.max": "128m",
    "taskmanager.memory.framework.heap.size": "128m",
    "taskmanager.memory.framework.off-heap.size": "128m",
    "taskmanager.memory.jvm-metaspace.size": "256m",
    "taskmanager.memory.jvm-overhead.min": "192m",
    "taskmanager.memory.jvm-overhead.max": "192m",
}


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


class FlinkCluster:
    """A running cluster.

    Args:
        folder: for logs, checkpoints and configuration.
        stack: stops the processes.
    """

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self._folder = folder
        self._stack = stack
        self._rest, rpc, self._jobs = free_ports(3)
        conf = {
            "jobmanager.rpc.address": "localhost",
            "jobmanager.rpc.port": rpc,
            "rest.address": "localhost",
            "rest.bind-address": "localhost",
            "rest.port": self._rest,
            "taskmanager.host": "localhost",
            "taskmanager.bind-host": "localhost",
            "taskmanager.numberOfTaskSlots": SLOTS,
            "taskmanager.resource-id": "contbatch",
            "parallelism.default": 1,
            "io.tmp.dirs": folder / "tmp",
            "state.checkpoints.dir": f"file://{folder / 'checkpoints'}",
        }
        (folder / "tmp").mkdir()
        (folder / "flink-conf.yaml").write_text("".join(f"{name}: {value}\n" for name, value in conf.items()))
        self._flags = [flag for package in _OPENED.split() for flag in ("--add-opens", f"{package}=ALL-UNNAMED")]
        runtime = "org.apache.flink.runtime"
        configured = ["--configDir", str(folder)]
        self._java("jobmanager", f"{runtime}.entrypoint.StandaloneSessionClusterEntrypoint", configured)
        memory = [part for name, value in _MEMORY.items() for part in ("-D", f"{name}={value}")]
        self._java("taskmanager", f"{runtime}.taskexecutor.TaskManagerRunner", [*configured, *memory])
        wait_for("the cluster's slots", lambda: self.rest("overview")["slots-total"] >= SLOTS, folder)
        ports = [f"--{name}-port={port}" for name, port in zip(("artifact", "expansion"), free_ports(2), strict=True)]
        server = "org.apache.beam.runners.flink.FlinkJobServerDriver"
        master = f"--flink-master=localhost:{self._rest}"
        self._java("jobserver", server, ["--job-host=localhost", f"--job-port={self._jobs}", *ports, master])
        wait_for("the job server", lambda: is_open(self._jobs), folder)

    def rest(self, path: str) -> Any:
        """Return what the cluster's REST interface says at a path."""
        with urllib.request.urlopen(f"http://localhost:{self._rest}/{path}", timeout=5) as answer:
            return json.load(answer)

    @contextmanager
    def flags(self, *more: str) -> Iterator[list[str]]:
        """Give a job's flags, with a pool of workers of its own."""
        (port,) = free_ports(1)
        with ExitStack() as stack:
            pool = [sys.executable, "-m", "apache_beam.runners.worker.worker_pool_main", f"--service_port={port}"]
            start(f"pool-{port}", pool, self._folder, stack)
            wait_for("the pool of workers", lambda: is_open(port), self._folder)
            yield [
                "--runner=PortableRunner",
                f"--job_endpoint=localhost:{self._jobs}",
                "--environment_type=EXTERNAL",
                f"--environment_config=localhost:{port}",
                "--experiments=disable_logging_submission_environment",
                *more,
            ]

    def _java(self, name: str, main: str, arguments: Sequence[str]) -> None:
        java = [shutil.which("java") or "java", "-Xmx1g", *self._flags, "-cp", classpath(), main, *arguments]
        start(name, java, self._folder, self._stack)


def start(name: str, command: Sequence[str], folder: Path, stack: ExitStack) -> None:
    """Start a process whose output goes into a log, and which the stack stops."""
    log = stack.enter_context((folder / f"{name}.log").open("wb"))
    # The pool starts its workers as "python".
    environment = {**os.environ, "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])}
    process = subprocess.Popen(
        command, stdout=log, stderr=subprocess.STDOUT, cwd=folder, env=environment, start_new_session=True
    )
    stack.callback(stop, process)


def stop(process: subprocess.Popen[bytes]) -> None:
    """Stop a process and what it has started."""
    for signal in (15, 9):
        try:
            os.killpg(process.pid, signal)
        except ProcessLookupError:
            return
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            continue
        return


def free_ports(count: int) -> list[int]:
    """Return ports of localhost that nobody listens on."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("localhost", 0))
        return [one.getsockname()[1] for one in sockets]


def is_open(port: int) -> bool:
    """Return whether somebody listens on a port of localhost."""
    with socket.socket() as one:
        one.settimeout(1)
        return one.connect_ex(("localhost", port)) == 0


def wait_for(what: str, is_there: Any, folder: Path) -> None:
    """Wait until something is there.

    Raises:
        TimeoutError: it is not, and the logs may say why.
    """
    end = time.monotonic() + _SECONDS
    while time.monotonic() < end:
        try:
            if is_there():
                return
        except OSError:
            pass
        time.sleep(0.2)
    raise TimeoutError(f"{what} did not come up in {_SECONDS:g} s; see the logs in {folder}")
