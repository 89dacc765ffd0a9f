"""A learner over a bounded number of ids: it gets their rows in a table, and forgets those that change hands."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from contbatch.transforms.learning.id_table import IdTable, key_of
from contbatch.transforms.learning.learner import (
    Arrays,
    Columns,
    Learner,
    prefixed,
    prepare,
    prepared_fields,
    unprefixed,
)
from contbatch.transforms.learning.statistics import floats

Floats = NDArray[np.float64]

State = TypeVar("State")


class Forgetful(Learner[State], Protocol[State]):
    """A learner that can drop what it has learned about some values of a column."""

    def forget(self, state: State, field: str, values: Sequence[int]) -> None:
        """Put what ``state`` holds for these values of the column back to how it was before the first example."""


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

    A column holds an id per row, or a list of ids. Two ids with the same text are one. Columns with limits of their
    own get a wrapper each, one around the other.

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
        if isinstance(self.learner, BoundedIds) and (twice := set(self.ids) & set(self.learner.ids)):
            raise ValueError(f"ids names {sorted(twice)}, which the inner wrapper has; name each in one of the two")

    @property
    def fields(self) -> tuple[str, ...]:
        """The inner learner's columns and the event time."""
        return tuple(dict.fromkeys((*self.learner.fields, self.time_field)))

    def init(self) -> BoundedState[State]:
        """Return empty tables and the inner learner's first state."""
        return BoundedState({field: self._table() for field in self.ids}, self.learner.init())

    @property
    def prepared(self) -> tuple[str, ...]:
        """What the inner learner prepares; rows are not: an example is learned under the row that its id has then."""
        return prepared_fields(self.learner)

    def prepare(self, state: BoundedState[State], columns: Columns) -> Columns:
        """Return what the inner learner prepares for the rows' numbers."""
        inner = prepare(self.learner, state.inner, _numbered(state.tables, self._keys(columns), columns))
        return {name: inner[name] for name in self.prepared}

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

    def forget(self, state: BoundedState[State], field: str, values: Sequence[int]) -> None:
        """Let the inner learner forget values of a column of a wrapper around this one."""
        self.learner.forget(state.inner, field, values)

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
