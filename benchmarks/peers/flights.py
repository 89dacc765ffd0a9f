"""Vowpal Wabbit on the flights: each is predicted when it should leave and learned when it has landed.

One run over one file: a line without a label is predicted and not learned. Before the flights of a minute are
predicted, all that had landed before that minute are learned, each with the tokens that it was predicted with.

Reads ``{"tokens": [[token, ...], ...], "fresh": [[bucket, ...], ...], "times": [...], "landed": [...], "labels":
[0 or 1, ...]}``, flights by time, and prints ``{peer: [score, ...]}``.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from vowpalwabbit import Workspace

LOGISTIC = "--loss_function logistic --link logistic --quiet --no_stdin -b 18"
PEERS = {
    "VW --ftrl": ("--ftrl", False),
    "VW --ftrl, fresh": ("--ftrl", True),
    "VW -l 0.1, fresh": ("-l 0.1", True),
}


def texts(rows: list[list], prefix: str) -> list[str]:
    """Return a namespace per token."""
    return ["".join(f"|{prefix}{at} {str(token).replace(' ', '_')} " for at, token in enumerate(row)) for row in rows]


def play(examples: list[str], workload: dict, flags: str) -> list[float]:
    times, landed = np.array(workload["times"]), np.array(workload["landed"])
    order = np.argsort(landed, kind="stable")
    known = np.searchsorted(landed[order], times).tolist()
    lines, asked, learned = [], [], 0
    for row, upto in enumerate(known):
        for late in order[learned:upto].tolist():
            lines.append(f"{1 if workload['labels'][late] else -1} {examples[late]}")
        learned = max(learned, upto)
        asked.append(len(lines))
        lines.append(examples[row])
    with tempfile.TemporaryDirectory() as folder:
        data, scores = Path(folder, "data"), Path(folder, "scores")
        data.write_text("\n".join(lines) + "\n")
        Workspace(f"{LOGISTIC} {flags} --data {data} --predictions {scores}").finish()
        given = [float(line.split()[0]) for line in scores.read_text().splitlines()]
    if len(given) != len(lines):
        raise RuntimeError(f"{len(given)} scores of {len(lines)} lines")
    return [given[at] for at in asked]


def main() -> None:
    workload = json.load(sys.stdin)
    tokens, fresh = texts(workload["tokens"], "t"), texts(workload["fresh"], "f")
    both = [first + second for first, second in zip(tokens, fresh, strict=True)]
    results = {}
    for peer, (flags, is_fresh) in PEERS.items():
        started = time.perf_counter()
        results[peer] = play(both if is_fresh else tokens, workload, flags)
        print(f"{peer}: {time.perf_counter() - started:.0f} s", file=sys.stderr)
    json.dump(results, sys.stdout)


main()
