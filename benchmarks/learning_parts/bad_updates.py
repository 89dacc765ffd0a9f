"""Bad updates under the gate: flipped labels, rows that are not finite, a learning rate a hundred times too large.

MovieLens 100k by time in micro-batches of ``BATCH``: predicted with the weights that serve, then learned. In the serial
form what serves is what the gate says; in the parallel form it is the version that was published last, every
``PUBLISHED`` labels and when the gate says so. Each attack
lasts ``LENGTH`` labels and is run at each of ``PLACES``. The AUC is that of all served scores with the true labels; a
score that is not finite counts as 0. The peer is the rule of Alink's model filter, a fixed bar for the AUC of the
last ``CHECKED`` labels, checked as often; as it is put here, live weights serve at once and those of the last check
that passed come back (Alink itself serves only what has been checked, which is stale).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from multiprocessing import Pool
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from benchmarks.harness import Report
from benchmarks.learning_parts.accuracy import SEEDS, stream
from contbatch.pipelines import movielens
from contbatch.transforms.learning import SparseLearner, auc
from contbatch.transforms.learning.gate import Gate, GatePolicy, Verdict
from contbatch.transforms.learning.hashing import BIAS
from contbatch.transforms.learning.learner import Columns, select
from contbatch.transforms.learning.sparse import SparseState

BATCH = 4
LENGTH = 2_000
PLACES = (50_000, 65_000, 80_000)
TIMES = 100.0
CHECKED = 2_000
PUBLISHED = 500
ATTACKS = ("flipped labels", "not finite", "rate x 100")
MOST_LOST, MOST_SECONDS, MOST_FALSE = 0.002, 1.0, 1
SERVERS = ("gate", "none", "fixed bar")
PEERS = {"no gate": "none", "AUC >= 0.5": "fixed bar"}
LEFT_OUT = "left out"
"""An attack whose labels nobody learns: what even a gate that finds them at once has to lose."""

Floats = NDArray[np.float64]


class Fragile:
    """The main job's model without its own guard, and with a learning rate that can be turned up.

    A row with a feature, label or weight that is not finite makes the bias not finite, as its gradient would. A
    feature that is not finite is an age that is not a number; hashing would make a token of it.

    Attributes:
        is_hot: whether steps are ``TIMES`` as large.
    """

    def __init__(self, seed: int) -> None:
        self._cool = SparseLearner(movielens.FIELDS, movielens.INTERACTIONS, seed=seed)
        self._hot = replace(self._cool, rate=self._cool.rate * TIMES, factor_rate=self._cool.factor_rate * TIMES)
        self.is_hot = False
        self.fields = self._cool.fields
        self.init = self._cool.init
        self.export = self._cool.export
        self.load = self._cool.load

    def predict(self, state: SparseState, columns: Columns) -> Floats:
        """Return the scores; of a row with a feature that is not finite, not a number."""
        scores = self._cool.predict(state, columns)
        scores[~_is_text(columns["age"])] = math.nan
        return scores

    def step(self, state: SparseState, columns: Columns, labels: Floats, weights: Floats) -> SparseState:
        """Learn, and spoil the bias if a row is not finite."""
        learner = self._hot if self.is_hot else self._cool
        if (np.isfinite(labels) & np.isfinite(weights) & _is_text(columns["age"])).all():
            return learner.step(state, columns, labels, weights)
        state.weights[BIAS] = math.nan
        return state


def _is_text(column: Sequence[Any]) -> NDArray[np.bool_]:
    return np.array([not isinstance(value, float) for value in column], bool)


class FixedBar:
    """Goes back to the weights of the last check when the AUC of the last labels is below .5."""

    def __init__(self, learner: Any) -> None:
        self._learner = learner
        self.serving = learner.init()
        self._checked = learner.export(self.serving)
        self._labels: list[float] = []
        self._scores: list[float] = []

    def predict(self, columns: Columns) -> tuple[Floats, int]:
        """Return the scores, and no step."""
        return self._learner.predict(self.serving, columns), 0

    def learn(self, columns: Columns, labels: Floats, weights: Floats, scores: Floats) -> Verdict | None:
        """Learn, and check every so often."""
        self.serving = self._learner.step(self.serving, columns, labels, weights)
        self._labels += labels.tolist()
        self._scores += scores.tolist()
        if len(self._labels) < CHECKED:
            return None
        area = auc(np.nan_to_num(self._scores), np.nan_to_num(self._labels))
        self._labels, self._scores = [], []
        if area >= 0.5:
            self._checked = self._learner.export(self.serving)
            return None
        self.serving = self._learner.load(self._checked)
        return Verdict("rollback", 0, f"AUC {area:.3f}")


class Case(NamedTuple):
    """A run.

    Attributes:
        server: what stands between learning and serving: "gate", "none" or "fixed bar".
        attack: one of ``ATTACKS``, or "".
        begins: the label with which the attack begins.
        seed: of the learner.
        order: "time", or "users": one user after another, in random order.
        form: "serial", or "parallel".
    """

    server: str
    attack: str = ""
    begins: int = 0
    seed: int = SEEDS[0]
    order: str = "time"
    form: str = "serial"


class Run(NamedTuple):
    """What came of it.

    Attributes:
        auc: of all served scores.
        broken: served scores that were not finite.
        verdicts: of the gate, each with the number of labels before it.
        back: the longest that a rollback took, seconds.
        rate: examples a second, predicted and learned.
    """

    auc: float
    broken: int
    verdicts: list[tuple[int, Verdict]]
    back: float
    rate: float


def corrupt(attack: str, row: int, columns: dict[str, list[Any]], labels: Floats, weights: Floats) -> None:
    """Change a batch that begins with label ``row`` in place."""
    if attack == "flipped labels":
        labels[:] = 1 - labels
    elif attack == "not finite":
        kind = row // BATCH % 3
        if kind == 0:
            labels[:] = math.nan
        elif kind == 1:
            weights[:] = math.inf
        else:
            columns["age"] = [math.nan] * len(labels)


def ordered(order: str) -> tuple[dict[str, list[Any]], Floats]:
    """Return the columns and the true labels."""
    columns, labels = stream()
    if order == "time":
        return columns, labels
    random = np.random.default_rng(5)
    users = sorted(set(columns["user"]))
    place = dict(zip(users, random.permutation(len(users)).tolist(), strict=True))
    at = np.argsort([place[user] for user in columns["user"]], kind="stable")
    return dict(select(columns, at.tolist())), labels[at]


def play(case: Case) -> Run:
    """Serve and learn the whole stream."""
    columns, truth = ordered(case.order)
    learner = Fragile(case.seed)
    servers: dict[str, Callable[[], Any]] = {
        "gate": lambda: Gate(learner, GatePolicy()),
        "none": lambda: Gate(learner, None),
        "fixed bar": lambda: FixedBar(learner),
    }
    server = servers[case.server]()
    scores, verdicts, back = np.empty(len(truth)), [], 0.0
    published = learner.init() if case.form == "parallel" else None
    started = time.perf_counter()
    for row in range(0, len(truth), BATCH):
        batch = {name: columns[name][row : row + BATCH] for name in movielens.FIELDS}
        labels = truth[row : row + BATCH].copy()
        weights = np.ones(len(labels))
        served = server.predict(batch)[0]
        scores[row : row + BATCH] = served if published is None else learner.predict(published, batch)
        under = bool(case.attack) and case.begins <= row < case.begins + LENGTH
        learner.is_hot = under and case.attack == "rate x 100"
        if under and case.attack == LEFT_OUT:
            continue
        if under:
            corrupt(case.attack, row, batch, labels, weights)
        asked = time.perf_counter()
        verdict = server.learn(batch, labels, weights, served)
        if published is not None and (verdict is not None or row % PUBLISHED == 0):
            answers = learner.predict(server.serving, {name: columns[name][row : row + BATCH] for name in batch})
            if np.isfinite(answers).all():  # the loop looks as well
                published = learner.load(learner.export(server.serving))
        if verdict is not None:
            verdicts.append((row, verdict))
            back = max(back, time.perf_counter() - asked)
    rate = len(truth) / (time.perf_counter() - started)
    return Run(auc(np.nan_to_num(scores), truth), int((~np.isfinite(scores)).sum()), verdicts, back, rate)


def bad_updates(report: Report) -> None:
    """Bad updates: what they cost serving with a gate, without one, and with a fixed bar."""
    alone = {server: play(Case(server)) for server in ("none", "gate")}  # alone on the machine, as they are timed
    clean = [Case("gate", seed=seed) for seed in SEEDS[1:]] + [Case("gate", order="users")]
    attacked = [Case(server, attack, at) for server in SERVERS for attack in ATTACKS for at in PLACES]
    parallel = [Case("gate", attack, at, form="parallel") for attack in ATTACKS for at in PLACES]
    calm = Case("none", form="parallel")
    missing = [Case("none", LEFT_OUT, at) for at in PLACES]
    with Pool(2) as pool:
        cases = [*clean, Case("fixed bar"), *attacked, calm, *parallel, *missing]
        runs = dict(zip(cases, pool.map(play, cases, chunksize=1), strict=True))
    best = alone["none"].auc
    report.note(
        "AUC of clean updates", "", alone["gate"].auc, {"no gate": best, "AUC >= 0.5": runs[Case("fixed bar")].auc}
    )
    for attack in ATTACKS:
        lost = {server: [best - runs[Case(server, attack, at)].auc for at in PLACES] for server in SERVERS}
        means, worst = ({name: pick(lost[name]) for name in lost} for pick in (np.mean, max))
        report.at_most(f"AUC lost, {attack}, mean of {len(PLACES)} places", "", *_beside(means, MOST_LOST))
        report.at_most(f"AUC lost, {attack}, worst place", "", *_beside(worst, MOST_LOST))
        apart = [runs[calm].auc - runs[case].auc for case in parallel if case.attack == attack]
        report.at_most(f"AUC lost, {attack}, parallel form, mean", "", float(np.mean(apart)), MOST_LOST)
        report.at_most(f"AUC lost, {attack}, parallel form, worst place", "", max(apart), MOST_LOST)
    without = [best - runs[case].auc for case in missing]
    report.note(f"AUC lost if nobody learns those labels, mean of {len(PLACES)} places", "", float(np.mean(without)))
    report.note("AUC lost if nobody learns those labels, worst place", "", max(without))
    broken = {server: max(runs[Case(server, ATTACKS[1], at)].broken for at in PLACES) for server in SERVERS}
    report.note("scores served that are not finite, worst place", "", *_beside(broken))
    ours = [runs[Case("gate", attack, at)] for attack in ATTACKS for at in PLACES]
    report.at_most("longest rollback", "s", max(run.back for run in ours), MOST_SECONDS)
    found = [
        run.verdicts[0][0] + BATCH - case.begins for case, run in zip(attacked, ours, strict=False) if run.verdicts
    ]
    report.note("labels from the first bad one to the rollback, worst place", "", max(found, default=None))
    false = [
        sum(verdict.action == "rollback" for _, verdict in run.verdicts)
        for run in (alone["gate"], *(runs[case] for case in clean))
    ]
    report.at_most("false rollbacks in 100,000 clean labels, worst of 4 streams", "", max(false), MOST_FALSE)
    report.note("examples a second, predicted and learned", "", alone["gate"].rate, {"no gate": alone["none"].rate})


def _beside(figures: dict[str, Any], *goal: float) -> tuple[Any, ...]:
    """Return ours, the goal if there is one, and the peers."""
    return float(figures["gate"]), *goal, {name: float(figures[server]) for name, server in PEERS.items()}
