"""Vowpal Wabbit on MovieLens' tokens, hashed into few slots: predict a row, then learn it.

Reads ``{"rows": [[user, item, age, gender, occupation, [genre, ...]], ...], "labels": [0 or 1, ...], "jobs":
[{"bits"}, ...]}`` and prints the scores of each job, with ``2**bits`` slots.
"""

from __future__ import annotations

import json
import sys

from vowpalwabbit import Workspace


def play(lines: list[str], bits: int) -> list[float]:
    learner = Workspace(f"--loss_function logistic --link logistic --quiet -b {bits}")
    scores = []
    for line in lines:
        example = learner.parse(line)
        scores.append(learner.predict(example))
        learner.learn(example)
        learner.finish_example(example)
    return scores


def main() -> None:
    workload = json.load(sys.stdin)
    lines = [
        f"{1 if label else -1} |u {user} |i {item} |a {age} |s {gender} |o {occupation} |g {' '.join(genres)}"
        for (user, item, age, gender, occupation, genres), label in zip(
            workload["rows"], workload["labels"], strict=True
        )
    ]
    json.dump([play(lines, job["bits"]) for job in workload["jobs"]], sys.stdout)


if __name__ == "__main__":
    main()
