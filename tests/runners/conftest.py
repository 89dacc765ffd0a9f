"""Real runners. Prism is looked for, else built by Go once and kept; Flink is a cluster that the tests start."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tests.runners.binaries import prism_binary
from tests.runners.cluster import FlinkCluster


@pytest.fixture(scope="session")
def prism() -> str:
    """Path of a Prism binary."""
    return prism_binary()


@pytest.fixture(scope="session")
def flink(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FlinkCluster]:
    """A Flink cluster."""
    with ExitStack() as stack:
        yield FlinkCluster(tmp_path_factory.mktemp("flink"), stack)
