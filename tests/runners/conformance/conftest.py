"""What the matrix needs beside the runners; its cases explain what they found."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tests.runners.processes import free_ports, is_open, start, wait_for

for part in ("batching", "serving", "learning", "aggregation", "stopping"):
    pytest.register_assert_rewrite(f"tests.runners.conformance.{part}")


@pytest.fixture(scope="session")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """A pool of workers for jobs that run one after the other; its port."""
    folder, (port,) = tmp_path_factory.mktemp("pool"), free_ports(1)
    with ExitStack() as stack:
        command = [sys.executable, "-m", "tests.runners.conformance.pool", str(port)]
        start("pool", command, folder, stack)
        wait_for("the pool of workers", lambda: is_open(port), folder)
        yield port
