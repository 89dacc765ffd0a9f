"""Keeps bad updates from serving: the last good weights stand behind those that learn, and take over on an alarm.

While all is well the live weights learn and serve at once, since freshness is accuracy. Two tests run over the labels
(see :class:`~contbatch.transforms.learning.evidence.Evidence`):

* **ranking**: the covariance of the served scores and the labels, around their means over the last few dozen labels,
  has its usual mean, and not the opposite one. Flipped labels look *good* to weights that learn them, so it is the
  labels that are judged here. (Rejected: the mean loss. Users come in bursts, easy and hard ones, and it wanders more
  than a burst of flipped labels moves it.)
* **paired**: the served scores have no larger squared error than those of the good weights on the same labels. It
  finds weights that went wrong on healthy labels, such as after a learning rate a hundred times too large.

On an alarm the good weights serve (``rollback``) and stay as they are, while a copy of them goes on learning as a
shadow. It is judged in trials, each with a fresh copy: it passes if the labels rank as usual under the good weights'
scores and the shadow is at no time much worse than they are. The shadow of the second trial passed in a row serves
(``resume``), with what it learned in that trial; nothing that was learned in any trial before serves. (One trial is
not enough: damage is latent until its user or item comes back, and a trial may begin in the last bad labels.) When
no two trials have succeeded for ``probation`` labels, the world may have changed: from then on the shadow keeps
learning what looks wrong, and serves as soon as it is clearly better than the good weights (``accept``); what is
usual is then learned anew.

What is not finite never waits for evidence: rows with such a label or weight, or such a score under the good weights,
are not learned, and live weights that give such a score where the good ones do not are rolled back at once.
"""

from __future__ import annotations

import math
from dataclasses import astuple, dataclass
from typing import Generic, Literal, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from contbatch.transforms.learning.copies import Copies, Copy, copied
from contbatch.transforms.learning.learner import (
    Arrays,
    Columns,
    Learner,
    prefixed,
    prepare,
    prepared_fields,
    select,
    unprefixed,
)
from contbatch.transforms.learning.watch import Trial, Watch

Floats = NDArray[np.float64]

State = TypeVar("State")

_PASSES = 2
"""Trials that a shadow's forebears and it have to pass in a row."""

_BROKEN = "the live weights give scores that are not finite"


@dataclass(frozen=True)
class GatePolicy:
    """When weights serve; all counts are of labels.

    Attributes:
        every: between two copies of the live weights.
        settle: how long labels have to look healthy after a copy before it counts as good.
        refresh: between two changes of the good weights that the live ones are held against.
        alarm: evidence for a rollback, in nats: 18 would be a false alarm in ``exp(18)`` independent labels.
        warm_up: at the start and after an accepted change, to learn what is usual; without alarms, but for what is
            not finite.
        trial: on which a shadow is judged.
        probation: without success, after which a change that the shadow learns is taken for real.

    Raises:
        ValueError: an attribute is outside its range.
    """

    every: int = 125
    settle: int = 250
    refresh: int = 2000
    alarm: float = 18.0
    warm_up: int = 1000
    trial: int = 64
    probation: int = 4000

    def __post_init__(self) -> None:
        for name, least in (
            ("every", 1),
            ("settle", 0),
            ("refresh", 1),
            ("warm_up", 0),
            ("trial", 1),
            ("probation", 0),
        ):
            if not getattr(self, name) >= least:
                raise ValueError(f"{name} is {getattr(self, name)} labels; give {least} or more")
        if not 0 < self.alarm < math.inf:
            raise ValueError(f"alarm is {self.alarm} nats; give a finite number above 0, such as 18")


class Verdict(NamedTuple):
    """That other weights serve from now on.

    Attributes:
        action: what the gate did.
        step: of the weights that serve now, see :attr:`Gate.serving_step`.
        why: in words, with figures.
    """

    action: Literal["rollback", "resume", "accept"]
    step: int
    why: str


class _Batch(NamedTuple):
    """Labelled rows: their columns, and arrays of shape (n,)."""

    columns: Columns
    labels: Floats
    weights: Floats
    scores: Floats

    def take(self, keep: NDArray[np.bool_]) -> _Batch:
        if keep.all():
            return self
        columns = select(self.columns, np.flatnonzero(keep).tolist())
        return _Batch(columns, self.labels[keep], self.weights[keep], self.scores[keep])


class Gate(Generic[State]):
    """Learns, and says which weights serve; a function of its calls alone.

    Args:
        learner: what predicts and learns.
        policy: when weights serve; ``None`` lets every update through, at no cost.
        state: the weights to begin with, by default the learner's first ones; used up.
    """

    def __init__(self, learner: Learner[State], policy: GatePolicy | None, state: State | None = None) -> None:
        self._learner = learner
        self._policy = policy
        self._labels = 0
        self._accepted = 0  # the label with which what is usual began
        self._watch = Watch()
        self._trial = Trial()
        self._quarantined: int | None = None
        """The label of the rollback, while good weights serve."""
        self._was_broken = False
        self._copies = Copies(policy.every, policy.settle) if policy else Copies(1, 0)
        self.restore(learner.init() if state is None else state, 0)

    @property
    def serving(self) -> State:
        """The weights to predict with."""
        return self._live if self._quarantined is None else self._good

    @property
    def step(self) -> int:
        """Calls of :meth:`learn` so far."""
        return self._step

    @property
    def serving_step(self) -> int:
        """The step after which the serving weights were made."""
        return self._step if self._quarantined is None else self._good_step

    def predict(self, columns: Columns) -> tuple[Floats, int, Columns]:
        """Return the scores, shape (n,), the step after which their weights were made, and the features as served.

        Where the live weights give one that is not finite and the good ones do not, the good ones answer, and the next
        call of :meth:`learn` rolls back.
        """
        served = prepare(self._learner, self.serving, columns)
        scores = self._learner.predict(self.serving, served)
        if self._policy is None or self._quarantined is not None or not self._is_broken(columns, scores):
            return scores, self.serving_step, served
        self._was_broken = True
        served = prepare(self._learner, self._good, columns)
        return self._score_good(served), self._good_step, served

    def restore(self, state: State, step: int) -> None:
        """Put other weights in, which serve and count as good; ends a quarantine. ``state`` is used up."""
        self._live, self._step = state, step
        self._serve_live()
        if self._policy is not None:
            self._trust_live()

    def learn(self, columns: Columns, labels: Floats, weights: Floats, scores: Floats) -> Verdict | None:
        """Learn n rows, and say if other weights serve from now on.

        The rows that raise an alarm are not learned, nor are those that are not finite.

        Args:
            columns: the rows, with what the learner prepared as it was served.
            labels: shape (n,).
            weights: importance weights, shape (n,).
            scores: what these weights had served for the rows, shape (n,); not finite for those that others served.
        """
        self._step += 1
        if self._policy is None:
            self._live = self._learner.step(self._live, columns, labels, weights)
            return None
        broken = self._was_broken
        batch, finite = _Batch(columns, labels, weights, scores), np.isfinite(scores)
        if self._quarantined is not None or not finite.all():
            batch = batch._replace(scores=self._learner.predict(self.serving, columns))
            finite = np.isfinite(batch.scores)
            broken = broken or (self._quarantined is None and self._is_broken(columns, batch.scores))
        if broken:
            return self._roll_back(_BROKEN)
        batch = batch.take(finite & np.isfinite(labels) & np.isfinite(weights))
        if not len(batch.labels):
            return None
        self._labels += len(batch.labels)
        if self._quarantined is not None:
            return self._try_shadow(self._policy, self._quarantined, batch)
        why = self._judge(self._policy, batch)
        if why:
            return self._roll_back(why)
        self._live = self._learner.step(self._live, batch.columns, batch.labels, batch.weights)
        self._keep_copies(self._policy)
        return None

    def _judge(self, policy: GatePolicy, batch: _Batch) -> str:
        """Judge labels whose rows the live weights served; returns why to roll back, or ""."""
        watch, columns = self._watch, batch.columns
        watch.judge(batch.labels, batch.scores, self._labels - len(batch.labels) + 1)
        if watch.keep(columns, (*self._learner.fields, *prepared_fields(self._learner)), batch.labels, batch.scores):
            if self._is_broken(columns, self._learner.predict(self._live, columns)):  # the labels may come much later
                return _BROKEN
            watch.compare(self._score_good, self._labels)
        if self._labels - self._accepted <= policy.warm_up:
            watch.forgive(self._labels)
        return watch.alarm(policy.alarm, self._labels)

    def _is_broken(self, columns: Columns, scores: Floats) -> bool:
        """Return whether a score of the live weights is not finite, and it is not the row's fault."""
        finite = np.isfinite(scores)
        return not finite.all() and bool(np.isfinite(self._score_good(columns)[~finite]).any())

    def _score_good(self, columns: Columns) -> Floats:
        return self._learner.predict(self._good, columns)

    def _keep_copies(self, policy: GatePolicy) -> None:
        copy = self._copies.good(self._watch.since)
        if copy and self._labels - self._refreshed >= policy.refresh:
            self._watch.score(self._score_good)
            self._trust(copy)
        if self._copies.is_due(self._labels):
            self._copies.take(self._labels, self._step, self._learner.export(self._live))

    def _trust(self, copy: Copy) -> None:
        self._good, self._good_step = self._learner.load(copied(copy.arrays)), copy.step
        self._refreshed = self._labels

    def _trust_live(self) -> None:
        self._trust(Copy(self._labels, self._step, self._learner.export(self._live)))

    def _serve_live(self) -> None:
        """Let the live weights serve, with nothing against them."""
        self._quarantined, self._was_broken = None, False
        self._copies.clear(self._labels)
        self._watch.clear(self._labels)

    def _roll_back(self, why: str) -> Verdict:
        """Serve the newest weights that count as good, and start a shadow."""
        copy = self._copies.good(self._watch.since)
        if copy:
            self._trust(copy)
        self._serve_live()
        self._quarantined = self._labels
        self._begin_trial(0.0)
        return Verdict("rollback", self._good_step, why)

    def _begin_trial(self, passed: float) -> None:
        self._live = self._learner.load(copied(self._learner.export(self._good)))
        self._trial = Trial(passed=passed)

    def _try_shadow(self, policy: GatePolicy, since: int, batch: _Batch) -> Verdict | None:
        """Learn with the shadow, and judge it at the end of its trial."""
        trial, watch, labels = self._trial, self._watch, batch.labels
        watch.try_on(trial, labels, batch.scores, self._learner.predict(self._live, batch.columns))
        self._live = self._learner.step(self._live, batch.columns, labels, batch.weights)
        if trial.labels < policy.trial:
            return None
        better = watch.compared(trial)
        why = (
            f"on {trial.labels:.0f} labels the covariance is {trial.ranking / trial.labels:.4f}, usually "
            f"{watch.usual:.4f}, and the squared error {trial.gain / trial.labels:.4f} below that of the good weights"
        )
        is_usual = watch.is_usual(trial)
        has_passed = is_usual and better > -0.5 and trial.worst < policy.alarm / 2
        if has_passed and trial.passed + 1 >= _PASSES:
            self._serve_live()
            return Verdict("resume", self._step, f"healthy again: {why}")
        if self._labels - since < policy.probation or is_usual:
            self._begin_trial(trial.passed + 1 if has_passed else 0.0)
        elif better > 0.5:
            self._watch, self._accepted = Watch(), self._labels
            self._serve_live()
            self._trust_live()
            return Verdict("accept", self._step, f"what has changed is learned: {why}")
        else:
            self._trial = Trial()
        return None

    def export(self) -> Arrays:
        """Return all that :meth:`load` needs to go on exactly from here."""
        arrays = prefixed(self._learner.export(self._live), "live/")
        if self._policy is None:
            return arrays | {"counts": np.array([self._step])}
        self._watch.score(self._score_good)
        quarantined = -1 if self._quarantined is None else self._quarantined
        numbers = (self._step, self._labels, self._accepted, self._good_step, self._refreshed, self._was_broken)
        counts = np.array([*map(int, numbers), quarantined])
        arrays |= prefixed(self._learner.export(self._good), "good/") | prefixed(self._copies.export(), "copies/")
        arrays |= prefixed(self._watch.export(), "watch/")
        return arrays | {"counts": counts, "trial": np.array(astuple(self._trial))}

    def load(self, arrays: Arrays) -> None:
        """Fill a fresh gate of the same learner and policy with what :meth:`export` returned.

        Weights that were exported without a policy count as good; to go on without one, the weights that served do.
        """
        learner, counts = self._learner, arrays["counts"].tolist()
        was_gated = len(counts) > 1
        if self._policy is None or not was_gated:
            serving = "good" if was_gated and counts[-1] >= 0 else "live"
            self.restore(learner.load(unprefixed(arrays, f"{serving}/")), counts[0])
            return
        self._live, self._good = learner.load(unprefixed(arrays, "live/")), learner.load(unprefixed(arrays, "good/"))
        self._step, self._labels, self._accepted, self._good_step, self._refreshed, was_broken, quarantined = counts
        self._was_broken = bool(was_broken)
        self._quarantined = None if quarantined < 0 else quarantined
        self._copies.load(unprefixed(arrays, "copies/"))
        self._watch.load(unprefixed(arrays, "watch/"))
        self._trial = Trial(*arrays["trial"].tolist())
