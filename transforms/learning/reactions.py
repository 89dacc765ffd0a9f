"""What is done about a drift: each a change of a learner's state, or a model or rows beside it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from contbatch.transforms.learning.learner import Learner
from contbatch.transforms.learning.replay_buffer import ReplayBuffer
from contbatch.transforms.learning.sampling import Downsampled
from contbatch.transforms.learning.sparse import SparseLearner, SparseState
from contbatch.transforms.learning.statistics import RunningStatistics, Standardized


@dataclass(frozen=True)
class Boost:
    """On an alarm, raises the learning rates of a :class:`SparseLearner`, also inside wrappers.

    AdaGrad's rate of a coordinate falls with its sum of squared gradients. The sum is shrunk to ``factor`` of what it
    has grown, so the rate is up to ``1 / sqrt(factor)`` times as high, most where most was learned, and falls again
    as new gradients come. The scores stay as they are.

    Attributes:
        factor: what remains, 0 to below 1.

    Raises:
        ValueError: the factor is outside its range.
    """

    factor: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.factor < 1:
            raise ValueError(f"factor is {self.factor}; give 0 or more, below 1")

    def check(self, learner: Learner[Any]) -> None:
        """Raise ValueError if there is no learner that this reaction knows."""
        if not any(isinstance(part, SparseLearner) for part in _parts(learner)):
            raise ValueError(f"Boost knows SparseLearner alone, which {learner} is not; take Background or Replay")

    def react(self, learner: Learner[Any], state: Any) -> Any:
        """Return the state after the reaction; the given one is used up."""
        return _changed(learner, state, self._apply)

    def _apply(self, learner: Any, state: Any) -> Any:
        if isinstance(learner, SparseLearner):
            _shrink(learner, state, self.factor)
        return state


@dataclass(frozen=True)
class Refresh:
    """On an alarm, ages what a :class:`Standardized` knows, as if no row had come for some half-lives.

    Mean and deviation stay as they are, and then follow new rows ``2**half_lives`` times as fast, until these have
    as much weight again.

    Attributes:
        half_lives: above 0.

    Raises:
        ValueError: the number is outside its range.
    """

    half_lives: float = 4.0

    def __post_init__(self) -> None:
        if not 0 < self.half_lives < math.inf:
            raise ValueError(f"half_lives is {self.half_lives}; give a finite number above 0")

    def check(self, learner: Learner[Any]) -> None:
        """Raise ValueError if there are no statistics that this reaction knows."""
        if not any(isinstance(part, Standardized) for part in _parts(learner)):
            raise ValueError(f"Refresh ages the statistics of a Standardized, which {learner} is not; leave it out")

    def react(self, learner: Learner[Any], state: Any) -> Any:
        """Return the state after the reaction; the given one is used up."""
        return _changed(learner, state, self._apply)

    def _apply(self, learner: Any, state: Any) -> Any:
        if not isinstance(learner, Standardized):
            return state
        fade = 2.0**-self.half_lives
        weight, mean, squares, skipped, time = state.statistics
        return state._replace(statistics=RunningStatistics.of(weight * fade, mean, squares * fade, skipped, time))


@dataclass(frozen=True)
class Background:
    """From a warning or an alarm on, a new model learns beside the live one, and takes over when clearly better.

    Both score every row before they learn it. The new model takes over when the mean of its squared error over the
    last ``recent`` rows is below the live one's by ``deviations`` standard errors, and is dropped if that has not
    happened within ``patience`` rows. So, unlike a swap on the alarm, no model that knows less takes over.

    Attributes:
        recent: rows that are compared, 32 or more.
        deviations: standard errors that count as clearly better.
        patience: rows after which the new model is dropped.

    Raises:
        ValueError: an attribute is outside its range.
    """

    recent: int = 256
    deviations: float = 3.0
    patience: int = 5_000

    def __post_init__(self) -> None:
        if self.recent < 32:
            raise ValueError(f"recent is {self.recent} rows; give 32 or more")
        if self.patience < self.recent:
            raise ValueError(f"patience is {self.patience} rows; give at least recent, {self.recent}")
        if not 0 < self.deviations < math.inf:
            raise ValueError(f"deviations is {self.deviations}; give a finite number above 0")


@dataclass(frozen=True)
class Replay:
    """After an alarm, each new row is followed by some that came since the alarm, learned again.

    The buffer begins anew with each alarm: rows from before it would teach what is no longer true.

    Attributes:
        buffer: what is kept since the alarm.
        share: rows replayed for each new one.
        rows: new rows after an alarm for which this goes on.

    Raises:
        ValueError: an attribute is outside its range.
    """

    buffer: ReplayBuffer = field(default_factory=lambda: ReplayBuffer(1_000))
    share: float = 1.0
    rows: int = 2_000

    def __post_init__(self) -> None:
        if not 0 < self.share < math.inf:
            raise ValueError(f"share is {self.share}; give a finite number above 0")
        if self.rows < 1:
            raise ValueError(f"rows is {self.rows}; give 1 or more")


Reaction = Boost | Refresh | Background | Replay


def _parts(learner: Any) -> list[Any]:
    """Return a learner and those that it wraps, outermost first."""
    parts = [learner]
    while hasattr(parts[-1], "learner"):
        parts.append(parts[-1].learner)
    return parts


def _changed(learner: Any, state: Any, change: Any) -> Any:
    """Return the state with ``change(learner, state)`` made to it and to the states of wrapped learners."""
    state = change(learner, state)
    if not hasattr(learner, "learner"):
        return state
    if isinstance(learner, Downsampled):  # has no state of its own
        return _changed(learner.learner, state, change)
    return state._replace(inner=_changed(learner.learner, state.inner, change))


def _shrink(learner: SparseLearner, state: SparseState, factor: float) -> None:
    """Shrink what the sums of squares have grown; FTRL's ``z`` moves along, so that the weights stay."""
    slots = np.flatnonzero(state.touched)
    start = np.full(1 + learner.factors, learner.accumulator)
    if learner.ftrl:
        start[0] = 0.0
    squares = start + factor * (state.squares[slots] - start)
    state.squares[slots] = squares
    if learner.ftrl:
        ftrl, weight, z = learner.ftrl, state.weights[slots, 0], state.z[slots]
        scale = (ftrl.beta + np.sqrt(squares[:, 0])) / ftrl.alpha + ftrl.l2
        state.z[slots] = np.where(weight == 0, z, -weight * scale - np.sign(weight) * ftrl.l1)
