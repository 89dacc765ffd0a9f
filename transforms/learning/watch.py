"""What a gate holds against weights: the labels of what they served, and the errors of older weights on the same."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from contbatch.transforms.learning.evidence import Centre, Evidence
from contbatch.transforms.learning.learner import Arrays, Columns

Floats = NDArray[np.float64]

Scorer = Callable[[Columns], Floats]

_TOGETHER = 32
"""Labels that are scored by the good weights in one call."""

_WORSE = 0.25
"""How much worse than the good weights is bad, in deviations of the difference on one label."""

_USUAL = 0.25
"""Share of its usual mean that the covariance needs in a trial; flipped labels give -1, weights that stand still .8."""


@dataclass
class _Pairs:
    """Labels that are still to be held against the good weights' scores.

    Attributes:
        labels: of all of them.
        scores: that were served.
        good: the good weights' scores, of the first ones.
        columns: of the others.
    """

    labels: list[float] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    good: list[float] = field(default_factory=list)
    columns: dict[str, list[Any]] = field(default_factory=dict)


@dataclass
class Trial:
    """Sums over the labels of a shadow's trial.

    Attributes:
        labels: how many.
        ranking: of the covariance of labels and the good weights' scores.
        gain: by how much the shadow's squared error was below that of the good weights.
        worst: the most evidence against the shadow on the way, in nats.
        passed: trials passed in a row before this one.
    """

    labels: float = 0.0
    ranking: float = 0.0
    gain: float = 0.0
    worst: float = 0.0
    passed: float = 0.0


class Watch:
    """Two tests over the labels, and what is usual for them.

    Attributes:
        ranking: of the covariance of served scores and labels around their local means; see the gate's text.
        paired: of the squared error of the good weights less that of what was served.
    """

    def __init__(self) -> None:
        self.ranking, self.paired = Evidence(), Evidence()
        self._centre = Centre()
        self._against = Evidence()  # a trial's own test, with what is usual from ``paired``
        self._pairs = _Pairs()

    @property
    def since(self) -> float:
        """How many labels there had been when nothing spoke against the live weights."""
        return min(self.ranking.since, self.paired.since)

    @property
    def usual(self) -> float:
        """The usual mean of the covariance; 0 where scores say nothing."""
        return max(self.ranking.mean, 0.0)

    def judge(self, labels: Floats, scores: Floats, at: int) -> None:
        """Hold n labels against the served scores; the first is label ``at``."""
        for number, (label, score) in enumerate(zip(labels.tolist(), scores.tolist(), strict=True), at):
            self.ranking.add(self._centre.covariance(label, score), self.usual, -self.usual, number)

    def keep(self, columns: Columns, fields: Sequence[str], labels: Floats, scores: Floats) -> bool:
        """Keep rows for :meth:`compare`; returns whether it is time for it."""
        pairs = self._pairs
        pairs.labels += labels.tolist()
        pairs.scores += scores.tolist()
        for name in fields:
            pairs.columns.setdefault(name, []).extend(columns[name])
        return len(pairs.labels) >= _TOGETHER

    def score(self, good: Scorer) -> None:
        """Give the kept rows the scores of the weights that are good now."""
        if self._pairs.columns:
            self._pairs.good += good(self._pairs.columns).tolist()
            self._pairs.columns = {}

    def compare(self, good: Scorer, at: int) -> None:
        """Hold the kept rows' scores against those of the good weights; the last is label ``at``."""
        self.score(good)
        pairs, self._pairs = self._pairs, _Pairs()
        rows = zip(pairs.labels, pairs.scores, pairs.good, strict=True)
        for number, (label, score, other) in enumerate(rows, at - len(pairs.labels) + 1):
            if math.isfinite(other):
                gain = (other - label) ** 2 - (score - label) ** 2
                self.paired.add(gain, 0.0, -_WORSE * self.paired.deviation, number)

    def alarm(self, nats: float, at: int) -> str:
        """Return what speaks against the live weights by so much, or ""."""
        for evidence, what in (
            (self.ranking, "the labels contradict the scores"),
            (self.paired, "the live weights are worse than the last good ones"),
        ):
            if evidence.level >= nats:
                return f"{what}: {evidence.level:.1f} nats in the last {at - evidence.since:.0f} labels"
        return ""

    def forgive(self, at: int) -> None:
        """Forget what speaks against the live weights, after ``at`` labels; what is usual stays known."""
        self.ranking.clear(at)
        self.paired.clear(at)

    def clear(self, at: int) -> None:
        """Forgive, and drop the rows that are kept: other weights serve."""
        self.forgive(at)
        self._pairs = _Pairs()

    def try_on(self, trial: Trial, labels: Floats, good: Floats, shadow: Floats) -> None:
        """Add n labels to a trial, with the scores of the good weights and of the shadow before it learned them."""
        if not trial.labels:
            self._against = replace(self.paired, level=0.0)
        for label, score, other in zip(labels.tolist(), good.tolist(), shadow.tolist(), strict=True):
            gain = (score - label) ** 2 - (other - label) ** 2 if math.isfinite(other) else -math.inf
            trial.labels += 1
            trial.gain += gain
            trial.ranking += self._centre.covariance(label, score)
            self._against.test(gain, 0.0, -_WORSE * self.paired.deviation)
            trial.worst = max(trial.worst, self._against.level)

    def is_usual(self, trial: Trial) -> bool:
        """Return whether the labels of a trial agree with the good weights' scores."""
        return trial.ranking / trial.labels >= _USUAL * self.usual

    def compared(self, trial: Trial) -> float:
        """Return how much better than the good weights a shadow was, as a part of what counts as worse."""
        return trial.gain / trial.labels / (_WORSE * self.paired.deviation)

    def export(self) -> Arrays:
        """Return the numbers; every kept row has its good score."""
        numbers = {name: np.array(astuple(getattr(self, name))) for name in _NUMBERS}
        pairs = self._pairs
        return numbers | {"pairs": np.array([pairs.labels, pairs.scores, pairs.good])}

    def load(self, arrays: Arrays) -> None:
        """Take over what :meth:`export` returned."""
        for name, kind in _NUMBERS.items():
            setattr(self, name, kind(*arrays[name].tolist()))
        self._pairs = _Pairs(*arrays["pairs"].tolist())


_NUMBERS: dict[str, type[Evidence] | type[Centre]] = {
    "ranking": Evidence,
    "paired": Evidence,
    "_centre": Centre,
    "_against": Evidence,
}
