"""Concept drift: false alarms on a stream that does not change, and AUC on streams that do.

Rows of ids and categories are drawn from a logistic model. A user's effect never changes; the effects of item, device,
hour, price and of user with item change their sign at every ``EVERY``-th event, at once or little by little over the
next ``GRADUAL`` events. Micro-batches of ``BATCH`` are predicted, then learned, with the parameters of the main job.
AUC is that of all predictions.

The package's defaults and the policy shown as ours were chosen on seeds 100 to 103 of the same generator.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, lru_cache
from multiprocessing import Pool
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from river import base, drift

from benchmarks.harness import Report, run_peers
from contbatch.transforms.learning import SparseLearner, auc
from contbatch.transforms.learning.chunks import sigmoid
from contbatch.transforms.learning.detectors import Detector, Level, Method, Signal
from contbatch.transforms.learning.drift import DriftAware, DriftState
from contbatch.transforms.learning.reactions import Background, Boost, Reaction, Replay

Floats = NDArray[np.float64]

EVENTS, EVERY, GRADUAL = 80_000, 20_000, 4_000
STABLE, STABLE_SEEDS = 200_000, (0, 1)
KSWIN_EVENTS = 20_000
"""Of each stable stream for KSWIN: a third of a millisecond each."""
BATCH = 8
SEEDS = (0, 1, 2)
KINDS = ("abrupt", "gradual")
MOST_FALSE = 1
SIZES = {"user": 2_000, "item": 300, "device": 4, "hour": 24, "price": 10}
LEARNER = SparseLearner(tuple(SIZES), ((("user",), ("item",)),))
POLICIES: dict[str, tuple[Reaction, ...]] = {
    "no detector": (),
    "boost": (Boost(),),
    "background": (Background(),),
    "replay": (Replay(),),
    "boost + background": (Boost(), Background()),
}
OURS = "boost + background"
DETECTORS = {
    "loss, ADWIN": Detector(),
    "loss, Page-Hinkley": Detector(method=Method.PAGE_HINKLEY),
    "loss, KSWIN": Detector(method=Method.KSWIN),
    "loss, DDM": Detector(method=Method.DDM),
    "calibration, ADWIN": Detector(Signal.CALIBRATION),
    "feature, ADWIN": Detector(Signal.FEATURE, feature="price", scale=10.0),
}


class Stream(NamedTuple):
    """Rows: the ids of each field, and labels, shape (n,)."""

    columns: dict[str, list[str]]
    labels: Floats


@lru_cache(maxsize=8)
def make_stream(kind: str, seed: int) -> Stream:
    """Draw the rows of a kind of drift, or of none (``stable``)."""
    rng = np.random.default_rng(seed)
    size = STABLE if kind == "stable" else EVENTS
    popular = {name: 1 / np.arange(1, count + 1) ** 0.7 for name, count in SIZES.items()}
    ids = {name: rng.choice(len(share), size, p=share / share.sum()) for name, share in popular.items()}
    fixed = rng.normal(0, 0.6, SIZES["user"])[ids["user"]]
    moving = rng.normal(0, 0.9, SIZES["item"])[ids["item"]]
    for name in ("device", "hour", "price"):
        moving += rng.normal(0, 0.5, SIZES[name])[ids[name]]
    tastes = {name: rng.normal(0, 0.6, (SIZES[name], 4)) for name in ("user", "item")}
    moving += (tastes["user"][ids["user"]] * tastes["item"][ids["item"]]).sum(axis=1)
    event = np.arange(size)
    concept = event // EVERY
    if kind == "gradual":
        behind = rng.random(size) > (event % EVERY) / GRADUAL
        concept = np.maximum(concept - behind, 0)
    sign = 1.0 if kind == "stable" else 1.0 - 2.0 * (concept % 2)
    labels = (rng.random(size) < sigmoid(fixed + sign * moving)).astype(float)
    return Stream({name: [f"{name[0]}{value}" for value in column.tolist()] for name, column in ids.items()}, labels)


class Run(NamedTuple):
    """What a learner did on a stream.

    Attributes:
        scores: of all rows, before they were learned.
        alarms: the row that began the micro-batch with each alarm.
    """

    scores: Floats
    alarms: list[int]


def play(policy: str, kind: str, seed: int) -> Run:
    """Predict and learn a stream under a policy."""
    reactions, (columns, labels) = POLICIES[policy], make_stream(kind, seed)
    learner: Any = DriftAware(LEARNER, reactions=reactions) if reactions else LEARNER
    state, scores, alarms, before = learner.init(), np.empty(len(labels)), [], 0
    for start in range(0, len(labels), BATCH):
        part = slice(start, start + BATCH)
        rows = {name: column[part] for name, column in columns.items()}
        scores[part] = learner.predict(state, rows)
        state = learner.step(state, rows, labels[part], np.ones(BATCH))
        if isinstance(state, DriftState) and state.alarms[0] > before:
            before = state.alarms[0]
            alarms.append(start)
    return Run(scores, alarms)


class OurLearner(base.Classifier):
    """Our learner as River sees one, row by row."""

    def __init__(self) -> None:
        self._state = LEARNER.init()

    def predict_proba_one(self, x: dict[str, str], **kwargs: Any) -> dict[bool, float]:
        """Return the probability of each label."""
        score = float(LEARNER.predict(self._state, _one(x))[0])
        return {False: 1 - score, True: score}

    def learn_one(self, x: dict[str, str], y: bool, **kwargs: Any) -> None:
        """Learn a row."""
        self._state = LEARNER.step(self._state, _one(x), np.array([float(y)]), np.ones(1))


def _one(row: dict[str, str]) -> dict[str, list[str]]:
    return {name: [value] for name, value in row.items()}


def play_wrapped(kind: str, seed: int) -> Run:
    """Predict and learn a stream with our learner in River's retrain wrapper."""
    columns, labels = make_stream(kind, seed)
    model, scores = drift.DriftRetrainingClassifier(OurLearner()), np.empty(len(labels))
    rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
    for start in range(0, len(labels), BATCH):
        batch = range(start, start + BATCH)
        scores[start : start + BATCH] = [model.predict_proba_one(rows[row])[True] for row in batch]
        for row in batch:
            model.learn_one(rows[row], bool(labels[row]))
    return Run(scores, [])


def count_alarms(name: str, seed: int, scores: Floats) -> tuple[int, int]:
    """Count the alarms of a detector of ours on a stable stream, and its rows."""
    detector, (columns, labels) = DETECTORS[name], make_stream("stable", seed)
    size = KSWIN_EVENTS if detector.method is Method.KSWIN else len(labels)
    numbers = {"price": [int(value.removeprefix("p")) for value in columns["price"][:size]]}
    watching = detector.watch()
    values = detector.values(numbers, labels[:size], scores[:size]).tolist()
    return sum(watching.add([value]) is Level.ALARM for value in values), size


def delays(alarms: Sequence[Sequence[int]]) -> list[float]:
    """Return the events from each flip of each stream to the first alarm before the next; infinite for none."""
    return [
        min((place - flip for place in places if flip <= place < flip + EVERY), default=np.inf)
        for places in alarms
        for flip in range(EVERY, EVENTS, EVERY)
    ]


class Outcome(NamedTuple):
    """All runs: ours and River's by policy or peer, kind and seed; River's alarms in the order of the losses."""

    runs: dict[tuple[str, str, int], Run]
    false: dict[str, list[tuple[int, int]]]
    river_alarms: list[dict[str, list[int]]]


WRAPPED = "River's wrapper around our learner"


@cache
def outcome() -> Outcome:
    """Run everything once, for all rows."""
    moving = [(kind, seed) for kind in KINDS for seed in SEEDS]
    stable = [("stable", seed) for seed in STABLE_SEEDS]
    jobs = [(OURS, *stream) for stream in (*stable, *moving)] + [("no detector", *stream) for stream in moving]
    jobs += [(policy, kind, SEEDS[0]) for policy in POLICIES for kind in KINDS]
    jobs = list(dict.fromkeys(jobs))
    with Pool(2) as pool:
        wrapped = pool.starmap_async(play_wrapped, [(kind, SEEDS[0]) for kind in KINDS], chunksize=1)
        runs = dict(zip(jobs, pool.starmap(play, jobs, chunksize=1), strict=True))
        tests = [(name, seed, runs[OURS, "stable", seed].scores) for name in DETECTORS for seed in STABLE_SEEDS]
        counts = pool.starmap(count_alarms, tests, chunksize=1)
        runs |= {(WRAPPED, kind, SEEDS[0]): run for kind, run in zip(KINDS, wrapped.get(), strict=True)}
    false: dict[str, list[tuple[int, int]]] = {name: [] for name in DETECTORS}
    for (name, _, _), count in zip(tests, counts, strict=True):
        false[name].append(count)
    watched = [(OURS, *stream) for stream in stable] + [("no detector", *stream) for stream in moving]
    peers = run_peers(
        "drift",
        {
            "batch": BATCH,
            "streams": [
                {"columns": make_stream(*stream).columns, "labels": make_stream(*stream).labels.tolist()}
                for stream in moving
            ],
            "losses": [((runs[key].scores - make_stream(*key[1:]).labels) ** 2).tolist() for key in watched],
            "most": {"KSWIN": KSWIN_EVENTS},
        },
    )
    for stream, scores in zip(moving, peers["scores"], strict=True):
        runs |= {(peer, *stream): Run(np.array(values), []) for peer, values in scores.items()}
    return Outcome(runs, false, peers["alarms"])


def false_alarms(report: Report) -> None:
    """Count alarms on streams that do not change."""
    runs, false, river = outcome()
    for name in DETECTORS:
        ours = 100_000 * sum(count for count, _ in false[name]) / sum(size for _, size in false[name])
        signal, method = name.split(", ")
        measure = f"false alarms per 100,000 stable events, {signal}"
        if signal != "loss":
            report.at_most(f"{measure} by {method}", "", ours, MOST_FALSE)
            continue
        size = (KSWIN_EVENTS if method == "KSWIN" else STABLE) * len(STABLE_SEEDS)
        theirs = 100_000 * sum(len(alarms[method]) for alarms in river[: len(STABLE_SEEDS)]) / size
        report.at_most(f"{measure} by {method}", "", ours, MOST_FALSE, {f"River's {method}, default": theirs})
    alarms = sum(len(runs[OURS, "stable", seed].alarms) for seed in STABLE_SEEDS)
    report.at_most(
        "the same, whole learner with its reactions", "", 100_000 * alarms / (STABLE * len(STABLE_SEEDS)), MOST_FALSE
    )


def flips(report: Report) -> None:
    """Compare AUC where the concept flips, and how soon a flip is found."""
    runs, _, river = outcome()
    areas = {key: auc(run.scores, make_stream(*key[1:]).labels) for key, run in runs.items() if key[1] != "stable"}
    for number, kind in enumerate(KINDS):
        peers = ("no detector", "River retrain wrapper", "River")
        means = {name: float(np.mean([areas[name, kind, seed] for seed in SEEDS])) for name in (OURS, *peers)}
        bars = peers[:2]
        report.at_least(
            f"AUC, {kind} flips, {OURS}, mean of {len(SEEDS)} seeds",
            "",
            means[OURS],
            max(means[name] for name in bars),
            {name: means[name] for name in peers},
        )
        gains = [areas[OURS, kind, seed] - max(areas[name, kind, seed] for name in bars) for seed in SEEDS]
        report.at_least("the least by which a seed is above the first two", "", min(gains), 0.0)
        others = [name for name in (*POLICIES, WRAPPED) if name != OURS]
        alone = {name: areas[name, kind, SEEDS[0]] for name in others}
        report.note(f"AUC, {kind} flips, seed {SEEDS[0]}, by policy", "", areas[OURS, kind, SEEDS[0]], alone)
        ours = delays([runs[OURS, kind, seed].alarms for seed in SEEDS])
        start = len(STABLE_SEEDS) + number * len(SEEDS)
        found = river[start : start + len(SEEDS)]
        theirs = {
            f"River's {name}, default": delays([alarms[name] for alarms in found])
            for name in found[0]
            if name != "KSWIN"
        }
        report.note(
            f"{kind} flips: events until an alarm, median",
            "",
            float(np.median(ours)),
            {name: float(np.median(some)) for name, some in theirs.items()},
        )
        report.note(
            f"{kind} flips without an alarm, of {len(ours)}",
            "",
            float(np.isinf(ours).sum()),
            {name: float(np.isinf(some).sum()) for name, some in theirs.items()},
        )
