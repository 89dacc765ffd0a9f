"""Accuracy of the main job's one configuration: for any batch size, one by one, and with a deadline.

MovieLens 100k by time, then by user and row. A batch is predicted whole, then learned. Ours is the learner on decoded
columns, but for the deadline, where it is the main job's own loop.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from itertools import accumulate, pairwise
from multiprocessing import Pool
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from benchmarks import deadlines
from benchmarks.harness import Report, run_peers
from benchmarks.inference_parts.driving import progress
from contbatch.pipelines import movielens
from contbatch.transforms.learning import SparseLearner, auc, mean_log_loss

SEEDS = (0, 1, 2)
WARM_UP = 0.2
MEAN, SIGMA = 32, 1.5
"""Of the lognormal sizes: half of the batches hold 10 rows or fewer, one in a hundred more than 340."""
BURST, BURSTS = 512, 0.1
GOALS = {"lognormal": 0.728, "bursts": 0.714}
ONE_BY_ONE = ("VW", "VW --ftrl -q ug", "River AdaGrad")
RATES = (0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
"""Tried for the peers with a mean gradient, on batches of ``MEAN``; the best one is held against ours."""

Floats = NDArray[np.float64]


class Stream(NamedTuple):
    """All ratings in order: the learner's columns, shape (n,) each, and the labels, 1.0 for liked."""

    columns: dict[str, list[Any]]
    labels: Floats


class Scores(NamedTuple):
    """Progressive scores of a run."""

    auc: float
    logloss: float


@cache
def stream() -> Stream:
    """Return the ratings by time, user and row, with ``request_id``."""
    ratings = [item for item in movielens.read_ratings(movielens.find_folder(None)) if hasattr(item, "request")]
    ratings.sort(key=lambda rating: (rating.time, int(rating.request["user"]), rating.row))
    columns = {name: [rating.request[name] for rating in ratings] for name in ("request_id", *movielens.FIELDS)}
    return Stream(columns, np.array([float(float(rating.rating) >= 4) for rating in ratings]))


def draw_sizes(kind: str, seed: int) -> list[int]:
    """Return sizes of batches that make up the whole stream, of the ``kind`` lognormal or bursts."""
    random, left, sizes = np.random.default_rng(seed), len(stream().labels), []
    while left:
        if kind == "bursts":
            size = BURST if random.random() < BURSTS else 1
        else:
            size = max(round(random.lognormal(np.log(MEAN) - SIGMA**2 / 2, SIGMA)), 1)
        sizes.append(min(size, left))
        left -= sizes[-1]
    return sizes


def even_sizes(size: int) -> list[int]:
    """Return sizes of equal batches, of which the last takes what is left."""
    whole, rest = divmod(len(stream().labels), size)
    return [size] * whole + ([rest] if rest else [])


def batches(sizes: Sequence[int]) -> Iterator[tuple[slice, dict[str, list[Any]]]]:
    """Yield where each batch is, and its columns."""
    columns = stream().columns
    for start, end in pairwise([0, *accumulate(sizes)]):
        at = slice(start, end)
        yield at, {name: column[at] for name, column in columns.items()}


def predict_then_learn(learner: Any, sizes: Sequence[int]) -> Floats:
    """Return the scores of all rows, shape (n,)."""
    labels, state = stream().labels, learner.init()
    scores, weights = np.empty(len(labels)), np.ones(len(labels))
    for at, columns in batches(sizes):
        scores[at] = learner.predict(state, columns)
        state = learner.step(state, columns, labels[at], weights[at])
    return scores


def rate_scores(scores: Sequence[float] | Floats, warm_up: float = 0.0) -> Scores:
    """Return the AUC and the mean log loss of all rows after a share of them."""
    labels = stream().labels
    after = round(warm_up * len(labels))
    return Scores(auc(scores[after:], labels[after:]), mean_log_loss(scores[after:], labels[after:]))


def run_batched(learner: SparseLearner, sizes: Sequence[int]) -> Scores:
    """Return the scores after the warm-up."""
    return rate_scores(predict_then_learn(learner, sizes), WARM_UP)


def run_one_by_one(seed: int) -> Scores:
    """Return the scores over all rows."""
    return rate_scores(predict_then_learn(movielens.learner(seed), even_sizes(1)))


@cache
def tokens() -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return a number for every distinct token, row after row, and where each row begins, with the end: (n + 1,)."""
    numbers: dict[tuple[str, str], int] = {}
    rows = []
    for values in zip(*(stream().columns[field] for field in movielens.FIELDS), strict=True):
        pairs = zip(movielens.FIELDS, values, strict=True)
        flat = [(field, one) for field, value in pairs for one in (value if isinstance(value, list) else [value])]
        rows.append([numbers.setdefault(token, len(numbers)) for token in flat])
    return np.array([number for row in rows for number in row]), np.array([0, *accumulate(map(len, rows))])


def run_mean_gradient(rate: float, linear: bool, sizes: Sequence[int]) -> Scores:
    """Return the scores of plain SGD on the mean gradient; ``linear`` scales the rate by the batch's size."""
    ids, starts = tokens()
    labels = stream().labels
    scores, weights, bias = np.empty(len(labels)), np.zeros(ids.max() + 1), 0.0
    for start, end in pairwise([0, *accumulate(sizes)]):
        used = ids[starts[start] : starts[end]]
        rows = np.repeat(np.arange(end - start), np.diff(starts[start : end + 1]))
        logits = np.bincount(rows, weights[used], end - start) + bias
        scores[start:end] = 0.5 + 0.5 * np.tanh(0.5 * logits)
        error = (scores[start:end] - labels[start:end]) / (end - start)
        step = rate * (end - start) / MEAN if linear else rate
        weights -= step * np.bincount(used, error[rows], len(weights))
        bias -= step * error.sum()
    return rate_scores(scores, WARM_UP)


def peers_workload() -> dict[str, Any]:
    """Return the rows and labels for ``peers/learning.py``."""
    columns, labels = stream()
    rows = [list(row) for row in zip(*(columns[field] for field in movielens.FIELDS), strict=True)]
    return {"rows": rows, "labels": labels.astype(int).tolist()}


def any_batch_size(report: Report) -> None:
    """Keep one learning rate for any batch size: AUC after the warm-up, the worst of three seeds."""
    learners = [movielens.learner(seed) for seed in SEEDS]
    sizes = {kind: [draw_sizes(kind, seed) for seed in SEEDS] for kind in GOALS}
    names = (*ONE_BY_ONE, "sklearn partial_fit")
    jobs = [{"peer": name, "sizes": one, "rounds": 0} for kind in GOALS for name in names for one in sizes[kind]]
    results = iter(run_peers("learning", peers_workload() | {"jobs": jobs}))
    with Pool(2) as pool:
        tried = {
            linear: dict(
                zip(
                    RATES,
                    pool.starmap(run_mean_gradient, [(rate, linear, even_sizes(MEAN)) for rate in RATES]),
                    strict=True,
                )
            )
            for linear in (False, True)
        }
        best = {linear: max(runs, key=lambda rate: runs[rate].auc) for linear, runs in tried.items()}
        for kind, goal in GOALS.items():
            progress(f"{kind}: batches of {np.mean(sizes[kind][0]):.0f} rows, up to {max(sizes[kind][0])}")
            ours = pool.starmap(run_batched, zip(learners, sizes[kind], strict=True))
            others = {name: [rate_scores(next(results)["scores"], WARM_UP) for _ in SEEDS] for name in names}
            for linear, name in ((False, "constant rate"), (True, "linear scaling")):
                cases = [(best[linear], linear, one) for one in sizes[kind]]
                others[f"mean-gradient SGD, {name}"] = pool.starmap(run_mean_gradient, cases)
            worst = {name: min(run.auc for run in runs) for name, runs in others.items()}
            losses = {name: max(run.logloss for run in runs) for name, runs in others.items()}
            report.at_least(f"AUC, {kind} batches, worst seed", "", min(run.auc for run in ours), goal, worst)
            report.note(f"log loss, {kind} batches, worst seed", "", max(run.logloss for run in ours), losses)


def deadline_and_one_by_one(report: Report) -> None:
    """Learn one by one, and with a deadline of 5 s and feedback after 5 s: mean of three seeds, over all ratings."""
    jobs = [{"peer": name, "sizes": even_sizes(1), "rounds": 0} for name in ONE_BY_ONE]
    results = run_peers("learning", peers_workload() | {"jobs": jobs})
    others = {name: rate_scores(result["scores"]) for name, result in zip(ONE_BY_ONE, results, strict=True)}
    with Pool(2) as pool:
        strict = pool.map(run_one_by_one, SEEDS, chunksize=1)
        cases = [deadlines.Case(seed, 256, 5.0, 5.0, False) for seed in SEEDS]
        late = [Scores(run.auc, run.logloss) for run in pool.map(deadlines.play, cases, chunksize=1)]
    for name, runs, area, loss, told in (
        ("one by one", strict, 0.764, 0.573, ""),
        ("deadline 5 s, feedback after 5 s", late, 0.760, 0.577, ", one by one"),
    ):
        areas = {f"{peer}{told}": scores.auc for peer, scores in others.items()}
        losses = {f"{peer}{told}": scores.logloss for peer, scores in others.items()}
        report.at_least(f"AUC, {name}", "", float(np.mean([run.auc for run in runs])), area, areas)
        report.note(f"AUC, {name}, worst seed", "", min(run.auc for run in runs))
        report.at_most(f"log loss, {name}", "", float(np.mean([run.logloss for run in runs])), loss, losses)
        report.note(f"log loss, {name}, worst seed", "", max(run.logloss for run in runs))
