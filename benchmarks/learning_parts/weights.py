"""What importance weights mean: a weight of w beside w copies, and learning a part of the negatives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from multiprocessing import Pool

import numpy as np

from benchmarks.harness import Report, run_peers
from benchmarks.learning_parts.accuracy import (
    SEEDS,
    WARM_UP,
    Floats,
    draw_sizes,
    even_sizes,
    peers_workload,
    predict_then_learn,
    rate_scores,
    stream,
)
from contbatch.pipelines import movielens
from contbatch.transforms.learning import SparseLearner
from contbatch.transforms.learning.sampling import Downsampled

ROWS, BATCH = 1000, 8
"""The first rows are learned, in micro-batches of ``BATCH``, which divides them."""
WEIGHTS = tuple(range(2, 11))
RATE = 0.1
"""Part of the negatives that is learned."""


def learn(learner: SparseLearner, copies: int, weight: float) -> Floats:
    """Learn each micro-batch with so many copies of every row, each with the weight; returns the model's weights."""
    columns, labels = stream()
    state = learner.init()
    for start in range(0, ROWS, BATCH):
        rows = np.repeat(np.arange(start, start + BATCH), copies)
        part = {name: [columns[name][row] for row in rows] for name in learner.fields}
        state = learner.step(state, part, labels[rows], np.full(len(rows), weight))
    return learner.export(state)["weights"]


def difference(learner: SparseLearner, one_update: bool) -> float:
    """Return the largest difference of a model's weight after w copies, for any w, as a part of the largest weight.

    With ``one_update`` the copies of a micro-batch make one update, as its weighted rows do; else the learner cuts
    them into chunks.
    """
    largest = 0.0
    for weight in WEIGHTS:
        weighted = learn(replace(learner, chunk=BATCH), 1, weight)
        copied = learn(replace(learner, chunk=BATCH * weight) if one_update else learner, weight, 1.0)
        largest = max(largest, float(np.abs(weighted - copied).max() / np.abs(copied).max()))
    return largest


def importance(report: Report) -> None:
    """Compare importance weights of 2 to 10 with as many copies: the largest difference of the model's weights."""
    full = movielens.learner()
    linear = replace(full, interactions=())
    peers = run_peers("learning", peers_workload() | {"repeats": {"rows": ROWS, "weights": WEIGHTS}})
    report.at_most("weight w beside w copies in the micro-batch, linear", "", difference(linear, True), 1e-6, peers)
    report.note("the same with factors", "", difference(full, True))
    report.note(f"linear, copies cut into chunks of {linear.chunk}", "", difference(linear, False))


def calibration(scores: Floats) -> float:
    """Return the mean prediction over the mean label, after the warm-up."""
    labels = stream().labels
    after = round(WARM_UP * len(labels))
    return float(scores[after:].mean() / labels[after:].mean())


def uncorrected(scores: Floats) -> Floats:
    """Return what the inner learner predicted; the correction makes the odds ``RATE`` times as large."""
    return scores / (scores + (1 - scores) * RATE)


def furthest(runs: Sequence[Floats]) -> float:
    """Return the calibration that is furthest from 1."""
    return max(map(calibration, runs), key=lambda ratio: abs(ratio - 1))


def negatives(report: Report) -> None:
    """Learn a tenth of the negatives: mean prediction over mean label after the warm-up, worst of three seeds."""
    learners = [movielens.learner(seed) for seed in SEEDS]
    sampled = [Downsampled(learner, RATE) for learner in learners]
    drawn = [draw_sizes("lognormal", seed) for seed in SEEDS]
    with Pool(2) as pool:
        strict, ours, every = (
            pool.starmap(predict_then_learn, zip(some, sizes, strict=True), chunksize=1)
            for some, sizes in ((sampled, [even_sizes(1)] * len(SEEDS)), (sampled, drawn), (learners, drawn))
        )
    one_by_one, batched = f"negatives at rate {RATE:g}, one by one", f"negatives at rate {RATE:g}, lognormal batches"
    ratio, raw = furthest(strict), furthest([uncorrected(scores) for scores in strict])
    report.note(f"mean prediction / label, {one_by_one}", "", ratio, {"uncorrected": raw})
    report.at_most("the same, away from 1", "", abs(ratio - 1), 0.02, {"uncorrected": abs(raw - 1)})
    others = {
        "uncorrected": furthest([uncorrected(scores) for scores in ours]),
        "all negatives": furthest(every),
    }
    report.note(f"mean prediction / label, {batched}", "", furthest(ours), others)
    area, full = (min(rate_scores(scores, WARM_UP).auc for scores in some) for some in (ours, every))
    report.note(f"AUC, {batched}, worst seed", "", area, {"all negatives": full})
