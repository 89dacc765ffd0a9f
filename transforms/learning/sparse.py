"""An online logistic model over hashed ids: linear weights plus dot products of factors."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from contbatch.transforms.learning.learner import Arrays, Columns

Floats = NDArray[np.float64]
Ids = NDArray[np.int64]

_BIAS = 0


class Table(NamedTuple):
    """Weights with the AdaGrad sum of squared gradients of each, both of shape (slots, ...)."""

    weights: Floats
    squares: Floats

    def copy(self) -> Table:
        """Return a table that shares nothing with this one."""
        return Table(self.weights.copy(), self.squares.copy())


class SparseState(NamedTuple):
    """Linear weights, shape (2**bits,), and factors, shape (2**bits, factors)."""

    linear: Table
    factor: Table


class _Encoded(NamedTuple):
    """Encoded rows: slot ``slots[j]`` belongs to row ``rows[j]``; each pair has one slot per row and side."""

    slots: Ids
    rows: Ids
    pairs: list[tuple[Ids, Ids]]


@dataclass(frozen=True)
class SparseLearner:
    """Logistic regression on hashed ids, with ``sigmoid(bias + sum of weights + sum of factor dot products)``.

    Every field holds a string, a number or a list of them per row; each value is hashed with its field's name
    into one of ``2**bits`` slots. For each pair of single-valued fields the dot product of their factors is
    added: with ``pairs=(("user", "item"),)`` that is biased matrix factorisation.

    An update is AdaGrad per coordinate (Duchi, Hazan and Singer, 2011) on the *sum* of a chunk's gradients, with
    a learning rate that does not depend on how many rows came together. A micro-batch is learned in chunks of at
    most ``chunk`` rows, so that a large one does not act as one coarse step.

    Attributes:
        fields: names of the columns read.
        pairs: pairs of fields whose factors interact.
        factors: length of a factor.
        bits: log2 of the number of slots, 4 to 28; memory is ``2**bits * (factors + 1) * 16`` bytes.
        rate: learning rate of the linear weights.
        factor_rate: learning rate of the factors.
        l2: weight of the squared penalty, applied to the weights that an example uses.
        init_scale: standard deviation of the initial factors.
        accumulator: initial sum of squared gradients.
        chunk: most rows in one update.
        seed: decides the initial factors.

    Raises:
        ValueError: an attribute is outside its range, or a pair names a field that is not read.
    """

    fields: tuple[str, ...]
    pairs: tuple[tuple[str, str], ...] = ()
    factors: int = 8
    bits: int = 18
    rate: float = 0.4
    factor_rate: float = 0.2
    l2: float = 1e-3
    init_scale: float = 0.03
    accumulator: float = 0.1
    chunk: int = 8
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.fields:
            raise ValueError("fields is empty; name at least one column")
        for field in (side for pair in self.pairs for side in pair):
            if field not in self.fields:
                raise ValueError(f"pairs names {field!r}, which is not one of fields {self.fields}")
        if not 4 <= self.bits <= 28:
            raise ValueError(f"bits is {self.bits}; give 4 to 28")
        for name in ("factors", "chunk"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; give 1 or more")
        for name in ("rate", "factor_rate", "accumulator"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)}; give a number above 0")
        for name in ("l2", "init_scale"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} is {getattr(self, name)}; give 0 or more")

    def init(self) -> SparseState:
        """Return zero linear weights and small random factors."""
        slots = 1 << self.bits
        factors = np.random.default_rng(self.seed).standard_normal((slots, self.factors)) * self.init_scale
        return SparseState(
            Table(np.zeros(slots), np.full(slots, self.accumulator)),
            Table(factors, np.full((slots, self.factors), self.accumulator)),
        )

    def predict(self, state: SparseState, columns: Columns) -> Floats:
        """Return the probability of a positive label per row, shape (n,)."""
        return _probability(state, self._encode(columns))

    def step(self, state: SparseState, columns: Columns, labels: Floats, weights: Floats) -> SparseState:
        """Learn the rows in chunks, in order; changes ``state`` in place and returns it."""
        for start in range(0, len(labels), self.chunk):
            part = slice(start, start + self.chunk)
            encoded = self._encode({field: columns[field][part] for field in self.fields})
            self._update(state, encoded, labels[part], weights[part])
        return state

    def copy(self, state: SparseState) -> SparseState:
        """Return an independent copy."""
        return SparseState(state.linear.copy(), state.factor.copy())

    def export(self, state: SparseState) -> Arrays:
        """Return the slots that learning has changed, with their accumulators; the rest follows from the seed."""
        arrays: Arrays = {}
        for name, table in state._asdict().items():
            moved = (table.squares != self.accumulator).reshape(len(table.squares), -1).any(axis=1)
            slots = np.flatnonzero(moved)
            arrays[f"{name}/slots"] = slots
            arrays[f"{name}/weights"] = table.weights[slots]
            arrays[f"{name}/squares"] = table.squares[slots]
        return arrays

    def load(self, arrays: Arrays) -> SparseState:
        """Return the exported state."""
        state = self.init()
        for name, table in state._asdict().items():
            slots, weights = arrays[f"{name}/slots"], arrays[f"{name}/weights"]
            if weights.shape[1:] != table.weights.shape[1:] or (len(slots) and slots[-1] >= len(table.weights)):
                raise ValueError(
                    f"{name} weights of shape {weights.shape} do not fit bits={self.bits}, factors={self.factors}; "
                    "load them with the configuration that they were exported with"
                )
            table.weights[slots] = weights
            table.squares[slots] = arrays[f"{name}/squares"]
        return state

    def _encode(self, columns: Columns) -> _Encoded:
        mask = (1 << self.bits) - 1
        count = len(columns[self.fields[0]])
        slots, rows = [_BIAS] * count, list(range(count))
        singles: dict[str, Ids] = {}
        for field in self.fields:
            salt, column = crc32(field.encode()), columns[field]
            if count and isinstance(column[0], list):
                slots += [_slot(value, salt, mask) for values in column for value in values]
                rows += [row for row, values in enumerate(column) for _ in values]
            else:
                found = [_slot(value, salt, mask) for value in column]
                slots += found
                rows += range(count)
                singles[field] = np.array(found)
        pairs = [(singles[left], singles[right]) for left, right in self.pairs]
        return _Encoded(np.array(slots), np.array(rows), pairs)

    def _update(self, state: SparseState, encoded: _Encoded, labels: Floats, weights: Floats) -> None:
        linear, factor = state
        slots, rows, pairs = encoded
        error = (_probability(state, encoded) - labels) * weights
        gradient = error[rows] + self.l2 * linear.weights[slots] * weights[rows]
        _adagrad(linear, slots, gradient, self.rate)
        if not pairs:
            return
        touched, gradients = [], []
        error, scale = error[:, None], self.l2 * weights[:, None]
        for left, right in pairs:
            of_left, of_right = factor.weights[left], factor.weights[right]
            touched += [left, right]
            gradients += [error * of_right + scale * of_left, error * of_left + scale * of_right]
        _adagrad(factor, np.concatenate(touched), np.concatenate(gradients), self.factor_rate)


@lru_cache(maxsize=1 << 16, typed=True)
def _slot(value: object, salt: int, mask: int) -> int:
    return crc32(str(value).encode(), salt) & mask


def _probability(state: SparseState, encoded: _Encoded) -> Floats:
    slots, rows, pairs = encoded
    logits = np.bincount(rows, state.linear.weights[slots])
    for left, right in pairs:
        logits += np.einsum("ij,ij->i", state.factor.weights[left], state.factor.weights[right])
    return 0.5 + 0.5 * np.tanh(0.5 * logits)


def _adagrad(table: Table, slots: Ids, gradients: Floats, rate: float) -> None:
    """Update each slot once, by the sum of its gradients."""
    weights, squares = table
    unique, inverse = np.unique(slots, return_inverse=True)
    gradient = np.zeros((len(unique), *gradients.shape[1:]))
    np.add.at(gradient, inverse, gradients)
    total = squares[unique] + gradient * gradient
    squares[unique] = total
    weights[unique] -= rate * gradient / np.sqrt(total)
