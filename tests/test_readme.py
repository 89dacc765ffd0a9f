"""What the README shows runs, and what it quotes was printed by a benchmark."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import figures


def test_its_first_program_runs(root: Path, tmp_path: Path) -> None:
    program = re.search(r"```python\n(.*?)```", (root / "README.md").read_text(), re.S)
    assert program
    done = subprocess.run(
        [sys.executable, "-c", program[1]], cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 100
    # What was liked is liked more at the end than the even odds at the start.
    assert float(lines[0].split()[-1]) == pytest.approx(0.5, abs=0.05)


def test_its_figures_are_those_of_the_benchmarks(root: Path) -> None:
    text = (root / "README.md").read_text()
    assert figures.fill(text) == text, "run `python -m benchmarks.figures` to bring the README up to date"


def test_its_commands_are_chores_of_the_makefile(root: Path) -> None:
    chores = set(re.findall(r"^([a-z-]+):", (root / "Makefile").read_text(), re.M))
    named = set(re.findall(r"\bmake ([a-z-]+)", (root / "README.md").read_text()))
    assert {"demo", "test"} <= named <= chores
