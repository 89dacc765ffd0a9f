"""Ids as rows of a bounded table: admitted when seen often enough, dropped when not seen for long.

What is bounded, whatever comes: the rows, the ids that wait for a row, the list of evicted ids (``capacity`` of
each) and the size of an id (a digest of 16 bytes). Rejected: a count-min sketch for those that wait. It counts a
flood's ids too, so it needs an ageing rule of its own to stay useful, and its collisions admit ids by chance.
"""

from __future__ import annotations

import heapq
import math
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from contbatch.transforms.learning.learner import Arrays, Columns, Learner, prefixed, unprefixed
from contbatch.transforms.learning.statistics import floats

Floats = NDArray[np.float64]

State = TypeVar("State")

DEFAULT_ROW = 0
"""The row of every id that has none of its own."""

_KEY = 16


class Forgetful(Learner[State], Protocol[State]):
    """A learner that can drop what it has learned about some values of a column."""

    def forget(self, state: State, field: str, values: Sequence[int]) -> None:
        """Put what ``state`` holds for these values of the column back to how it was before the first example."""


def key_of(value: object) -> bytes:
    """Return the 16 bytes that stand for an id in a table: a digest of its text."""
    return blake2b(str(value).encode(), digest_size=_KEY).digest()


class Eviction(NamedTuple):
    """An id that lost its row: where it was, and the how manyth eviction of the table this is, from 1."""

    number: int
    key: bytes
    row: int


class IdTable:
    """Gives ids (as keys, see :func:`key_of`) the rows 1 to ``capacity``.

    An id gets a row when it is seen ``admit_after`` times with no gap above ``ttl``; at the cap, the one that was
    not seen for longest loses its row to it. A row that is not seen for longer than ``ttl`` goes. The table's clock
    is the latest time that it was given, and a late sighting counts as one of now: so the order of sightings is the
    order of the rows, and time never runs back.

    Args:
        capacity: most rows; also most ids that wait for one, and most evictions remembered.
        admit_after: sightings.
        ttl: seconds.
    """

    def __init__(self, capacity: int, admit_after: int, ttl: float) -> None:
        self._capacity = capacity
        self._admit_after = admit_after
        self._ttl = ttl
        self._now = -math.inf
        self._rows: OrderedDict[bytes, tuple[int, float]] = OrderedDict()  # row and last sighting, oldest first
        self._waiting: OrderedDict[bytes, tuple[int, float]] = OrderedDict()  # sightings and the last, oldest first
        self._used = 0  # rows above were never given
        self._free: list[int] = []  # a heap of those that were, and are not now
        self._evicted: deque[tuple[bytes, int]] = deque(maxlen=capacity)
        self._evictions = 0

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def waiting(self) -> int:
        """Ids that have been seen and have no row."""
        return len(self._waiting)

    @property
    def evictions(self) -> int:
        """Rows that were taken from an id since the start."""
        return self._evictions

    def row(self, key: bytes) -> int:
        """Return the row of an id, or :data:`DEFAULT_ROW`; changes nothing."""
        return self._rows.get(key, (DEFAULT_ROW, 0.0))[0]

    def evicted_since(self, number: int) -> list[Eviction] | None:
        """Return the evictions after this number, oldest first; ``None`` if some of them are no longer known.

        A server that holds rows of an older version drops these before it takes the rows of this one: an id may
        have come back since.
        """
        first = self._evictions - len(self._evicted) + 1
        if number + 1 < first:
            return None
        evictions = [Eviction(first + index, *evicted) for index, evicted in enumerate(self._evicted)]
        return [eviction for eviction in evictions if eviction.number > number]

    def see(self, key: bytes, time: float) -> list[int]:
        """Count a sighting; returns the rows that were taken from an id.

        Args:
            key: the id.
            time: seconds; counts as now if it is not finite.
        """
        if math.isfinite(time):
            self._now = max(self._now, time)
        taken = list(self._expire())
        if key in self._rows:
            self._rows[key] = self._rows[key][0], self._now
            self._rows.move_to_end(key)
            return taken
        sightings = self._waiting.pop(key, (0, 0.0))[0] + 1
        if sightings < self._admit_after:
            self._waiting[key] = sightings, self._now
            if len(self._waiting) > self._capacity:
                self._waiting.popitem(last=False)
            return taken
        if len(self._rows) == self._capacity:
            taken.append(self._evict())
        self._rows[key] = self._take_row(), self._now
        return taken

    def _expire(self) -> Iterator[int]:
        oldest = self._now - self._ttl
        while self._waiting and next(iter(self._waiting.values()))[1] < oldest:
            self._waiting.popitem(last=False)
        while self._rows and next(iter(self._rows.values()))[1] < oldest:
            yield self._evict()

    def _evict(self) -> int:
        key, (row, _) = self._rows.popitem(last=False)
        heapq.heappush(self._free, row)
        self._evicted.append((key, row))
        self._evictions += 1
        return row

    def _take_row(self) -> int:
        if self._free:
            return heapq.heappop(self._free)
        self._used += 1
        return self._used

    def export(self) -> Arrays:
        """Return all that :meth:`load` needs; keys are bytes of shape (n, 16), oldest first."""
        return {
            "keys": _as_bytes(self._rows),
            "rows": np.array([row for row, _ in self._rows.values()], np.int64),
            "seen": np.array([time for _, time in self._rows.values()], np.float64),
            "waiting_keys": _as_bytes(self._waiting),
            "waiting_sightings": np.array([count for count, _ in self._waiting.values()], np.int64),
            "waiting_seen": np.array([time for _, time in self._waiting.values()], np.float64),
            "evicted_keys": _as_bytes(key for key, _ in self._evicted),
            "evicted_rows": np.array([row for _, row in self._evicted], np.int64),
            "evictions": np.array([self._evictions], np.int64),
            "now": np.array([self._now], np.float64),
        }

    def load(self, arrays: Arrays) -> None:
        """Fill an empty table with what :meth:`export` returned.

        Raises:
            ValueError: it has rows beyond the capacity.
        """
        rows = arrays["rows"].tolist()
        if max(rows, default=0) > self._capacity:
            raise ValueError(f"the arrays have a row {max(rows)}, but capacity is {self._capacity}; give at least that")
        self._rows.update(zip(_as_keys(arrays["keys"]), zip(rows, arrays["seen"].tolist(), strict=True), strict=True))
        waiting = zip(arrays["waiting_sightings"].tolist(), arrays["waiting_seen"].tolist(), strict=True)
        self._waiting.update(zip(_as_keys(arrays["waiting_keys"]), waiting, strict=True))
        self._evicted.extend(zip(_as_keys(arrays["evicted_keys"]), arrays["evicted_rows"].tolist(), strict=True))
        self._evictions, self._now = int(arrays["evictions"][0]), float(arrays["now"][0])
        self._used = max(rows, default=0)
        self._free = sorted(set(range(1, self._used + 1)) - set(rows))


def _as_bytes(keys: Iterable[bytes]) -> NDArray[np.uint8]:
    return np.frombuffer(b"".join(keys), np.uint8).reshape(-1, _KEY)


def _as_keys(array: NDArray[Any]) -> list[bytes]:
    content = array.tobytes()
    return [content[start : start + _KEY] for start in range(0, len(content), _KEY)]


class BoundedState(NamedTuple, Generic[State]):
    """One table per field, and the inner learner's state."""

    tables: dict[str, IdTable]
    inner: State


@dataclass(frozen=True)
class BoundedIds(Generic[State]):
    """Gives a learner the row numbers of an :class:`IdTable` in place of ids.

    Ids without a row share row 0, which is learned like any other. A step first counts all its sightings, then lets
    the inner learner forget the rows that were taken from an id, then learns every row under its number of now.
    Only a step counts: a prediction changes nothing.

    A column holds an id per row, or a list of ids. Two ids with the same text are one.

    Attributes:
        learner: the inner learner.
        ids: names of its columns to give rows; each has a table of its own.
        capacity: most rows per field, row 0 aside.
        admit_after: sightings that give an id its row.
        ttl: seconds of event time without a sighting after which an id loses its row; may be infinite.
        time_field: the column of event times, in seconds. A wrong time far ahead makes all rows expire.

    Raises:
        ValueError: an attribute is outside its range, or the learner does not read a column or cannot forget.
    """

    learner: Forgetful[State]
    ids: tuple[str, ...]
    capacity: int
    admit_after: int
    ttl: float
    time_field: str = "event_time"

    def __post_init__(self) -> None:
        if not self.ids or len(set(self.ids)) < len(self.ids):
            raise ValueError(f"ids is {self.ids}; name one column or more, each once")
        for field in self.ids:
            if field not in self.learner.fields:
                raise ValueError(f"ids names {field!r}, which is not one of the learner's {self.learner.fields}")
        for name in ("capacity", "admit_after"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; give 1 or more")
        if not self.ttl > 0:
            raise ValueError(f"ttl is {self.ttl} s; give seconds above 0, or infinity")
        if not hasattr(self.learner, "forget"):
            raise ValueError(f"{type(self.learner).__name__} has no method forget; put this around one that has")

    @property
    def fields(self) -> tuple[str, ...]:
        """The inner learner's columns and the event time."""
        return tuple(dict.fromkeys((*self.learner.fields, self.time_field)))

    def init(self) -> BoundedState[State]:
        """Return empty tables and the inner learner's first state."""
        return BoundedState({field: self._table() for field in self.ids}, self.learner.init())

    def predict(self, state: BoundedState[State], columns: Columns) -> Floats:
        """Return the inner learner's score of the rows' numbers, shape (n,)."""
        return self.learner.predict(state.inner, _numbered(state.tables, self._keys(columns), columns))

    def step(
        self, state: BoundedState[State], columns: Columns, labels: Floats, weights: Floats
    ) -> BoundedState[State]:
        """Count the sightings, forget the rows that were taken, and learn; changes ``state`` and returns it."""
        keys, times = self._keys(columns), floats(columns[self.time_field]).tolist()
        for field, table in state.tables.items():
            taken = {
                row
                for entry, time in zip(keys[field], times, strict=True)
                for key in (entry if isinstance(entry, list) else (entry,))
                for row in table.see(key, time)
            }
            if taken:
                self.learner.forget(state.inner, field, sorted(taken))
        inner = self.learner.step(state.inner, _numbered(state.tables, keys, columns), labels, weights)
        return BoundedState(state.tables, inner)

    def export(self, state: BoundedState[State]) -> Arrays:
        """Return the tables, under ``ids/FIELD/``, and the inner learner's arrays, under ``inner/``."""
        tables: Arrays = {}
        for field, table in state.tables.items():
            tables |= prefixed(table.export(), f"ids/{field}/")
        return tables | prefixed(self.learner.export(state.inner), "inner/")

    def load(self, arrays: Arrays) -> BoundedState[State]:
        """Return the exported state."""
        tables = {}
        for field in self.ids:
            if f"ids/{field}/keys" not in arrays:
                raise ValueError(f"the arrays have no table of {field!r}; load them with the ids of their export")
            tables[field] = self._table()
            tables[field].load(unprefixed(arrays, f"ids/{field}/"))
        return BoundedState(tables, self.learner.load(unprefixed(arrays, "inner/")))

    def _table(self) -> IdTable:
        return IdTable(self.capacity, self.admit_after, self.ttl)

    def _keys(self, columns: Columns) -> dict[str, list[Any]]:
        """Return the keys of every id, in the shape of their columns."""
        return {field: _each(key_of, columns[field]) for field in self.ids}


def _numbered(tables: dict[str, IdTable], keys: dict[str, list[Any]], columns: Columns) -> Columns:
    return {**columns, **{field: _each(table.row, keys[field]) for field, table in tables.items()}}


def _each(function: Callable[[Any], Any], column: Sequence[Any]) -> list[Any]:
    return [[function(value) for value in entry] if isinstance(entry, list) else function(entry) for entry in column]
