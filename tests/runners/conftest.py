"""Real runners. Prism is looked for, else built by Go once and kept."""

from __future__ import annotations

import os
import shutil
import subprocess
from importlib import metadata

import pytest

from tests.runners.cluster import cache


@pytest.fixture(scope="session")
def prism() -> str:
    """Path of a Prism binary: ``$CONTBATCH_PRISM``, the one on the PATH, or one that is built now (minutes)."""
    found = os.environ.get("CONTBATCH_PRISM") or shutil.which("prism")
    if found:
        return found
    version = metadata.version("apache-beam")
    folder = cache() / f"prism-{version}"
    if not (folder / "prism").exists():
        module = f"github.com/apache/beam/sdks/v2/go/cmd/prism@v{version}"
        subprocess.run(["go", "install", module], check=True, env={**os.environ, "GOBIN": str(folder)})  # noqa: S607
    return str(folder / "prism")
