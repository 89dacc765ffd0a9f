"""Learning past rows again beside each new one: a bounded buffer that is part of the state.

Replayed rows are *additional*. A new row is learned at once, in the step that brings it; a buffer that holds rows back
to mix them would make every label late, which costs more than the mixing gains.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from contbatch.transforms.learning.learner import Around, Arrays, Columns, Learner, prefixed, prepare, unprefixed
from contbatch.transforms.learning.observed import FIELD, Observed

Floats = NDArray[np.float64]

State = TypeVar("State")


class Row(NamedTuple):
    """A row as it was learned.

    Attributes:
        columns: its fields as JSON.
        label: its label.
        weight: its importance weight.
    """

    columns: bytes
    label: float
    weight: float


class Batch(NamedTuple):
    """Rows to learn: columns, and labels and weights of shape (n,)."""

    columns: dict[str, list[Any]]
    labels: Floats
    weights: Floats


class Rows:
    """What a buffer holds.

    Attributes:
        kept: the rows, in any order.
        places: where in ``kept`` the row of each slot of the buffer is.
        turns: rows that came to each bucket of keys; empty for a reservoir.
        seen: rows added so far.
        drawn: rows drawn so far.
    """

    def __init__(self, buckets: int) -> None:
        self.kept: list[Row] = []
        self.places: dict[int, int] = {}
        self.turns = np.zeros(buckets, np.int64)
        self.seen = 0
        self.drawn = 0

    def put(self, slot: int, row: Row) -> None:
        """Keep a row in a slot, in place of the one before."""
        place = self.places.setdefault(slot, len(self.kept))
        if place == len(self.kept):
            self.kept.append(row)
        else:
            self.kept[place] = row


@dataclass(frozen=True)
class ReplayBuffer:
    """How rows are kept and drawn; what changes is in :class:`Rows`.

    Without ``key_field`` the buffer is a reservoir: a uniform sample of all rows so far (Algorithm R, Vitter 1985).
    With it, the newest ``per_key`` rows of each key are kept, so that a busy user does not push out the others. Keys
    are hashed into ``capacity // per_key`` buckets, and those that share one share its rows.

    Which rows are kept and drawn depends on the seed and on how many there were before, so a replay of the stream
    does the same.

    Attributes:
        capacity: most rows kept.
        key_field: the column of the keys, or ``None`` for a reservoir.
        per_key: most rows of a key.
        seed: decides what is kept and drawn.

    Raises:
        ValueError: an attribute is outside its range.
    """

    capacity: int = 10_000
    key_field: str | None = None
    per_key: int = 10
    seed: int = 0

    def __post_init__(self) -> None:
        if self.per_key < 1:
            raise ValueError(f"per_key is {self.per_key} rows; give 1 or more")
        least = 1 if self.key_field is None else self.per_key
        if self.capacity < least:
            raise ValueError(f"capacity is {self.capacity} rows; give {least} or more")

    def init(self) -> Rows:
        """Return no rows."""
        return Rows(self._buckets)

    def add(self, rows: Rows, columns: Columns, fields: Iterable[str], labels: Floats, weights: Floats) -> None:
        """Keep some of n rows, in their order; changes ``rows`` in place. What is only assumed is no row yet.

        Raises:
            TypeError: a value cannot be written as JSON.
        """
        names = tuple(fields)
        values = zip(*(columns[name] for name in names), strict=True)
        observed = columns.get(FIELD, [Observed.LABEL] * len(labels))
        for value, label, weight, standing in zip(values, labels.tolist(), weights.tolist(), observed, strict=True):
            if standing == Observed.ASSUMED:
                continue
            named = dict(zip(names, value, strict=True))
            rows.seen += 1
            slot = self._slot(rows, named)
            if slot is not None:
                rows.put(slot, Row(json.dumps(named, default=_plain).encode(), label, weight))

    def draw(self, rows: Rows, count: int) -> Batch:
        """Return ``count`` rows, each drawn from all that are kept; none of an empty buffer."""
        kept = rows.kept
        drawn = [kept[self._below(len(kept), "draw", rows.drawn + number)] for number in range(count if kept else 0)]
        rows.drawn += len(drawn)
        decoded = [json.loads(row.columns) for row in drawn]
        columns = {name: [row[name] for row in decoded] for name in (decoded[0] if decoded else ())}
        return Batch(columns, np.array([row.label for row in drawn]), np.array([row.weight for row in drawn]))

    def export(self, rows: Rows) -> Arrays:
        """Return the rows, as lines of JSON in an array of bytes, and the counts."""
        return {
            "rows": np.frombuffer(b"\n".join(row.columns for row in rows.kept), np.uint8),
            "slots": np.array(list(rows.places), np.int64),  # a slot's first row is appended: the order of the rows
            "labels": np.array([row.label for row in rows.kept], np.float64),
            "weights": np.array([row.weight for row in rows.kept], np.float64),
            "turns": rows.turns.copy(),
            "counts": np.array([rows.seen, rows.drawn]),
        }

    def load(self, arrays: Arrays) -> Rows:
        """Return the exported rows.

        Raises:
            ValueError: they are of a buffer of another size or kind.
        """
        rows, slots = self.init(), arrays["slots"].tolist()
        if len(arrays["turns"]) != self._buckets or max(slots, default=0) >= self.capacity:
            raise ValueError(
                f"{len(slots)} rows in {len(arrays['turns'])} buckets do not fit {self}; load them with the "
                "configuration that they were exported with"
            )
        lines = arrays["rows"].tobytes().split(b"\n") if slots else []
        rows.kept = list(map(Row, lines, arrays["labels"].tolist(), arrays["weights"].tolist()))
        rows.places = {slot: place for place, slot in enumerate(slots)}
        rows.turns[:] = arrays["turns"]
        rows.seen, rows.drawn = arrays["counts"].tolist()
        return rows

    @property
    def _buckets(self) -> int:
        return 0 if self.key_field is None else self.capacity // self.per_key

    def _slot(self, rows: Rows, named: dict[str, Any]) -> int | None:
        """Return where the row just seen goes, or ``None``."""
        if self.key_field is not None:
            bucket = self._below(self._buckets, "key", named[self.key_field])
            turn = int(rows.turns[bucket])
            rows.turns[bucket] += 1
            return bucket * self.per_key + turn % self.per_key
        if rows.seen <= self.capacity:
            return rows.seen - 1
        slot = self._below(rows.seen, "keep", rows.seen)
        return slot if slot < self.capacity else None

    def _below(self, end: int, purpose: str, what: object) -> int:
        """Return a number from 0 to below ``end`` that depends on the seed, the purpose and the text alone."""
        digest = blake2b(f"{purpose} {what}".encode(), digest_size=8, key=str(self.seed).encode()).digest()
        return int.from_bytes(digest, "big") * end >> 64


class ReplayedState(NamedTuple, Generic[State]):
    """The buffer's rows and the inner learner's state."""

    rows: Rows
    inner: State


@dataclass(frozen=True)
class Replayed(Around, Generic[State]):
    """Lets a learner learn past rows again after each micro-batch.

    :meth:`step` learns the new rows as they are, then ``share`` rows of the buffer for each of them, drawn from those
    of earlier steps, and only then adds the new rows to the buffer.

    Attributes:
        learner: the inner learner.
        buffer: what is kept.
        share: rows replayed for each new one; 0.5 is one for every two.
        weight: by which the importance weight of a replayed row is multiplied.

    Raises:
        ValueError: an attribute is outside its range.
    """

    learner: Learner[State]
    buffer: ReplayBuffer = ReplayBuffer()
    share: float = 1.0
    weight: float = 1.0

    def __post_init__(self) -> None:
        for name in ("share", "weight"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} is {getattr(self, name)}; give a finite number above 0")

    @property
    def fields(self) -> tuple[str, ...]:
        """The inner learner's columns and the key's."""
        key = () if self.buffer.key_field is None else (self.buffer.key_field,)
        return tuple(dict.fromkeys((*self.learner.fields, *key)))

    def init(self) -> ReplayedState[State]:
        """Return an empty buffer and the inner learner's first state."""
        return ReplayedState(self.buffer.init(), self.learner.init())

    def predict(self, state: ReplayedState[State], columns: Columns) -> Floats:
        """Return the inner learner's scores, shape (n,)."""
        return self.learner.predict(state.inner, columns)

    def step(
        self, state: ReplayedState[State], columns: Columns, labels: Floats, weights: Floats
    ) -> ReplayedState[State]:
        """Learn the rows, then rows of the buffer."""
        rows, columns = state.rows, prepare(self, state, columns)
        inner = self.learner.step(state.inner, columns, labels, weights)
        count = due(self.share, rows.seen, len(labels))
        batch = self.buffer.draw(rows, count)
        if len(batch.labels):
            inner = self.learner.step(inner, batch.columns, batch.labels, batch.weights * self.weight)
        self.buffer.add(rows, columns, (*self.fields, *self.prepared), labels, weights)
        return ReplayedState(rows, inner)

    def export(self, state: ReplayedState[State]) -> Arrays:
        """Return the buffer, under ``replay/``, and the inner learner's arrays, under ``inner/``."""
        return prefixed(self.buffer.export(state.rows), "replay/") | prefixed(
            self.learner.export(state.inner), "inner/"
        )

    def load(self, arrays: Arrays) -> ReplayedState[State]:
        """Return the exported state."""
        rows = self.buffer.load(unprefixed(arrays, "replay/"))
        return ReplayedState(rows, self.learner.load(unprefixed(arrays, "inner/")))


def due(share: float, before: int, rows: int) -> int:
    """Return how many rows are to be replayed with rows number ``before`` + 1 to ``before + rows``."""
    return math.floor(share * (before + rows)) - math.floor(share * before)


def _plain(value: Any) -> Any:
    """Return a numpy scalar or array as Python's own."""
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    raise TypeError(f"a replay buffer keeps rows as JSON, which has no {type(value).__name__}; give text or numbers")
