"""Labels that come hours late: the flights that left New York in 2013, learned when they have landed.

All 327,346 flights with a known arrival, by scheduled departure. Flights of one minute are predicted together, after
all labels that had landed before that minute were learned; so are the peers', but for "label at once", where a flight's
label is learned right after its prediction, hours before anyone can know it. All have the same tokens; "fresh" are two
more, the buckets of the last landed labels by airport and by carrier, as ours served them.

Ours is the main job's learner. Its two rates, .1 of the weights and .05 of the means, and its 20 buckets were not
chosen apart from this data: they are those of the prototype, tried on the same year, that the goals come from.
"""

from __future__ import annotations

from functools import cache
from multiprocessing import Pool
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from benchmarks.harness import Report, run_peers
from contbatch.pipelines import flights as data
from contbatch.pipelines.datasets import DATASETS
from contbatch.transforms.batching import BatchPolicy
from contbatch.transforms.events import END_OF_TIME, MICROS, Event
from contbatch.transforms.learning import (
    PrequentialConfig,
    PrequentialLoop,
    SparseLearner,
    auc,
    mean_log_loss,
)
from contbatch.transforms.learning.learner import prepare, prepared_fields, select
from contbatch.transforms.records import Learned

WARM_UP = 0.2
EWMA = 0.02
"""Of the mean of all landed labels, alone as a score."""

Floats = NDArray[np.float64]


class Stream(NamedTuple):
    """Flights by scheduled departure: the tokens, shape (n,) each, times in microseconds, and labels, 1.0 for late."""

    columns: dict[str, list[Any]]
    times: NDArray[np.int64]
    landed: NDArray[np.int64]
    labels: Floats


class Run(NamedTuple):
    """Scores, shape (n,), and the columns that the learner prepared."""

    scores: Floats
    served: dict[str, list[Any]]


class Scores(NamedTuple):
    """Progressive scores."""

    logloss: float
    auc: float


@cache
def stream() -> Stream:
    """Return the flights with a known arrival."""
    found = [item for item in data.read_flights(data.find_file(None)) if isinstance(item, data.Flight)]
    known = [(flight, end) for flight in found if (end := data.arrival(flight))]
    known.sort(key=lambda pair: (pair[0].time, pair[0].row))
    times = np.array([flight.time for flight, _ in known])
    landed = times + np.array([round(end.landed * MICROS) for _, end in known])
    columns = {name: [flight.request[name] for flight, _ in known] for name in data.TOKENS}
    return Stream(columns, times, landed, np.array([float(end.late) for _, end in known]))


def play(learner: Any, at_once: bool = False) -> Run:
    """Predict the flights minute by minute; before each, learn what has landed, with the features as served."""
    columns, times, landed, labels = stream()
    order = np.arange(len(times)) if at_once else np.argsort(landed, kind="stable")
    known_at = times if at_once else landed[order]
    minutes = np.flatnonzero(np.diff(times, prepend=-1, append=-1)).tolist()
    known = np.searchsorted(known_at, times[minutes[:-1]]).tolist()
    served: dict[str, list[Any]] = {name: [] for name in prepared_fields(learner)}
    scores, state, learned = np.empty(len(times)), learner.init(), 0
    for start, end, upto in zip(minutes[:-1], minutes[1:], known, strict=True):
        if upto > learned:
            rows, learned = order[learned:upto].tolist(), upto
            batch = select(columns | served, rows)
            state = learner.step(state, batch, labels[rows], np.ones(len(rows)))
        asked = prepare(learner, state, {name: column[start:end] for name, column in columns.items()})
        for name, column in served.items():
            column.extend(asked[name])
        scores[start:end] = learner.predict(state, asked)
    return Run(scores, served)


def play_job() -> Scores:
    """Run the main job's loop as the command sets it up: with flights that never arrive, and a deadline."""
    defaults = DATASETS["flights"]
    events = sorted(item for item in data.read_events(data.find_file(None)) if isinstance(item, Event))
    config = PrequentialConfig(data.learner(), BatchPolicy(256, 5.0), data.REQUESTS, data.FEEDBACK, ttl=defaults.ttl)
    learned = [one for one in PrequentialLoop(config).advance(events, END_OF_TIME) if isinstance(one, Learned)]
    scores, labels = [one.score for one in learned], [one.label for one in learned]
    return Scores(mean_log_loss(scores, labels), auc(scores, labels))


def last_mean() -> Floats:
    """Return as scores the moving mean of all labels landed before each flight."""
    _, times, landed, labels = stream()
    order = np.argsort(landed, kind="stable")
    means = [0.5]
    for label in labels[order].tolist():
        means.append(means[-1] + EWMA * (label - means[-1]))
    return np.array(means)[np.searchsorted(landed[order], times)]


def rate(scores: Floats | list[float], start: int = 0) -> Scores:
    """Return the scores of the flights from one on."""
    labels = stream().labels[start:]
    return Scores(mean_log_loss(scores[start:], labels), auc(scores[start:], labels))


def flights(report: Report) -> None:
    """Flights, labels at landing: log loss and AUC over the whole year, each score given before its label."""
    columns, times, landed, labels = stream()
    static = SparseLearner(data.TOKENS, factors=1)
    with Pool(2) as pool:
        job = pool.apply_async(play_job)
        ours = pool.apply_async(play, (data.learner(),))
        leak = pool.apply_async(play, (static, True))
        late = pool.apply_async(play, (static,))
        ours, leak, late, job = (result.get() for result in (ours, leak, late, job))
    tokens = list(zip(*columns.values(), strict=True))
    fresh = list(zip(*ours.served.values(), strict=True))
    workload = {
        "tokens": tokens,
        "fresh": fresh,
        "times": times.tolist(),
        "landed": landed.tolist(),
        "labels": labels.tolist(),
    }
    runs = {
        "ours without fresh tokens": late.scores,
        "ours without, label at once": leak.scores,
        "moving mean of landed labels": last_mean(),
        **run_peers("flights", workload),
    }
    for name, start in (("", 0), (", last 80 %", round(WARM_UP * len(labels)))):
        peers = {peer: rate(scores, start) for peer, scores in runs.items()}
        losses = {peer: scores.logloss for peer, scores in peers.items()}
        areas = {peer: scores.auc for peer, scores in peers.items()}
        mine = rate(ours.scores, start)
        if start:
            report.note(f"flights, log loss{name}", "", mine.logloss, losses)
            report.note(f"flights, AUC{name}", "", mine.auc, areas)
        else:
            report.at_most("flights, log loss, label at landing", "", mine.logloss, 0.475, losses)
            report.at_least("flights, AUC, label at landing", "", mine.auc, 0.743, areas)
    report.note("flights, log loss of the main job's loop", "", job.logloss)
    report.note("flights, AUC of the main job's loop", "", job.auc)
