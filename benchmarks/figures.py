"""Brings the README's figures up to date from ``results/``: run ``python -m benchmarks.figures``."""

from __future__ import annotations

import json
import re
from typing import Any

from benchmarks.harness import HERE, RESULTS, figure
from tests.runners.conformance import table

_MOST_COLUMNS = 8
"""More peers than this share one column, each with its name."""

_MATRIX = re.compile(r"(<!-- matrix -->\n).*?(<!-- /matrix -->)", re.S)
_BLOCK = re.compile(r"(<!-- figures:(\w+) -->\n).*?(<!-- /figures -->)", re.S)


def fill(text: str) -> str:
    """Return a text with the table of each benchmark that it names between ``<!-- figures:NAME -->`` marks.

    Between ``<!-- matrix -->`` marks it gets the table of the runners' tests.
    """
    text = _MATRIX.sub(lambda block: "\n".join([block[1].strip(), *table.lines(), block[2]]), text)
    return _BLOCK.sub(lambda block: f"{block[1]}{_table(block[2])}{block[3]}", text)


def _table(name: str) -> str:
    content = json.loads((RESULTS / f"{name}.json").read_text())
    peers = list(dict.fromkeys(peer for row in content["rows"] for peer in row["peers"]))
    columns = peers if len(peers) <= _MOST_COLUMNS else ["others"]
    lines = [_line(["measure", "contbatch", "goal", *columns]), _line(["---"] * (3 + len(columns)))]
    lines += [_line(_cells(row, columns)) for row in content["rows"]]
    return "\n".join([*lines, "", f"`make bench NAME={name}` on {content['machine']}.", ""])


def _cells(row: dict[str, Any], peers: list[str]) -> list[str]:
    goal = row["goal"] if row["met"] else f"**missed: {row['goal']}**"
    others = [figure(row["peers"][peer]) if peer in row["peers"] else "" for peer in peers]
    if peers == ["others"]:
        others = ["; ".join(f"{peer} {figure(value)}" for peer, value in row["peers"].items())]
    return [row["measure"], f"{figure(row['ours'])} {row['unit']}".strip(), goal, *others]


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    readme = HERE.parent / "README.md"
    readme.write_text(fill(readme.read_text()))
