"""What the README shows runs, and what it quotes was printed by a benchmark."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import figures


def run_program(root: Path, number: int, folder: Path) -> list[str]:
    programs = re.findall(r"```python\n(.*?)```", (root / "README.md").read_text(), re.S)
    done = subprocess.run(
        [sys.executable, "-c", programs[number]], cwd=folder, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_the_program_that_learns_runs(root: Path, tmp_path: Path) -> None:
    lines = run_program(root, 0, tmp_path)
    assert len(lines) == 100
    # What was liked is liked more at the end than the even odds at the start.
    assert float(lines[0].split()[-1]) == pytest.approx(0.5, abs=0.05)


def test_the_program_that_predicts_runs(root: Path, tmp_path: Path) -> None:
    lines = run_program(root, 1, tmp_path)
    assert (len(lines), sum("failed: ValueError" in line for line in lines)) == (100, 1)


def test_the_program_that_joins_runs(root: Path, tmp_path: Path) -> None:
    """Request 0 is clicked in time, then bought; 1 is assumed, corrected, and bought too late; 2 is assumed."""
    lines = run_program(root, 2, tmp_path)
    assert sorted(line.replace("  ", " ") for line in lines) == [
        "0 buy 1.0 0",
        "0 click 1.0 0",
        "1 0.0 1",
        "1 click 1.0 2",
        "1 later than the ttl after its request",
        "2 0.0 1",
    ]


def test_the_program_that_batches_runs(root: Path, tmp_path: Path) -> None:
    lines = run_program(root, 3, tmp_path)
    assert sum(int(line.split()[0]) for line in lines) == 100


def test_its_figures_are_those_of_the_benchmarks(root: Path) -> None:
    text = (root / "README.md").read_text()
    assert figures.fill(text) == text, "run `python -m benchmarks.figures` to bring the README up to date"


def test_its_commands_are_chores_of_the_makefile(root: Path) -> None:
    chores = set(re.findall(r"^([a-z-]+):", (root / "Makefile").read_text(), re.M))
    named = set(re.findall(r"\bmake ([a-z-]+)", (root / "README.md").read_text()))
    assert {"demo", "test"} <= named <= chores
