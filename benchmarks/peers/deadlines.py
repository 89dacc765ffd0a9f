"""Vowpal Wabbit and River on a stream of labelled tokens, one by one: predict, then learn, at once.

Reads ``{"rows": [[user, item, age, gender, occupation, [genre, ...]], ...], "labels": [0 or 1, ...]}`` and prints
``{peer: [score, ...]}``.
"""

from __future__ import annotations

import json
import sys

from river import linear_model, optim
from vowpalwabbit import Workspace


def vowpal_wabbit(flags: str, rows: list[list], labels: list[int]) -> list[float]:
    learner = Workspace(f"--loss_function logistic --link logistic -b 18 --quiet {flags}")
    scores = []
    for (user, item, age, gender, occupation, genres), label in zip(rows, labels, strict=True):
        tokens = f"|u {user} |i {item} |a {age} |s {gender} |o {occupation} |g {' '.join(genres)}"
        scores.append(learner.predict(tokens))
        learner.learn(f"{1 if label else -1} {tokens}")
    return scores


def river(rows: list[list], labels: list[int]) -> list[float]:
    learner = linear_model.LogisticRegression(optimizer=optim.AdaGrad(0.4))
    scores = []
    for (*values, genres), label in zip(rows, labels, strict=True):
        features = dict.fromkeys([*enumerate(values), *(("genre", genre) for genre in genres)], 1.0)
        scores.append(learner.predict_proba_one(features)[True])
        learner.learn_one(features, bool(label))
    return scores


def main() -> None:
    workload = json.load(sys.stdin)
    stream = workload["rows"], workload["labels"]
    print("peers: Vowpal Wabbit and River, one by one", file=sys.stderr)
    results = {
        "VW": vowpal_wabbit("", *stream),
        "VW --ftrl -q ug": vowpal_wabbit("--ftrl -q ug", *stream),
        "River AdaGrad": river(*stream),
    }
    json.dump(results, sys.stdout)


main()
