"""A crash on Prism, which keeps nothing on disk: what is fused with the source is lost only until it is sent again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.runners.alive import processes
from tests.runners.processes import start, wait_for
from tests.runners.scripted import acked, written

pytestmark = pytest.mark.needs("go")

COUNT = 200
"""Messages; five in a bundle, at most 50 bundles a second: 0.8 s at the least."""


def run(stack: ExitStack, prism: str, folder: Path, *more: str) -> subprocess.Popen[bytes]:
    (folder / "out").mkdir(exist_ok=True)
    command = [sys.executable, "-m", "tests.runners.scripted", prism, str(folder), str(COUNT), *more]
    return start("job", command, folder, stack)


def crash(job: subprocess.Popen[bytes], what: str) -> None:
    """Kill Prism alone, or with it the process whose threads are its workers."""
    servers = [each.pid for each in processes() if each.parent == job.pid]
    assert servers
    for pid in servers if what == "prism" else [job.pid, *servers]:
        os.kill(pid, signal.SIGKILL)
    job.wait(60)
    assert job.returncode != 0


@pytest.mark.parametrize("what", ["prism", "everything"])
def test_a_crash_loses_nothing_that_was_not_acked(tmp_path: Path, prism: str, what: str) -> None:
    """The model is between source and sink: ContinuousInference answers a bundle before it ends, so it stays one."""
    with ExitStack() as stack:
        job = run(stack, prism, tmp_path)
        wait_for("the first acks", lambda: len(acked(tmp_path)) > COUNT // 8, tmp_path)
        crash(job, what)
        told, answered = acked(tmp_path), written(tmp_path)
        assert COUNT // 8 < len(told) < COUNT
        assert told.keys() <= answered.keys()

        assert run(stack, prism, tmp_path).wait(60) == 0
    assert written(tmp_path) == {one: 2 * one for one in range(COUNT)}
    assert acked(tmp_path) == dict.fromkeys(range(COUNT), True)


@pytest.mark.slow
def test_behind_a_shuffle_what_was_acked_is_lost(tmp_path: Path, prism: str) -> None:
    """Prism's own limit, which is why a source for it must ack by hand where a shuffle follows.

    Prism tells the source that a bundle is kept when it is in Prism's memory. The sink writes less than 100 a second.
    """
    with ExitStack() as stack:
        job = run(stack, prism, tmp_path, "apart")
        wait_for("acks of what is not written", lambda: len(acked(tmp_path)) > COUNT // 8, tmp_path)
        crash(job, "everything")
        lost = acked(tmp_path).keys() - written(tmp_path).keys()
        assert lost
        assert run(stack, prism, tmp_path, "apart").wait(60) == 0
    assert written(tmp_path).keys() == set(range(COUNT)) - lost
