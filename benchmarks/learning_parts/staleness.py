"""Asynchronous training with stragglers: whether the bound holds, each row counts once, and what staleness costs."""

from __future__ import annotations

import heapq
import random
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from benchmarks.harness import Report
from contbatch.pipelines.movielens import FIELDS, INTERACTIONS, Rating, find_folder, read_ratings
from contbatch.transforms.learning import SparseLearner, auc
from contbatch.transforms.learning.batches import Batch, Floats
from contbatch.transforms.learning.learner import Arrays, Columns
from contbatch.transforms.learning.staleness import Applier, OnStale

BOUNDS = (0, 2, 8)
STEPS = 1_000_000
WORKERS = 8
STALLS, STALL = 0.001, 1_000.0
"""How often a worker stops, and for how long in units of a usual gradient."""
ROWS = 8
"""Examples in a gradient of MovieLens."""
WARM_UP = 0.2
CLOSE = 0.002
UNBOUNDED = 10**9


def staleness(report: Report) -> None:
    """Fill a report."""
    for bound in BOUNDS:
        broken, misused, oldest = _count(bound)
        name = f"bound {bound}, {STEPS:,} gradients"
        report.at_most(f"{name}: applied beyond it", "", broken, 0)
        report.at_most(f"{name}: rows not learned exactly once", "", misused, 0)
    report.note(f"the oldest of {STEPS:,} gradients, when it came", "versions", oldest)
    batches, learner = _movielens(), SparseLearner(FIELDS, INTERACTIONS)
    unbounded = _asynchronous(learner, batches, UNBOUNDED, "recompute")
    serial = _delayed(learner, batches, 0)
    for bound in BOUNDS:
        ours = _asynchronous(learner, batches, bound, "recompute")
        dropping = _asynchronous(learner, batches, bound, "drop")
        worst = _delayed(learner, batches, bound)
        same = _delayed(learner, batches, round(ours.delay))
        peers = {"serial": serial, "drop": dropping.auc, "unbounded": unbounded.auc, f"serial, {bound} behind": worst}
        name = f"MovieLens 100k, bound {bound}"
        report.note(f"{name}: AUC", "", ours.auc, peers)
        report.at_least(f"{name}: AUC above serial, {bound} behind", "", ours.auc - worst, -CLOSE)
        label = f"{name}: AUC away from serial, {ours.delay:.2g} behind as here"
        report.at_most(label, "", abs(ours.auc - same), CLOSE)
        report.note(f"{name}: computed again", "%", 100 * ours.recomputed, {"drop, lost": 100 * dropping.dropped})


def schedule(count: int, seed: int = 0) -> Iterator[tuple[bool, int]]:
    """Yield what workers do in order of time: ``(False, n)`` reads the weights for batch n, ``(True, n)`` submits it.

    Every worker has a speed of its own, within a factor of 4, and takes the next batch as soon as it is done. Times
    are exponential; one in ``1 / STALLS`` is ``STALL`` times as long.
    """
    rng = random.Random(seed)  # noqa: S311
    speeds = [2 ** rng.uniform(-1, 1) for _ in range(WORKERS)]
    busy: list[tuple[float, int, int]] = []

    def start(now: float, worker: int, number: int) -> None:
        stalled = STALL if rng.random() < STALLS else 1.0
        heapq.heappush(busy, (now + rng.expovariate(speeds[worker]) * stalled, worker, number))

    taken = 0
    for worker in range(min(WORKERS, count)):
        yield False, taken
        start(0.0, worker, taken)
        taken += 1
    while busy:
        now, worker, number = heapq.heappop(busy)
        yield True, number
        if taken < count:
            yield False, taken
            start(now, worker, taken)
            taken += 1


class _Counted(NamedTuple):
    steps: int
    broken: int


class _Counting:
    """A learner that learns nothing: its state counts its steps, and the gradients that were older than the bound."""

    fields = ("number",)

    def __init__(self, bound: int, count: int) -> None:
        self._bound = bound
        self.uses = bytearray(count)
        """How often each example was learned."""

    def init(self) -> _Counted:
        return _Counted(0, 0)

    def predict(self, state: _Counted, columns: Columns) -> Floats:
        return np.zeros(len(columns["number"]))

    def gradient(self, state: _Counted, columns: Columns, labels: Floats, weights: Floats) -> Any:
        return {"steps": state.steps, "number": columns["number"][0]}

    def apply(self, state: _Counted, gradient: Any) -> _Counted:
        self.uses[gradient["number"]] += 1
        return _Counted(state.steps + 1, state.broken + (state.steps - gradient["steps"] > self._bound))

    def step(self, state: _Counted, columns: Columns, labels: Floats, weights: Floats) -> _Counted:
        return self.apply(state, self.gradient(state, columns, labels, weights))

    def export(self, state: _Counted) -> Arrays:
        return {"counts": np.array(state)}

    def load(self, arrays: Arrays) -> _Counted:
        return _Counted(*arrays["counts"].tolist())


def _count(bound: int) -> tuple[int, int, int]:
    """Return the gradients applied beyond the bound, the examples not learned once, and the oldest gradient."""
    learner = _Counting(bound, STEPS)
    applier = Applier(learner, bound)
    held: dict[int, tuple[int, Any]] = {}
    one, oldest = np.ones(1), 0
    for done, number in schedule(STEPS):
        batch = Batch({"number": [number]}, one, one)
        if done:
            outcome = applier.submit(*held.pop(number), batch)
            oldest = max(oldest, outcome.staleness or 0)
        else:
            held[number] = applier.version, learner.gradient(applier.state, *batch)
    return applier.state.broken, STEPS - learner.uses.count(1), oldest


class _Run(NamedTuple):
    """How a run went: shares of the gradients, and the mean versions that what was applied was behind."""

    auc: float
    recomputed: float
    dropped: float
    delay: float


def _asynchronous(learner: SparseLearner, batches: Sequence[Batch], bound: int, on_stale: OnStale) -> _Run:
    """Train by workers; each batch is scored on the weights of the moment at which its gradient comes."""
    applier = Applier(learner, bound, on_stale)
    held, scores = {}, []
    for done, number in schedule(len(batches)):
        batch = batches[number]
        if done:
            scores.append((number, learner.predict(applier.state, batch.columns)))
            applier.submit(*held.pop(number), batch)
        else:
            held[number] = applier.version, learner.gradient(applier.state, *batch)
    counts = applier.statistics()
    delay = sum(behind * gradients for behind, gradients in counts.staleness.items() if behind <= bound)
    recomputed, dropped = counts.recomputed / len(batches), counts.dropped / len(batches)
    return _Run(_auc(batches, scores), recomputed, dropped, delay / applier.version)


def _delayed(learner: SparseLearner, batches: Sequence[Batch], delay: int) -> float:
    """Train in one loop on gradients of weights that are ``delay`` versions old, scored as the others are."""
    state, scores = learner.init(), []
    waiting: deque[Arrays] = deque(learner.gradient(state, *batch) for batch in batches[:delay])
    for number, batch in enumerate(batches):
        if number + delay < len(batches):
            waiting.append(learner.gradient(state, *batches[number + delay]))
        scores.append((number, learner.predict(state, batch.columns)))
        state = learner.apply(state, waiting.popleft())
    return _auc(batches, scores)


def _auc(batches: Sequence[Batch], scores: Sequence[tuple[int, Floats]]) -> float:
    later = [(number, score) for number, score in scores if number >= WARM_UP * len(batches)]
    labels = np.concatenate([batches[number].labels for number, _ in later])
    return auc(np.concatenate([score for _, score in later]), labels)


def _movielens() -> list[Batch]:
    ratings = [item for item in read_ratings(find_folder(None)) if isinstance(item, Rating)]
    ratings.sort(key=lambda item: (item.time, item.row))
    batches = []
    for start in range(0, len(ratings), ROWS):
        part = ratings[start : start + ROWS]
        columns = {field: [item.request[field] for item in part] for field in FIELDS}
        batches.append(Batch(columns, np.array([float(float(item.rating) >= 4) for item in part]), np.ones(len(part))))
    return batches
