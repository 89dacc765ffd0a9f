"""Real runners. Prism is looked for, else built by Go once and kept."""

from __future__ import annotations

import os
import shutil
import subprocess
from importlib import metadata
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def prism() -> str:
    """Path of a Prism binary: ``$CONTBATCH_PRISM``, the one on the PATH, or one that is built now (minutes)."""
    found = os.environ.get("CONTBATCH_PRISM") or shutil.which("prism")
    if found:
        return found
    version = metadata.version("apache-beam")
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "contbatch" / f"prism-{version}"
    if not (cache / "prism").exists():
        module = f"github.com/apache/beam/sdks/v2/go/cmd/prism@v{version}"
        subprocess.run(["go", "install", module], check=True, env={**os.environ, "GOBIN": str(cache)})  # noqa: S607
    return str(cache / "prism")
