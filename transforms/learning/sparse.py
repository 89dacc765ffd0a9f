"""An online logistic model over hashed ids: linear weights plus dot products of factors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from contbatch.transforms.learning.chunks import Chunk, cut, sigmoid
from contbatch.transforms.learning.coordinate import Ftrl, adagrad
from contbatch.transforms.learning.hashing import BIAS, Floats, Ids, Tokens, encode, hash_values
from contbatch.transforms.learning.initial import InitialFactors
from contbatch.transforms.learning.learner import Arrays, Columns

_MOST_CHUNK = 256  # a chunk's matrix grows with its square
_TOGETHER = 1024  # rows encoded and sorted in one pass; their matrices stay in the cache


class SparseState(NamedTuple):
    """What has been learned.

    Attributes:
        weights: per slot a linear weight (column 0) and a factor (the others), shape ``(2**bits, 1 + factors)``.
        squares: the sum of squared gradients of each, with its initial value.
        z: FTRL's ``z`` per slot; empty without FTRL.
        touched: which slots may differ from their initial values.
        refused: rows not learned because their gradient was not finite, shape ().
    """

    weights: Floats
    squares: Floats
    z: Floats
    touched: NDArray[np.bool_]
    refused: NDArray[np.int64]


@dataclass(frozen=True)
class SparseLearner:
    """Logistic regression on hashed ids: ``sigmoid(bias + sum of weights + sum of dot products)``.

    Every field holds a string, a number or a list of them per row; each value is hashed with its field's name
    into one of ``2**bits`` slots, which has a weight and a vector of factors. An interaction adds the dot product
    of two sides, each the sum of its fields' vectors (the mean, for a list): with
    ``((("user",), ("item", "genres")),)`` a user meets an item that is known by its id and its genres, so that a
    new item starts from its genres (a hybrid factorisation as in Kula, 2015; on MovieLens 100k it is worth
    0.002 to 0.003 AUC over ids alone).

    An update is AdaGrad per coordinate (Duchi, Hazan and Singer, 2011) on the *sum* of a chunk's gradients, with
    a learning rate that does not depend on how many rows came together. A micro-batch is learned in chunks of at
    most ``chunk`` rows, so that a large one does not act as one coarse step. With ``ftrl`` the bias and the linear
    weights follow FTRL-Proximal instead; factors stay with AdaGrad, since FTRL would start them at 0, where the
    gradient of a dot product is 0 and nothing would ever move.

    A chunk whose gradient is not finite is not learned; its rows are counted in :attr:`SparseState.refused`.

    Attributes:
        fields: names of the columns read.
        interactions: pairs of sides, each a tuple of field names.
        factors: length of a factor.
        bits: log2 of the number of slots, 4 to 28; memory is ``2**bits * (factors + 1) * 16`` bytes, and 1
            to 9 a slot.
        rate: learning rate of the linear weights; not used with ``ftrl``.
        factor_rate: learning rate of the factors.
        l2: weight of the squared penalty, applied to the weights that an example uses (with ``ftrl``, to its factors).
        init_scale: standard deviation of the initial factors.
        accumulator: initial sum of squared gradients.
        chunk: most rows in one update, 1 to 256.
        seed: decides the initial factors.
        ftrl: step sizes of the linear weights, or ``None`` for AdaGrad.

    Raises:
        ValueError: an attribute is outside its range, or an interaction names a field that is not read.
    """

    fields: tuple[str, ...]
    interactions: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...] = ()
    factors: int = 8
    bits: int = 18
    rate: float = 0.3
    factor_rate: float = 0.2
    l2: float = 1e-3
    init_scale: float = 0.03
    accumulator: float = 0.1
    chunk: int = 8
    seed: int = 0
    ftrl: Ftrl | None = None

    def __post_init__(self) -> None:
        if not self.fields:
            raise ValueError("fields is empty; name at least one column")
        for field in (field for pair in self.interactions for side in pair for field in side):
            if field not in self.fields:
                raise ValueError(f"interactions names {field!r}, which is not one of fields {self.fields}")
        if not 4 <= self.bits <= 28:
            raise ValueError(f"bits is {self.bits}; give 4 to 28")
        if self.factors < 1:
            raise ValueError(f"factors is {self.factors}; give 1 or more")
        if not 1 <= self.chunk <= _MOST_CHUNK:
            raise ValueError(f"chunk is {self.chunk}; give 1 to {_MOST_CHUNK} (8 to 32 learn best for their speed)")
        for name in ("rate", "factor_rate", "accumulator"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)}; give a number above 0")
        for name in ("l2", "init_scale", "seed"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} is {getattr(self, name)}; give 0 or more")

    def init(self) -> SparseState:
        """Return zero linear weights and small random factors."""
        slots = 1 << self.bits
        weights = np.zeros((slots, 1 + self.factors))
        weights[:, 1:] = self._initial.all() * self.init_scale
        return SparseState(
            weights,
            np.tile(self._initial_squares, (slots, 1)),
            np.zeros(slots if self.ftrl else 0),
            np.zeros(slots, bool),
            np.zeros((), np.int64),
        )

    def predict(self, state: SparseState, columns: Columns) -> Floats:
        """Return the probability of a positive label per row, shape (n,).

        A row's score does not depend on the rows beside it, not even in its last bit.
        """
        tokens = encode(columns, self.fields, self.bits)
        used = state.weights[tokens.slots]
        logits = np.bincount(tokens.rows, used[:, 0], tokens.size).astype(float, copy=False)  # int for no rows
        for left, right in self.interactions:
            logits += (_vectors(used, tokens, left) * _vectors(used, tokens, right)).sum(axis=1)
        return sigmoid(logits)

    def step(self, state: SparseState, columns: Columns, labels: Floats, weights: Floats) -> SparseState:
        """Learn the rows in chunks, in order; changes ``state`` in place and returns it."""
        with np.errstate(all="ignore"):  # _update refuses what is not finite
            for tokens, chunks in self._cut(columns, labels, weights):
                state.touched[tokens.slots] = True
                for chunk in chunks:
                    self._learn(state, chunk)
        return state

    def gradient(self, state: SparseState, columns: Columns, labels: Floats, weights: Floats) -> Arrays:
        """Return the gradient of n rows as one update, however many chunks they are; leaves ``state`` as it is.

        :meth:`apply` on the same state is :meth:`step` to the bit, if the rows are one chunk.

        Returns:
            ``slots``, the k that the rows use, ascending; ``gradient``, the sum for each, shape (k, 1 + factors);
            ``rows``, how many, shape (1,).
        """
        with np.errstate(all="ignore"):  # apply refuses what is not finite
            parts = [
                (chunk.slots, self._gradient(state.weights.take(chunk.slots, 0), chunk))
                for _, chunks in self._cut(columns, labels, weights)
                for chunk in chunks
            ]
            slots = np.unique(np.concatenate([np.empty(0, np.int64), *(part for part, _ in parts)]))
            total = np.zeros((len(slots), 1 + self.factors))
            for part, gradient in parts:
                total[slots.searchsorted(part)] += gradient
        return {"slots": slots, "gradient": total, "rows": np.array([len(labels)])}

    def apply(self, state: SparseState, gradient: Arrays) -> SparseState:
        """Move each slot of a gradient once; changes ``state`` in place and returns it.

        One that is not finite is not learned, and its rows are counted in :attr:`SparseState.refused`.
        """
        slots = gradient["slots"]
        state.touched[slots] = True
        with np.errstate(all="ignore"):  # _update refuses what is not finite
            used = state.weights.take(slots, 0)
            self._update(state, slots, used, gradient["gradient"].copy(), int(gradient["rows"][0]))
        return state

    def export(self, state: SparseState) -> Arrays:
        """Return the slots that learning has changed, with their accumulators; the rest follows from the seed."""
        slots = np.flatnonzero(state.touched)
        arrays: Arrays = {"slots": slots, "weights": state.weights[slots], "squares": state.squares[slots]}
        if self.ftrl:
            arrays["z"] = state.z[slots]
        return arrays | {"refused": state.refused.copy()}

    def load(self, arrays: Arrays) -> SparseState:
        """Return the exported state."""
        state = self.init()
        slots, weights = arrays["slots"], arrays["weights"]
        if weights.shape[1:] != (1 + self.factors,) or (len(slots) and slots[-1] >= len(state.weights)):
            raise ValueError(
                f"weights of shape {weights.shape} do not fit bits={self.bits}, factors={self.factors}; load them "
                "with the configuration that they were exported with"
            )
        if ("z" in arrays) != (self.ftrl is not None):
            raise ValueError(
                f"weights {'with' if 'z' in arrays else 'without'} FTRL's z do not fit ftrl={self.ftrl}; load them "
                "with the configuration that they were exported with"
            )
        state.weights[slots] = weights
        state.squares[slots] = arrays["squares"]
        if self.ftrl:
            state.z[slots] = arrays["z"]
        state.touched[slots] = True
        state.refused[...] = arrays["refused"]
        return state

    def forget(self, state: SparseState, field: str, values: Sequence[Any]) -> None:
        """Put the slots of these values of a field back to what :meth:`init` gives; changes ``state`` in place.

        A value that shares one of these slots is forgotten with them; the bias is not, even if a value shares it.

        Raises:
            ValueError: ``field`` is not read.
        """
        if field not in self.fields:
            raise ValueError(f"field {field!r} is not one of fields {self.fields}")
        slots = np.array(sorted(set(hash_values(field, values, self.bits)) - {BIAS}), np.int64)
        state.weights[slots, 0] = 0.0
        state.weights[slots, 1:] = self._initial.of(slots) * self.init_scale
        state.squares[slots] = self._initial_squares
        if self.ftrl:
            state.z[slots] = 0.0
        state.touched[slots] = False

    @cached_property
    def _initial(self) -> InitialFactors:
        return InitialFactors(self.seed, 1 << self.bits, self.factors)

    @cached_property
    def _initial_squares(self) -> Floats:
        return self._columns(0.0 if self.ftrl else self.accumulator, self.accumulator)[0]

    @cached_property
    def _penalty(self) -> Floats:
        return self._columns(0.0 if self.ftrl else self.l2, self.l2)

    @cached_property
    def _rates(self) -> Floats:
        return self._columns(self.rate, self.factor_rate)

    @cached_property
    def _sides(self) -> list[tuple[str, ...]]:
        return [side for pair in self.interactions for side in pair]

    def _columns(self, linear: float, factor: float) -> Floats:
        """Return a row for the linear weight and the factor, shape ``(1, 1 + factors)``."""
        return np.array([[linear, *[factor] * self.factors]])

    def _cut(self, columns: Columns, labels: Floats, weights: Floats) -> Iterator[tuple[Tokens, Iterator[Chunk]]]:
        """Yield the rows in parts, each encoded and in chunks."""
        together = max(self.chunk, _TOGETHER - _TOGETHER % self.chunk)
        for start in range(0, len(labels), together):
            part = slice(start, start + together)
            tokens = encode({field: columns[field][part] for field in self.fields}, self.fields, self.bits)
            yield tokens, cut(tokens, labels[part], weights[part], self._sides, self.chunk, self.bits)

    def _learn(self, state: SparseState, chunk: Chunk) -> None:
        """Update each slot of a chunk once. A call of its own: its arrays are freed before those of the next."""
        used = state.weights.take(chunk.slots, 0)
        self._update(state, chunk.slots, used, self._gradient(used, chunk), len(chunk.labels))

    def _gradient(self, used: Floats, chunk: Chunk) -> Floats:
        """Return the sum of a chunk's gradients, shape (k, 1 + factors); ``used`` is what its slots hold."""
        gradient = chunk.gradient(used)
        gradient += used * (chunk.mass * self._penalty)
        return gradient

    def _update(self, state: SparseState, slots: Ids, used: Floats, gradient: Floats, rows: int) -> None:
        """Move slots once, from ``used``, what they hold now; uses ``used`` and ``gradient`` up."""
        before = state.squares.take(slots, 0)
        squares = gradient * gradient
        squares += before
        if not np.isfinite(squares).all():
            state.refused[...] += rows
            return
        if self.ftrl:
            state.z[slots] = z = self.ftrl.advance(
                state.z[slots], used[:, 0], gradient[:, 0], before[:, 0], squares[:, 0]
            )
        adagrad(used, squares, gradient, self._rates)
        if self.ftrl:
            used[:, 0] = self.ftrl.weight(z, squares[:, 0])
        state.weights[slots] = used
        state.squares[slots] = squares


def _vectors(used: Floats, tokens: Tokens, side: Sequence[str]) -> Floats:
    """Return the sum of a side's factors per row, the mean for a list, shape (n, factors)."""
    total = np.zeros((tokens.size, used.shape[1] - 1))
    for at, shares in (tokens.spans[field] for field in side):
        if shares is None:
            total += used[at, 1:]
        else:
            np.add.at(total, tokens.rows[at], used[at, 1:] * shares[:, None])
    return total
