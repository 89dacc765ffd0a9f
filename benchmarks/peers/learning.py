"""Vowpal Wabbit, River and scikit-learn on MovieLens' tokens in given batches: predict a batch, then learn it.

Within a batch Vowpal Wabbit and River learn one by one, and so does scikit-learn's ``partial_fit`` in its own code.
Their input is made before the clock starts: lines of text, dictionaries, a sparse matrix.

Reads ``{"rows": [[user, item, age, gender, occupation, [genre, ...]], ...], "labels": [0 or 1, ...]}`` and

* ``"jobs": [{"peer", "sizes": [rows in a batch, ...], "rounds"}, ...]``: prints for each ``{"scores": [...], "seconds":
  [...]}``, the scores of one pass and the seconds of ``rounds`` passes that only learn;
* ``"repeats": {"rows", "weights": [w, ...]}``: prints ``{peer: difference}``, where the first rows are learned with
  weight w, and w times in a row; the difference is the largest of any of the models' weights, for any w, as a part of
  the largest weight.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from functools import cached_property
from itertools import accumulate, pairwise
from pathlib import Path

import numpy as np
from river import linear_model, optim
from scipy.sparse import csr_matrix
from sklearn.linear_model import SGDClassifier
from vowpalwabbit import Workspace

LOGISTIC = "--loss_function logistic --link logistic --quiet"
BITS = 18


class Stream:
    """The rows as each peer takes them."""

    def __init__(self, rows: list[list], labels: list[int]) -> None:
        self.rows, self.labels = rows, labels

    @cached_property
    def texts(self) -> list[str]:
        return [
            f"|u {user} |i {item} |a {age} |s {gender} |o {occupation} |g {' '.join(genres)}"
            for user, item, age, gender, occupation, genres in self.rows
        ]

    @cached_property
    def lines(self) -> list[str]:
        return [f"{1 if label else -1} {text}" for text, label in zip(self.texts, self.labels, strict=True)]

    @cached_property
    def dictionaries(self) -> list[dict]:
        return [
            dict.fromkeys([*enumerate(values), *(("genre", genre) for genre in genres)], 1.0)
            for *values, genres in self.rows
        ]

    @cached_property
    def matrix(self) -> csr_matrix:
        numbers: dict = {}
        tokens = [[numbers.setdefault(token, len(numbers)) for token in row] for row in self.dictionaries]
        ends = [0, *accumulate(map(len, tokens))]
        columns = [column for row in tokens for column in row]
        return csr_matrix((np.ones(len(columns)), columns, ends))

    @cached_property
    def classes(self) -> np.ndarray:
        return np.array(self.labels)


class VowpalWabbit:
    """One by one, from lines of text."""

    def __init__(self, stream: Stream, flags: str = "") -> None:
        self._texts, self._lines = stream.texts, stream.lines
        self._learner = Workspace(f"{LOGISTIC} -b {BITS} {flags}")

    def predict(self, start: int, end: int) -> list[float]:
        return [self._learner.predict(text) for text in self._texts[start:end]]

    def learn(self, start: int, end: int) -> None:
        for line in self._lines[start:end]:
            self._learner.learn(line)


class River:
    """One by one, from dictionaries."""

    def __init__(self, stream: Stream) -> None:
        self._rows, self._labels = stream.dictionaries, [label == 1 for label in stream.labels]
        self._learner = linear_model.LogisticRegression(optimizer=optim.AdaGrad(0.4))

    def predict(self, start: int, end: int) -> list[float]:
        return [self._learner.predict_proba_one(row)[True] for row in self._rows[start:end]]

    def learn(self, start: int, end: int) -> None:
        for row, label in zip(self._rows[start:end], self._labels[start:end], strict=True):
            self._learner.learn_one(row, label)


class Sklearn:
    """Batches, from rows of a sparse matrix."""

    def __init__(self, stream: Stream) -> None:
        self._matrix, self._classes = stream.matrix, stream.classes
        self._learner = SGDClassifier(loss="log_loss", learning_rate="constant", eta0=0.05, random_state=0)

    def predict(self, start: int, end: int) -> list[float]:
        if not start:
            return [0.5] * end
        return (0.5 + 0.5 * np.tanh(0.5 * self._learner.decision_function(self._matrix[start:end]))).tolist()

    def learn(self, start: int, end: int) -> None:
        self._learner.partial_fit(self._matrix[start:end], self._classes[start:end], classes=(0, 1))


PEERS = {
    "VW": VowpalWabbit,
    "VW --ftrl -q ug": lambda stream: VowpalWabbit(stream, "--ftrl -q ug"),
    "River AdaGrad": River,
    "sklearn partial_fit": Sklearn,
}
FILE = "VW, from a file"


def play(stream: Stream, peer: str, sizes: list[int], rounds: int) -> dict:
    if peer == FILE:
        return play_file(stream, rounds)
    batches = list(pairwise([0, *accumulate(sizes)]))
    learner, scores, seconds = PEERS[peer](stream), [], []
    for batch in batches:
        scores += learner.predict(*batch)
        learner.learn(*batch)
    for _ in range(rounds):
        learner = PEERS[peer](stream)
        started = time.perf_counter()
        for batch in batches:
            learner.learn(*batch)
        seconds.append(time.perf_counter() - started)
    return {"scores": scores, "seconds": seconds}


def play_file(stream: Stream, rounds: int) -> dict:
    """Its own loop over a file: one by one, reading included."""
    with tempfile.TemporaryDirectory() as folder:
        data, scores, seconds = Path(folder, "data"), Path(folder, "scores"), []
        data.write_text("\n".join(stream.lines) + "\n")
        flags = f"{LOGISTIC} -b {BITS} --no_stdin --data {data}"
        Workspace(f"{flags} --predictions {scores}").finish()
        for _ in range(rounds):
            started = time.perf_counter()
            Workspace(flags).finish()
            seconds.append(time.perf_counter() - started)
        return {"scores": [float(line.split()[0]) for line in scores.read_text().splitlines()], "seconds": seconds}


def difference(weighted: np.ndarray, repeated: np.ndarray) -> float:
    return float(np.abs(weighted - repeated).max() / np.abs(repeated).max())


def repeat_vowpal_wabbit(stream: Stream, rows: int, weight: int, flags: str) -> float:
    weights = []
    for text, times in ((f" {weight} ", 1), (" ", weight)):
        learner = Workspace(f"{LOGISTIC} -b {BITS} {flags}")
        for line in stream.lines[:rows]:
            label, tokens = line.split(" ", 1)
            for _ in range(times):
                learner.learn(f"{label}{text}{tokens}")
        weights.append(np.array([learner.get_weight(slot) for slot in range(1 << BITS)]))
    return difference(*weights)


def repeat_sklearn(stream: Stream, rows: int, weight: int) -> float:
    weights = []
    for times in (1, weight):
        learner = SGDClassifier(loss="log_loss", learning_rate="constant", eta0=0.05, shuffle=False)
        order = np.repeat(np.arange(rows), times)
        each = np.full(len(order), weight / times)
        learner.partial_fit(stream.matrix[order], stream.classes[order], classes=(0, 1), sample_weight=each)
        weights.append(learner.coef_[0])
    return difference(*weights)


def repeats(stream: Stream, rows: int, weights: list[int]) -> dict[str, float]:
    invariant = "--invariant --power_t 0"
    return {
        "VW": max(repeat_vowpal_wabbit(stream, rows, weight, "") for weight in weights),
        f"VW {invariant}": max(repeat_vowpal_wabbit(stream, rows, weight, invariant) for weight in weights),
        "sklearn sample_weight": max(repeat_sklearn(stream, rows, weight) for weight in weights),
    }


def main() -> None:
    workload = json.load(sys.stdin)
    stream = Stream(workload["rows"], workload["labels"])
    if "repeats" in workload:
        json.dump(repeats(stream, **workload["repeats"]), sys.stdout)
        return
    results = []
    for job in workload["jobs"]:
        started = time.perf_counter()
        results.append(play(stream, **job))
        took = time.perf_counter() - started
        print(f"{job['peer']}, {len(job['sizes'])} batches: {took:.0f} s", file=sys.stderr)
    json.dump(results, sys.stdout)


main()
