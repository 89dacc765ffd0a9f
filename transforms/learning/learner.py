"""What a learner is: pure steps over plain arrays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

Columns = Mapping[str, Sequence[Any]]
"""Decoded records, one sequence per field, all of the same length."""

Arrays = dict[str, NDArray[Any]]
"""Named arrays: the form in which weights are stored, hashed and restored."""

State = TypeVar("State")

_State_contra = TypeVar("_State_contra", contravariant=True)


def select(columns: Columns, rows: Sequence[int]) -> Columns:
    """Return some rows of all columns, in the order given."""
    return {name: [column[row] for row in rows] for name, column in columns.items()}


def prefixed(arrays: Arrays, prefix: str) -> Arrays:
    """Return the arrays with a prefix before each name, to lie beside others."""
    return {f"{prefix}{name}": array for name, array in arrays.items()}


def unprefixed(arrays: Arrays, prefix: str) -> Arrays:
    """Return the arrays whose names begin with a prefix, without it."""
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}


class Preparing(Protocol[_State_contra]):
    """The part of a learner whose features depend on its state, such as running statistics.

    They are computed when a request is served, kept with it, and learned as they were served, however the state has
    changed since: they are columns beside those of the request. Where ``predict`` or ``step`` finds them missing, it
    computes them from the state it is given.
    """

    @property
    def prepared(self) -> Sequence[str]:
        """Names of the columns that :meth:`prepare` adds."""

    def prepare(self, state: _State_contra, columns: Columns) -> Columns:
        """Return the columns that the state adds to n requests: one JSON value per row in each."""


def needs_settled(learner: object) -> bool:
    """Return whether a learner, or one inside it, asks for the requests that never got a label."""
    while learner is not None:
        if getattr(learner, "needs_settled", False):
            return True
        learner = getattr(learner, "learner", None)
    return False


def prepared_fields(learner: object) -> tuple[str, ...]:
    """Return the columns that a learner adds at serving; none for one that is not :class:`Preparing`."""
    return tuple(getattr(learner, "prepared", ()))


def prepare(learner: Any, state: Any, columns: Columns) -> Columns:
    """Return the columns with those that the learner adds at serving, unless they are there already."""
    if all(name in columns for name in prepared_fields(learner)):
        return columns
    return {**columns, **learner.prepare(state, columns)}


class Around:
    """A wrapper whose state has ``inner``, the inner learner's: it passes on what that one prepares."""

    learner: Any

    @property
    def prepared(self) -> tuple[str, ...]:
        """What the inner learner prepares."""
        return prepared_fields(self.learner)

    def prepare(self, state: Any, columns: Columns) -> Columns:
        """Return what the inner learner prepares."""
        ready = prepare(self.learner, state.inner, columns)
        return {name: ready[name] for name in self.prepared}


class Learner(Protocol[State]):
    """A model that learns from a stream of micro-batches.

    A learner is configuration only; everything that changes is in its ``State``, which the caller owns. The
    same state, columns, labels and weights always give the same result, whatever the size of a batch before.
    """

    @property
    def fields(self) -> Sequence[str]:
        """Names of the columns that the learner reads."""

    def init(self) -> State:
        """Return the state before the first example."""

    def predict(self, state: State, columns: Columns) -> NDArray[np.float64]:
        """Return one score per row, shape (n,). Leaves ``state`` as it is."""

    def step(
        self,
        state: State,
        columns: Columns,
        labels: NDArray[np.float64],
        weights: NDArray[np.float64],
    ) -> State:
        """Learn n rows with labels and importance weights of shape (n,); the given state is used up."""

    def export(self, state: State) -> Arrays:
        """Return all that :meth:`load` needs to go on exactly from here."""

    def load(self, arrays: Arrays) -> State:
        """Return the state that :meth:`export` described.

        Raises:
            ValueError: the arrays are of another configuration.
        """
