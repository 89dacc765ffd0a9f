"""Brings the README's figures up to date from ``results/``: run ``python -m benchmarks.figures``."""

from __future__ import annotations

import json
import re
from typing import Any

from benchmarks.harness import HERE, RESULTS, figure

_BLOCK = re.compile(r"(<!-- figures:(\w+) -->\n).*?(<!-- /figures -->)", re.S)


def fill(text: str) -> str:
    """Return a text with the table of each benchmark that it names between ``<!-- figures:NAME -->`` marks."""
    return _BLOCK.sub(lambda block: f"{block[1]}{_table(block[2])}{block[3]}", text)


def _table(name: str) -> str:
    content = json.loads((RESULTS / f"{name}.json").read_text())
    peers = list(dict.fromkeys(peer for row in content["rows"] for peer in row["peers"]))
    lines = [_line(["measure", "contbatch", "goal", *peers]), _line(["---"] * (3 + len(peers)))]
    lines += [_line(_cells(row, peers)) for row in content["rows"]]
    return "\n".join([*lines, "", f"`make bench NAME={name}` on {content['machine']}.", ""])


def _cells(row: dict[str, Any], peers: list[str]) -> list[str]:
    goal = row["goal"] if row["met"] else f"**missed: {row['goal']}**"
    others = [figure(row["peers"][peer]) if peer in row["peers"] else "" for peer in peers]
    return [row["measure"], f"{figure(row['ours'])} {row['unit']}".strip(), goal, *others]


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    readme = HERE.parent / "README.md"
    readme.write_text(fill(readme.read_text()))
