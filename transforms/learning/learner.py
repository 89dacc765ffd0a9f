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


def prefixed(arrays: Arrays, prefix: str) -> Arrays:
    """Return the arrays with a prefix before each name, to lie beside others."""
    return {f"{prefix}{name}": array for name, array in arrays.items()}


def unprefixed(arrays: Arrays, prefix: str) -> Arrays:
    """Return the arrays whose names begin with a prefix, without it."""
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}


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
