"""What every benchmark prints and writes: rows of ours, the peers and the goal. A goal missed is an exit code.

A benchmark is a script ``benchmarks/NAME.py`` whose ``main()`` fills a :class:`Report` and returns its exit code.
Peers live in an environment of their own (``.venv-peers``, made by ``make bench-peers``): ``benchmarks/peers/NAME.py``
reads the workload as JSON from its standard input and prints its results as JSON; see :func:`run_peers`.
"""

from __future__ import annotations

import json
import logging
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

HERE = Path(__file__).parent
RESULTS = HERE / "results"
PEERS_PYTHON = HERE.parent / ".venv-peers" / "bin" / "python"


@dataclass(frozen=True)
class Row:
    """One figure.

    Attributes:
        measure: what was measured.
        unit: its unit, or "".
        ours: our figure; ``None`` if it could not be measured, which is a miss.
        peers: the same from others; ``None`` for one that could not be run, which is a miss.
        goal: the bar in words, or "" for a row that is only information.
        met: whether ours reaches the goal and all peers were run; true without a goal.
    """

    measure: str
    unit: str
    ours: float | None
    peers: dict[str, float | None]
    goal: str
    met: bool


class Report:
    """Rows of one benchmark.

    Args:
        name: of the benchmark and of its file of results.
        packages: distributions whose versions are written down beside the machine.
        seed: what the workload was generated from.
    """

    def __init__(self, name: str, packages: tuple[str, ...] = (), seed: int = 0) -> None:
        self._name = name
        self._packages = packages
        self._seed = seed
        self._rows: list[Row] = []

    def at_least(
        self,
        measure: str,
        unit: str,
        ours: float | None,
        goal: float,
        peers: dict[str, float | None] | None = None,
    ) -> None:
        """Add a figure that should be ``goal`` or more."""
        self._add(measure, unit, ours, f">= {goal:g}", ours is not None and ours >= goal, peers)

    def at_most(
        self,
        measure: str,
        unit: str,
        ours: float | None,
        goal: float,
        peers: dict[str, float | None] | None = None,
    ) -> None:
        """Add a figure that should be ``goal`` or less."""
        self._add(measure, unit, ours, f"<= {goal:g}", ours is not None and ours <= goal, peers)

    def note(self, measure: str, unit: str, ours: float | None, peers: dict[str, float | None] | None = None) -> None:
        """Add a figure without a goal."""
        self._add(measure, unit, ours, "", True, peers)

    def _add(
        self,
        measure: str,
        unit: str,
        ours: float | None,
        goal: str,
        met: bool,
        peers: dict[str, float | None] | None,
    ) -> None:
        peers = dict(peers or {})
        self._rows.append(Row(measure, unit, ours, peers, goal, met and None not in peers.values()))

    def finish(self) -> int:
        """Print the table, write ``results/NAME.json``, and return 0, or 1 if a goal was missed."""
        self._print()
        content = {
            "benchmark": self._name,
            "machine": machine(),
            "versions": {name: metadata.version(name) for name in ("contbatch", "numpy", *self._packages)},
            "seed": self._seed,
            "rows": [asdict(row) for row in self._rows],
        }
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / f"{self._name}.json").write_text(json.dumps(content, indent=2) + "\n")
        return 0 if all(row.met for row in self._rows) else 1

    def run(self, parts: Iterable[Callable[[Report], None]]) -> int:
        """Run the parts, each of which adds rows, say on stderr how far it is, and :meth:`finish`."""
        logging.disable(logging.WARNING)
        for part in parts:
            started = time.perf_counter()
            print(part.__doc__, file=sys.stderr)
            part(self)
            print(f"({time.perf_counter() - started:.0f} s)", file=sys.stderr)
        return self.finish()

    def _print(self) -> None:
        table = Table("measure", "ours", "goal", "met", "peers", title=self._name, title_justify="left")
        for row in self._rows:
            peers = ", ".join(f"{name} {figure(value)}" for name, value in row.peers.items())
            met = "" if not row.goal and row.met else "yes" if row.met else "[bold red]NO"
            table.add_row(row.measure, f"{figure(row.ours)} {row.unit}".strip(), row.goal, met, peers)
        Console(width=None if sys.stdout.isatty() else 160).print(table)


def run_peers(name: str, workload: Any, timeout: float = 1800.0) -> Any:
    """Run ``peers/NAME.py`` in the peers' environment on a workload; returns what it printed as JSON.

    Raises:
        RuntimeError: it could not be run; the text says why.
    """
    if not PEERS_PYTHON.exists():
        raise RuntimeError("the peers are not installed: run `make bench-peers`")
    script = HERE / "peers" / f"{name}.py"
    done = subprocess.run(
        [PEERS_PYTHON, script],
        input=json.dumps(workload),
        stdout=subprocess.PIPE,
        text=True,
        timeout=timeout,
        check=False,
    )
    if done.returncode != 0:
        raise RuntimeError(f"{script.name} ended with {done.returncode}; its error is above")
    return json.loads(done.stdout)


def machine() -> str:
    """Name this machine in words: processor, cores, memory, system, Python."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        model = names[0] if names else model
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{model}, {cores} cores, {memory:.0f} GiB, {platform.system()}, Python {platform.python_version()}"


def figure(value: float | None) -> str:
    """Write a value as it is printed everywhere."""
    if value is None:
        return "not run"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
