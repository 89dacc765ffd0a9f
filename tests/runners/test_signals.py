"""SIGINT and SIGTERM to the command: on Prism a live job drains or is cancelled, and nothing is left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.runners.alive import processes

pytestmark = pytest.mark.needs("go")

LIVE = ("--form=parallel", "--rate=100", "--publish_every=20")
"""800 events, 8 s."""


@pytest.fixture(autouse=True)
def named(prism: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command is told by its environment where Prism is."""
    monkeypatch.setenv("CONTBATCH_PRISM", prism)


class Command:
    """A running ``contbatch personalize`` and what it starts: a process group of its own."""

    def __init__(self, data: Path, out: Path, *flags: str) -> None:
        self._out = out
        program = [sys.executable, "-m", "contbatch.pipelines.cli", "personalize"]
        arguments = [f"--data={data}", f"--out={out}", *flags]
        self._process = subprocess.Popen(
            [*program, *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
        )

    def wait_for(self, is_there: Callable[[], Any]) -> None:
        end = time.monotonic() + 90
        while not is_there():
            assert self._process.poll() is None, self._process.communicate()[0]
            assert time.monotonic() < end
            time.sleep(0.05)

    def wait_until_it_learns(self) -> None:
        self.wait_for(lambda: list((self._out / "store").glob("*")))

    def send(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def wait_until_prism_is_there(self) -> None:
        self.wait_for(
            lambda: [one for one in processes() if one.group == self._process.pid and "--job_port" in one.command]
        )

    def wait_until_it_drains(self) -> str:
        """Read until the command says so."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if "the source ends" in line:
                return line.strip()
        raise AssertionError("it said nothing")

    def end(self) -> tuple[int, list[str]]:
        """Return the exit code and what the command itself has said."""
        try:
            text, _ = self._process.communicate(timeout=90)
        finally:
            left = [each.command for each in processes() if each.group == self._process.pid]
            if left:
                os.killpg(self._process.pid, signal.SIGKILL)
        assert left == []
        assert "Traceback" not in text
        return self._process.returncode, [line for line in text.splitlines() if line.startswith("contbatch: ")]

    def summary(self) -> dict[str, Any]:
        return json.loads((self._out / "summary.json").read_text())


@pytest.mark.parametrize(
    ("number", "runner"),
    [(signal.SIGINT, "PrismRunner"), (signal.SIGTERM, "PrismRunner"), (signal.SIGTERM, "DirectRunner")],
)
def test_what_was_read_is_accounted_for(number: signal.Signals, runner: str, ratings: Path, tmp_path: Path) -> None:
    command = Command(ratings, tmp_path / "out", f"--runner={runner}", "--grace=80", *LIVE)
    command.wait_until_it_learns()
    command.send(number)
    assert command.end() == (
        128 + number,
        [
            f"contbatch: {number.name}: the source ends, and what was read comes out; once more to cancel",
            f"contbatch: stopped by {number.name}; everything that was read is accounted for",
        ],
    )
    summary = command.summary()
    assert 0 < summary["requests"] == summary["predicted"] < 400
    assert 0 < summary["feedback"] == summary["learned"] < 400


@pytest.mark.parametrize("runner", ["PrismRunner", "DirectRunner"])
def test_without_a_grace_period_the_job_is_cancelled(runner: str, ratings: Path, tmp_path: Path) -> None:
    command = Command(ratings, tmp_path / "out", f"--runner={runner}", "--grace=0", *LIVE)
    command.wait_until_it_learns()
    command.send(signal.SIGTERM)
    assert command.end() == (143, ["contbatch: stopped by SIGTERM; the job was cancelled: its output is incomplete"])
    assert not (tmp_path / "out" / "summary.json").exists()


def test_a_second_signal_cancels_at_once(ratings: Path, tmp_path: Path) -> None:
    """DirectRunner, which takes its time to drain: 32 steps of script, each of a quarter of a second."""
    command = Command(ratings, tmp_path / "out", "--grace=600", *LIVE)
    command.wait_until_it_learns()
    command.send(signal.SIGINT)
    command.wait_until_it_drains()
    command.send(signal.SIGTERM)
    assert command.end() == (130, ["contbatch: stopped by SIGINT; the job was cancelled: its output is incomplete"])


def test_a_job_on_input_that_is_read_at_once_is_cancelled_at_the_first_signal(ratings: Path, tmp_path: Path) -> None:
    lines = (ratings / "ml-100k.inter").read_text().splitlines()
    many = tmp_path / "many"
    many.mkdir()
    for name in ("user", "item"):
        (many / f"ml-100k.{name}").write_text((ratings / f"ml-100k.{name}").read_text())
    ratings_only = [line.rpartition("\t")[0] for line in lines[1:]]
    repeated = [f"{line}\t{880_000_000 + row * 2}" for row, line in enumerate(ratings_only * 200)]
    (many / "ml-100k.inter").write_text("\n".join([lines[0], *repeated]) + "\n")
    command = Command(many, tmp_path / "out", "--runner=PrismRunner")
    command.wait_until_it_learns()
    command.send(signal.SIGTERM)
    assert command.end() == (143, ["contbatch: stopped by SIGTERM; the job was cancelled: its output is incomplete"])


def test_a_signal_while_the_job_is_handed_over_leaves_no_prism(ratings: Path, tmp_path: Path) -> None:
    command = Command(ratings, tmp_path / "out", "--runner=PrismRunner", "--grace=0", *LIVE)
    command.wait_until_prism_is_there()
    command.send(signal.SIGTERM)
    code, (said,) = command.end()
    assert code == 143
    assert said.startswith("contbatch: stopped by SIGTERM")
