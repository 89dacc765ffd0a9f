"""Numeric columns, standardised by running statistics that are part of the model's state."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from contbatch.transforms.learning.learner import (
    Arrays,
    Columns,
    Learner,
    prefixed,
    prepare,
    prepared_fields,
    unprefixed,
)

Floats = NDArray[np.float64]

State = TypeVar("State")

_LARGEST = 1e100
"""A larger value is taken for no number: a sum of squares would be past the range of a float."""

_ROUNDING = 1e-13
"""A standard deviation below this part of the mean is rounding: the column is constant."""


class RunningStatistics(NamedTuple):
    """Weighted mean and variance of k columns, in which a row counts half after every half-life of event time.

    A value: every change returns new statistics, and the arrays, each of shape (k,), cannot be written to. The
    order of rows does not matter: each has the weight ``w * 2**(-(time - its time) / half_life)``. Merging is by
    Chan, Golub and LeVeque (1983), with weights in place of counts.

    Attributes:
        weight: sum of the rows' weights, as of ``time``.
        mean: weighted mean; 0 before the first row.
        squares: weighted sum of squared distances from the mean.
        skipped: values that were no finite number (or above 1e100), since the start; they are in none of the above.
        time: the latest event time, in seconds; minus infinity before the first row.
    """

    weight: Floats
    mean: Floats
    squares: Floats
    skipped: NDArray[np.int64]
    time: float

    @classmethod
    def of(cls, weight: Any, mean: Any, squares: Any, skipped: Any, time: float) -> RunningStatistics:
        """Return statistics that hold their own, unchangeable copies of these arrays."""
        weight, mean, squares = (np.array(array, np.float64) for array in (weight, mean, squares))
        skipped = np.array(skipped, np.int64)
        for array in (weight, mean, squares, skipped):
            array.setflags(write=False)
        return cls(weight, mean, squares, skipped, float(time))

    @classmethod
    def empty(cls, count: int) -> RunningStatistics:
        """Return the statistics of no rows of ``count`` columns."""
        zeros = np.zeros(count)
        return cls.of(zeros, zeros, zeros, zeros, -math.inf)

    @property
    def std(self) -> Floats:
        """Standard deviation, shape (k,); 0 where all rows are equal up to rounding."""
        std = np.sqrt(np.divide(self.squares, self.weight, out=np.zeros(len(self.weight)), where=self.weight > 0))
        return np.where(std > _ROUNDING * np.abs(self.mean), std, 0.0)

    def learn(self, values: Floats, times: Floats, weights: Floats, half_life: float) -> RunningStatistics:
        """Return the statistics with n rows more.

        Args:
            values: shape (n, k).
            times: event times in seconds, shape (n,), in any order; a row without a finite one is skipped.
            weights: importance weights, shape (n,).
            half_life: seconds.
        """
        known = np.isfinite(times)
        time = float(times[known].max(initial=-math.inf))
        usable = _usable(values) & known[:, None]
        share = np.where(usable, (weights * _decay(times, time, half_life))[:, None], 0.0)
        values = np.where(usable, values, 0.0)
        weight = share.sum(axis=0)
        mean = np.divide((share * values).sum(axis=0), weight, out=np.zeros(len(weight)), where=weight > 0)
        squares = (share * (values - mean) ** 2).sum(axis=0)
        return self.merge(RunningStatistics.of(weight, mean, squares, (~usable).sum(axis=0), time), half_life)

    def merge(self, other: RunningStatistics, half_life: float) -> RunningStatistics:
        """Return the statistics of the rows of both."""
        time = max(self.time, other.time)
        fade, other_fade = _decay(np.array([self.time, other.time]), time, half_life)
        left, right = self.weight * fade, other.weight * other_fade
        total = left + right
        part = np.divide(right, total, out=np.zeros(len(total)), where=total > 0)
        apart = other.mean - self.mean
        squares = self.squares * fade + other.squares * other_fade + apart * apart * left * part
        return RunningStatistics.of(total, self.mean + apart * part, squares, self.skipped + other.skipped, time)

    def standardize(self, values: Floats, limit: float) -> Floats:
        """Return ``(values - mean) / std`` within ``limit`` on both sides, shape (n, k).

        0 for what is no finite number, and in a column whose rows so far are equal: nothing is known of its scale.
        """
        std = self.std
        usable = _usable(values) & (std > 0)
        with np.errstate(over="ignore"):  # clipped below
            scaled = np.divide(values - self.mean, std, out=np.zeros(values.shape), where=usable)
        return np.clip(scaled, -limit, limit)


def floats(column: Sequence[Any]) -> Floats:
    """Return a column as floats, shape (n,); NaN for what is no number."""
    try:
        return np.array(column, np.float64)
    except (TypeError, ValueError, OverflowError):
        return np.array([_float(value) for value in column], np.float64)


def _float(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return math.nan


def _usable(values: Floats) -> NDArray[np.bool_]:
    return np.abs(values) <= _LARGEST  # false for NaN


def _decay(times: Floats, now: float, half_life: float) -> Floats:
    """Return what a row of each time counts at ``now``; 1 for a time that is not known."""
    age = np.subtract(now, times, out=np.zeros(len(times)), where=np.isfinite(times))
    return np.exp2(-age / half_life)


class StandardizedState(NamedTuple, Generic[State]):
    """The statistics that the inner learner's next rows are standardised with, and its state."""

    statistics: RunningStatistics
    inner: State


@dataclass(frozen=True)
class Standardized(Generic[State]):
    """Gives a learner numeric columns with mean 0 and standard deviation 1.

    The statistics are a part of the state: they are published, restored and rolled back together with the weights
    that were learned under them. The standardised values are prepared columns (see
    :class:`~contbatch.transforms.learning.learner.Preparing`): a label that comes hours later is learned with the
    values that were served, and the statistics learn the raw ones.

    Attributes:
        learner: the inner learner.
        numbers: names of its columns to standardise; what is no finite number counts as the mean.
        half_life: seconds of event time after which a row counts half.
        time_field: the column of event times, in seconds. A wrong time far ahead makes all older rows count nothing.
        limit: largest standardised value, on both sides. A few rows, or the first ones after a long pause, say
            little of the scale, and one huge value can spoil weights for long.

    Raises:
        ValueError: an attribute is outside its range, or the learner does not read a column.
    """

    learner: Learner[State]
    numbers: tuple[str, ...]
    half_life: float
    time_field: str = "event_time"
    limit: float = 10.0

    def __post_init__(self) -> None:
        if not self.numbers or len(set(self.numbers)) < len(self.numbers):
            raise ValueError(f"numbers is {self.numbers}; name one column or more, each once")
        for field in self.numbers:
            if field not in self.learner.fields:
                raise ValueError(f"numbers names {field!r}, which is not one of the learner's {self.learner.fields}")
        if not (math.isfinite(self.half_life) and self.half_life > 0):
            raise ValueError(f"half_life is {self.half_life} s; give a finite number of seconds above 0")
        if not (math.isfinite(self.limit) and self.limit > 0):
            raise ValueError(f"limit is {self.limit}; give a finite number above 0")

    @property
    def fields(self) -> tuple[str, ...]:
        """The inner learner's columns and the event time."""
        return tuple(dict.fromkeys((*self.learner.fields, self.time_field)))

    def init(self) -> StandardizedState[State]:
        """Return the statistics of no rows and the inner learner's first state."""
        return StandardizedState(RunningStatistics.empty(len(self.numbers)), self.learner.init())

    @property
    def prepared(self) -> tuple[str, ...]:
        """The standardised numbers, and what the inner learner prepares."""
        return (*map(_standardized, self.numbers), *prepared_fields(self.learner))

    def prepare(self, state: StandardizedState[State], columns: Columns) -> Columns:
        """Return the numbers, standardised with the state's statistics, and what the inner learner prepares."""
        scaled = state.statistics.standardize(self._values(columns), self.limit).T.tolist()
        own = dict(zip(map(_standardized, self.numbers), scaled, strict=True))
        inner = prepare(self.learner, state.inner, self._inner({**columns, **own}))
        return own | {name: inner[name] for name in prepared_fields(self.learner)}

    def predict(self, state: StandardizedState[State], columns: Columns) -> Floats:
        """Return the inner learner's score of the standardised rows, shape (n,)."""
        return self.learner.predict(state.inner, self._inner(prepare(self, state, columns)))

    def step(
        self, state: StandardizedState[State], columns: Columns, labels: Floats, weights: Floats
    ) -> StandardizedState[State]:
        """Learn the rows as they were standardised, then their raw values."""
        inner = self.learner.step(state.inner, self._inner(prepare(self, state, columns)), labels, weights)
        values, times = self._values(columns), floats(columns[self.time_field])
        return StandardizedState(state.statistics.learn(values, times, weights, self.half_life), inner)

    def export(self, state: StandardizedState[State]) -> Arrays:
        """Return the statistics and, under ``inner/``, the inner learner's arrays."""
        weight, mean, squares, skipped, time = state.statistics
        return {
            "fields": np.frombuffer(json.dumps(self.numbers).encode(), np.uint8),
            "weight": weight.copy(),
            "mean": mean.copy(),
            "squares": squares.copy(),
            "skipped": skipped.copy(),
            "time": np.array([time]),
            **prefixed(self.learner.export(state.inner), "inner/"),
        }

    def load(self, arrays: Arrays) -> StandardizedState[State]:
        """Return the exported state."""
        fields = tuple(json.loads(arrays["fields"].tobytes())) if "fields" in arrays else ()
        if fields != self.numbers:
            raise ValueError(
                f"the arrays hold statistics of {fields}, not of {self.numbers}; load them with the configuration "
                "that they were exported with"
            )
        weight, mean, squares, skipped = (arrays[name] for name in ("weight", "mean", "squares", "skipped"))
        statistics = RunningStatistics.of(weight, mean, squares, skipped, arrays["time"][0])
        return StandardizedState(statistics, self.learner.load(unprefixed(arrays, "inner/")))

    def _values(self, columns: Columns) -> Floats:
        """Return the raw numbers, shape (n, k)."""
        return np.array([floats(columns[field]) for field in self.numbers]).T

    def _inner(self, columns: Columns) -> Columns:
        """Return the columns with the standardised numbers in the place of the raw ones."""
        return {**columns, **{name: columns[_standardized(name)] for name in self.numbers}}


def _standardized(name: str) -> str:
    return f"standardized {name}"
