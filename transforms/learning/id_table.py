"""Ids as rows of a bounded table: admitted when seen often enough, dropped when seen too seldom.

What is bounded, whatever comes: the rows, the ids that wait for a row, the list of evicted ids (``capacity`` of
each), the heap that finds the row seen least (twice that) and the size of an id (a digest of 16 bytes).

Rejected: the id that was not seen for longest goes (a popular id that rests for a while loses all it has learned:
five times the loss in AUC on MovieLens' items); a clock whose hand halves counts (twice the loss, as it knows the
order only roughly); a count-min sketch for those that wait (it counts a flood's ids too, so it needs an ageing rule
of its own to stay useful, and its collisions admit ids by chance).
"""

from __future__ import annotations

import heapq
import math
from collections import OrderedDict, deque
from collections.abc import Iterable
from hashlib import blake2b
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from contbatch.transforms.learning.learner import Arrays

DEFAULT_ROW = 0
"""The row of every id that has none of its own."""

HALF_LIFE = 10
"""A sighting counts half after this many times ``capacity`` others."""

_KEY = 16


def key_of(value: object) -> bytes:
    """Return the 16 bytes that stand for an id in a table: a digest of its text."""
    return blake2b(str(value).encode(), digest_size=_KEY).digest()


class Eviction(NamedTuple):
    """An id that lost its row: where it was, and the how manyth eviction of the table this is, from 1."""

    number: int
    key: bytes
    row: int


class _Held(NamedTuple):
    """What the table knows of an id with a row; ``score`` is the log2 of its sightings' worth."""

    row: int
    seen: float
    score: float


class IdTable:
    """Gives ids (as keys, see :func:`key_of`) the rows 1 to ``capacity``.

    An id gets a row when it is seen ``admit_after`` times with no gap above ``ttl``; at the cap, the one that was
    seen least loses its row to it, where older sightings count less (LRFU: Lee, Choi et al., 2001). The n-th
    sighting of an id with a row, of all such, is worth ``2 ** (n / half_life)``, with a half-life of
    :data:`HALF_LIFE` times ``capacity``; what an id's sightings are worth together never shrinks, so that the order
    of two ids changes only when one is seen. Ids without a row do not move n: a flood of them ages nothing.

    A row that is not seen for longer than ``ttl`` goes. The table's clock is the latest time that it was given, and
    a late sighting counts as one of now, so time never runs back.

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
        self._ticks = 0
        self._rows: OrderedDict[bytes, _Held] = OrderedDict()  # the one not seen for longest is first
        self._heap: list[tuple[float, bytes]] = []  # a score of each of them, now or before, and of some that are gone
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
        held = self._rows.get(key)
        return DEFAULT_ROW if held is None else held.row

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
        taken = []
        if self._now < time < math.inf:
            self._now = time
            taken = self._expire()
        held = self._rows.get(key)
        if held is not None:
            self._ticks += 1
            worth = self._ticks / (HALF_LIFE * self._capacity)
            score = worth + math.log2(1.0 + 2.0 ** (held.score - worth))
            self._rows[key] = _Held(held.row, self._now, score)
            self._rows.move_to_end(key)
            return taken
        sightings = self._waiting.pop(key, (0, 0.0))[0] + 1
        if sightings < self._admit_after:
            self._waiting[key] = sightings, self._now
            if len(self._waiting) > self._capacity:
                self._waiting.popitem(last=False)
            return taken
        if len(self._rows) == self._capacity:
            taken.append(self._evict(self._least_seen()))
        self._admit(key, sightings)
        return taken

    def _admit(self, key: bytes, sightings: int) -> None:
        self._ticks += 1
        score = self._ticks / (HALF_LIFE * self._capacity) + math.log2(sightings)
        self._rows[key] = _Held(self._take_row(), self._now, score)
        heapq.heappush(self._heap, (score, key))
        if len(self._heap) > 2 * self._capacity:
            self._build_heap()

    def _build_heap(self) -> None:
        self._heap = [(held.score, key) for key, held in self._rows.items()]
        heapq.heapify(self._heap)

    def _least_seen(self) -> bytes:
        """Return the id of the lowest score, of equals that of the lowest key.

        Scores only rise: so if the first of the heap is as it says, all others are above it.
        """
        while True:
            score, key = self._heap[0]
            held = self._rows.get(key)
            if held is None:
                heapq.heappop(self._heap)
            elif held.score > score:
                heapq.heapreplace(self._heap, (held.score, key))
            else:
                return key

    def _expire(self) -> list[int]:
        oldest = self._now - self._ttl
        while self._waiting and next(iter(self._waiting.values()))[1] < oldest:
            self._waiting.popitem(last=False)
        taken = []
        while self._rows and next(iter(self._rows.values())).seen < oldest:
            taken.append(self._evict(next(iter(self._rows))))
        return taken

    def _evict(self, key: bytes) -> int:
        row = self._rows.pop(key).row
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
            "rows": np.array([held.row for held in self._rows.values()], np.int64),
            "seen": np.array([held.seen for held in self._rows.values()], np.float64),
            "scores": np.array([held.score for held in self._rows.values()], np.float64),
            "waiting_keys": _as_bytes(self._waiting),
            "waiting_sightings": np.array([count for count, _ in self._waiting.values()], np.int64),
            "waiting_seen": np.array([time for _, time in self._waiting.values()], np.float64),
            "evicted_keys": _as_bytes(key for key, _ in self._evicted),
            "evicted_rows": np.array([row for _, row in self._evicted], np.int64),
            "evictions": np.array([self._evictions], np.int64),
            "ticks": np.array([self._ticks], np.int64),
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
        held = map(_Held, rows, arrays["seen"].tolist(), arrays["scores"].tolist())
        self._rows.update(zip(_as_keys(arrays["keys"]), held, strict=True))
        self._build_heap()
        waiting = zip(arrays["waiting_sightings"].tolist(), arrays["waiting_seen"].tolist(), strict=True)
        self._waiting.update(zip(_as_keys(arrays["waiting_keys"]), waiting, strict=True))
        self._evicted.extend(zip(_as_keys(arrays["evicted_keys"]), arrays["evicted_rows"].tolist(), strict=True))
        self._evictions, self._now = int(arrays["evictions"][0]), float(arrays["now"][0])
        self._ticks = int(arrays["ticks"][0])
        self._used = max(rows, default=0)
        self._free = sorted(set(range(1, self._used + 1)) - set(rows))


def _as_bytes(keys: Iterable[bytes]) -> NDArray[np.uint8]:
    return np.frombuffer(b"".join(keys), np.uint8).reshape(-1, _KEY)


def _as_keys(array: NDArray[Any]) -> list[bytes]:
    content = array.tobytes()
    return [content[start : start + _KEY] for start in range(0, len(content), _KEY)]
