"""Features made of the labels that came last, such as how often flights from an airport were delayed of late."""

from __future__ import annotations

import json
import math
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from contbatch.transforms.learning.id_table import key_of
from contbatch.transforms.learning.learner import (
    Arrays,
    Columns,
    Learner,
    needs_settled,
    prefixed,
    prepare,
    prepared_fields,
    select,
    unprefixed,
)
from contbatch.transforms.learning.observed import FIELD, Observed

Floats = NDArray[np.float64]

State = TypeVar("State")

Means = OrderedDict[bytes, float]
"""The mean of the last labels of each value of a column; the value whose last label is oldest comes first."""

UNKNOWN = -1
"""The bucket of a value that no label is known of."""


_DIGEST = len(key_of(""))


class RecentState(NamedTuple, Generic[State]):
    """One table of means per key, and the inner learner's state."""

    means: dict[str, Means]
    inner: State


@dataclass(frozen=True)
class RecentLabels(Generic[State]):
    """Gives a learner, for some columns, a token that says what the last labels of the row's value were.

    Each value of a key has an exponentially weighted mean of its labels, in the order in which they are learned: the
    first label is the mean, and every other moves it by ``mean += rate * (label - mean)`` (with an importance weight
    w, as far as w such labels would: by ``1 - (1 - rate)**w``). The inner learner reads its bucket, the whole part of
    ``buckets * mean``, in the column ``recent KEY``, as it would any other id; :data:`UNKNOWN` before a first label.

    These are prepared columns (see :class:`~contbatch.transforms.learning.learner.Preparing`): a row is learned with
    the buckets that it was served with, even if its label lands hours later, and only then does the label count in
    the means. Buckets that were computed anew at that time would hold labels that the prediction could not know.

    A table holds at most ``capacity`` values; beyond it, the one whose last label is oldest goes. A value is known by
    a digest of its text. A label that is not finite moves no mean, nor does one whose weight is 0 or not finite, nor a
    negative that is only assumed (see :class:`~contbatch.transforms.learning.observed.Observed`).

    Attributes:
        learner: the inner learner; it reads a column ``recent KEY`` for each key.
        keys: columns whose values have a mean each; a key need not be a column that the learner reads.
        rate: how far a label moves the mean, above 0 and at most 1; a label counts half after ``0.7 / rate`` others.
        buckets: how many parts the labels' range, 0 to 1, is cut into.
        capacity: most values per key; about 150 bytes each.

    Raises:
        ValueError: an attribute is outside its range, or the learner does not read a column.
    """

    learner: Learner[State]
    keys: tuple[str, ...]
    rate: float = 0.05
    buckets: int = 20
    capacity: int = 10_000

    def __post_init__(self) -> None:
        if not self.keys or len(set(self.keys)) < len(self.keys):
            raise ValueError(f"keys is {self.keys}; name one column or more, each once")
        for name in map(recent, self.keys):
            if name not in self.learner.fields:
                raise ValueError(f"the learner reads {tuple(self.learner.fields)}; add {name!r} to its fields")
        if not 0 < self.rate <= 1:
            raise ValueError(f"rate is {self.rate}; give a number above 0 and at most 1")
        for name in ("buckets", "capacity"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; give 1 or more")

    @property
    def fields(self) -> tuple[str, ...]:
        """The columns of a request: those that the inner learner reads, without the prepared ones, and the keys."""
        own = set(map(recent, self.keys))
        return tuple(dict.fromkeys((*(name for name in self.learner.fields if name not in own), *self.keys)))

    @property
    def needs_settled(self) -> bool:
        """The means need the requests that got no label: without them, positives alone would count."""
        return True

    @property
    def prepared(self) -> tuple[str, ...]:
        """A column for each key, and what the inner learner prepares."""
        return (*map(recent, self.keys), *prepared_fields(self.learner))

    def init(self) -> RecentState[State]:
        """Return empty tables and the inner learner's first state."""
        return RecentState({key: Means() for key in self.keys}, self.learner.init())

    def prepare(self, state: RecentState[State], columns: Columns) -> Columns:
        """Return the buckets of the rows' values, and what the inner learner prepares."""
        own = {
            recent(key): [self._bucket(means.get(key_of(value))) for value in columns[key]]
            for key, means in state.means.items()
        }
        inner = prepare(self.learner, state.inner, {**columns, **own})
        return own | {name: inner[name] for name in prepared_fields(self.learner)}

    def predict(self, state: RecentState[State], columns: Columns) -> Floats:
        """Return the inner learner's score of the rows with their buckets, shape (n,)."""
        return self.learner.predict(state.inner, prepare(self, state, columns))

    def step(self, state: RecentState[State], columns: Columns, labels: Floats, weights: Floats) -> RecentState[State]:
        """Learn the rows with their buckets, then count the labels, in order; changes ``state`` and returns it.

        The inner learner sees rows that are ``SETTLED`` only if it asks for them.
        """
        columns, observed = prepare(self, state, columns), columns.get(FIELD, [Observed.LABEL] * len(labels))
        inner = self._learn(state.inner, columns, labels, weights, np.array(observed))
        for key, means in state.means.items():
            for value, label, weight, standing in zip(
                columns[key], labels.tolist(), weights.tolist(), observed, strict=True
            ):
                if standing != Observed.ASSUMED:
                    self._count(means, key_of(value), label, weight)
        return RecentState(state.means, inner)

    def _learn(
        self, inner: State, columns: Columns, labels: Floats, weights: Floats, observed: NDArray[np.int64]
    ) -> State:
        wanted = np.flatnonzero(observed != Observed.SETTLED)
        if len(wanted) == len(labels) or needs_settled(self.learner):
            return self.learner.step(inner, columns, labels, weights)
        if not len(wanted):
            return inner
        return self.learner.step(inner, select(columns, wanted.tolist()), labels[wanted], weights[wanted])

    def export(self, state: RecentState[State]) -> Arrays:
        """Return the tables, oldest first, under ``recent/KEY/``, and the inner learner's arrays, under ``inner/``."""
        tables: Arrays = {"made": np.frombuffer(json.dumps(self._made).encode(), np.uint8)}
        for key, means in state.means.items():
            tables[f"recent/{key}/values"] = np.frombuffer(b"".join(means), np.uint8).reshape(-1, _DIGEST)
            tables[f"recent/{key}/means"] = np.array(list(means.values()), np.float64)
        return tables | prefixed(self.learner.export(state.inner), "inner/")

    def load(self, arrays: Arrays) -> RecentState[State]:
        """Return the exported state."""
        made = json.loads(arrays["made"].tobytes()) if "made" in arrays else None
        if made != self._made:
            raise ValueError(f"the arrays were made with {made}, not {self._made}; load them with that")
        tables = {}
        for key in self.keys:
            means = arrays[f"recent/{key}/means"].tolist()
            if len(means) > self.capacity:
                raise ValueError(f"the arrays have {len(means)} values of {key!r}, but capacity is {self.capacity}")
            values = [row.tobytes() for row in arrays[f"recent/{key}/values"]]
            tables[key] = Means(zip(values, means, strict=True))
        return RecentState(tables, self.learner.load(unprefixed(arrays, "inner/")))

    @property
    def _made(self) -> dict[str, Any]:
        """What the meaning of the tables and of the tokens depends on."""
        return {"keys": list(self.keys), "rate": self.rate, "buckets": self.buckets}

    def _bucket(self, mean: float | None) -> int:
        return UNKNOWN if mean is None else min(max(int(mean * self.buckets), 0), self.buckets - 1)

    def _count(self, means: Means, value: bytes, label: float, weight: float) -> None:
        if not (math.isfinite(label) and 0 < weight < math.inf):
            return
        mean = means.pop(value, label)
        means[value] = mean + (1 - (1 - self.rate) ** weight) * (label - mean)
        if len(means) > self.capacity:
            means.popitem(last=False)


def recent(key: str) -> str:
    """Return the name of a key's prepared column."""
    return f"recent {key}"
