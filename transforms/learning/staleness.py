"""Asynchronous data-parallel training with bounded staleness: the one who applies gradients, and what it needs.

Workers compute gradients on weights they have read at some version and never wait; an :class:`Applier` owns the
weights and takes the gradients in the order of arrival. The staleness of a gradient is the number of versions that
were made since its weights were read.

Stale Synchronous Parallel (Ho et al., 2013) bounds staleness by holding up the fastest worker until the slowest has
caught up. Inside Beam nobody may wait, so here the bound acts where a gradient is applied: one beyond it is computed
again at the current weights, or dropped. So a stalled worker holds up no other, and with bound 0 the result is that
of serial training. Rejected: a smaller step for a stale gradient, ``1 / (1 + staleness)``, which cost AUC at every
staleness tried.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from typing import Generic, Literal, NamedTuple, Protocol, TypeVar, get_args
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from contbatch.transforms.learning.learner import Arrays, Columns, Learner

Floats = NDArray[np.float64]
State = TypeVar("State")

OnStale = Literal["recompute", "drop"]
"""What happens to a gradient beyond the bound."""


class GradientLearner(Learner[State], Protocol[State]):
    """A learner whose step comes in two halves, which may be done in different places."""

    def gradient(self, state: State, columns: Columns, labels: Floats, weights: Floats) -> Arrays:
        """Return the gradient, a sum over n rows, as plain arrays. Leaves ``state`` as it is."""

    def apply(self, state: State, gradient: Arrays) -> State:
        """Take one step along a gradient; the given state is used up."""


class Batch(NamedTuple):
    """The rows of one gradient.

    Attributes:
        columns: n values for each field.
        labels: shape (n,).
        weights: importance, shape (n,).
    """

    columns: Columns
    labels: Floats
    weights: Floats

    @property
    def size(self) -> int:
        """The number of rows."""
        return len(self.labels)


class Fate(StrEnum):
    """What became of a gradient and its rows."""

    APPLIED = "applied"
    RECOMPUTED = "recomputed"
    DROPPED = "dropped"


class Outcome(NamedTuple):
    """What :meth:`Applier.submit` did.

    Attributes:
        version: of the weights, afterwards.
        fate: of the gradient.
        staleness: versions that it was behind when it came; ``None`` if its weights are not known.
    """

    version: int
    fate: Fate
    staleness: int | None


@dataclass(frozen=True)
class Statistics:
    """What an applier has done since the first weights.

    Attributes:
        applied: gradients that were applied as they came.
        recomputed: gradients that were computed again, then applied.
        dropped: gradients that were dropped.
        learned_examples: rows of the first two.
        dropped_examples: rows of the third.
        staleness: how many gradients came how many versions behind; all those beyond the bound stand together
            at ``bound + 1``.
    """

    applied: int
    recomputed: int
    dropped: int
    learned_examples: int
    dropped_examples: int
    staleness: dict[int, int]


def check_bound(bound: int, on_stale: OnStale) -> None:
    """Check the two settings of an applier.

    Raises:
        ValueError: one of them is outside its range.
    """
    if not isinstance(bound, int) or bound < 0:
        raise ValueError(f"bound is {bound!r}; give a whole number of versions, 0 or more")
    if on_stale not in get_args(OnStale):
        raise ValueError(f"on_stale is {on_stale!r}; give one of {', '.join(map(repr, get_args(OnStale)))}")


class Applier(Generic[State]):
    """Owns the weights of a model and applies what its workers send.

    No gradient whose weights are more than ``bound`` versions old is ever applied, and every row is either learned
    once or dropped.

    Args:
        learner: computes and applies gradients.
        bound: most versions that an applied gradient may be behind.
        on_stale: ``"recompute"`` a gradient beyond the bound at the current weights, or ``"drop"`` it. Dropping
            favours what quick workers see.

    Raises:
        ValueError: an argument is outside its range.
    """

    def __init__(self, learner: GradientLearner[State], bound: int, on_stale: OnStale = "recompute") -> None:
        check_bound(bound, on_stale)
        self._learner = learner
        self._bound = bound
        self._on_stale = on_stale
        self._gradients: Counter[Fate] = Counter()
        self._examples: Counter[Fate] = Counter()
        self._staleness: Counter[int] = Counter()
        self.state = learner.init()
        """The current weights, to read only."""
        self.version = 0
        """How many gradients these weights have seen."""

    def submit(self, version: int | None, gradient: Arrays, batch: Batch) -> Outcome:
        """Take a gradient and the rows that it is of.

        Args:
            version: of the weights that it was computed on. ``None`` if they are none of this applier's: it is then
                recomputed whatever ``on_stale`` says, since no version says how far off it is.
            gradient: what the learner returned for the rows.
            batch: the rows.

        Raises:
            ValueError: the version is one that does not exist yet.
        """
        staleness = None if version is None else self.version - version
        if staleness is not None and staleness < 0:
            raise ValueError(
                f"a gradient of version {version} came when the weights were at {self.version}; give the version "
                "that was read from this applier, or None"
            )
        behind = self._bound + 1 if staleness is None else min(staleness, self._bound + 1)
        if behind <= self._bound:
            fate = Fate.APPLIED
        elif self._on_stale == "drop" and staleness is not None:
            fate = Fate.DROPPED
        else:
            fate = Fate.RECOMPUTED
            gradient = self._learner.gradient(self.state, *batch)
        if fate is not Fate.DROPPED:
            self.state = self._learner.apply(self.state, gradient)
            self.version += 1
        self._gradients[fate] += 1
        self._examples[fate] += batch.size
        self._staleness[behind] += 1
        return Outcome(self.version, fate, staleness)

    def statistics(self) -> Statistics:
        """Return the counts."""
        return Statistics(
            applied=self._gradients[Fate.APPLIED],
            recomputed=self._gradients[Fate.RECOMPUTED],
            dropped=self._gradients[Fate.DROPPED],
            learned_examples=self._examples[Fate.APPLIED] + self._examples[Fate.RECOMPUTED],
            dropped_examples=self._examples[Fate.DROPPED],
            staleness=dict(sorted(self._staleness.items())),
        )

    def export(self) -> Arrays:
        """Return all that :meth:`load` needs to go on exactly from here."""
        arrays = {f"model/{name}": array for name, array in self._learner.export(self.state).items()}
        counts = [[self._gradients[fate], self._examples[fate]] for fate in Fate]
        return arrays | {
            "version": np.array([self.version]),
            "counts": np.array(counts),
            "staleness": np.array(sorted(self._staleness.items()), np.int64).reshape(-1, 2),
        }

    def load(self, arrays: Arrays) -> None:
        """Go on from what :meth:`export` returned.

        Raises:
            ValueError: the arrays are of another configuration.
        """
        prefix = "model/"
        model = {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
        self.state = self._learner.load(model)
        self.version = int(arrays["version"][0])
        gradients, examples = arrays["counts"].T.tolist()
        self._gradients = Counter(dict(zip(Fate, gradients, strict=True)))
        self._examples = Counter(dict(zip(Fate, examples, strict=True)))
        self._staleness = Counter(dict(arrays["staleness"].tolist()))


class LinearState(NamedTuple):
    """Per slot a weight and its AdaGrad sum of squared gradients, both of shape ``(2**bits,)``."""

    weights: Floats
    squares: Floats


@dataclass(frozen=True)
class LinearLearner:
    """Logistic regression on hashed ids, ``sigmoid(sum of weights)``, as a :class:`GradientLearner`.

    Every field holds a string, a number or a list of them per row; each value is hashed with its field's name into
    one of ``2**bits`` slots. A step is AdaGrad per coordinate (Duchi, Hazan and Singer, 2011) on the sum of the rows'
    gradients.

    Attributes:
        fields: names of the columns read.
        bits: log2 of the number of slots, 4 to 28.
        rate: learning rate.
        accumulator: initial sum of squared gradients.

    Raises:
        ValueError: an attribute is outside its range.
    """

    fields: tuple[str, ...]
    bits: int = 16
    rate: float = 0.2
    accumulator: float = 0.1

    def __post_init__(self) -> None:
        if not self.fields:
            raise ValueError("fields is empty; name at least one column")
        if not 4 <= self.bits <= 28:
            raise ValueError(f"bits is {self.bits}; give 4 to 28")
        for name in ("rate", "accumulator"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)}; give a number above 0")

    def init(self) -> LinearState:
        """Return weights of 0."""
        return LinearState(np.zeros(1 << self.bits), np.full(1 << self.bits, self.accumulator))

    def predict(self, state: LinearState, columns: Columns) -> Floats:
        """Return the probability of a positive label per row, shape (n,)."""
        slots, rows = self._encode(columns)
        return _probability(state, slots, rows, len(columns[self.fields[0]]))

    def gradient(self, state: LinearState, columns: Columns, labels: Floats, weights: Floats) -> Arrays:
        """Return the slots that the rows use, in order, and each one's summed gradient."""
        slots, rows = self._encode(columns)
        error = (_probability(state, slots, rows, len(labels)) - labels) * weights
        unique, position = np.unique(slots, return_inverse=True)
        return {"slots": unique, "gradient": np.bincount(position, error[rows], len(unique))}

    def apply(self, state: LinearState, gradient: Arrays) -> LinearState:
        """Take one step; changes ``state`` in place and returns it."""
        slots, total = gradient["slots"], gradient["gradient"]
        state.squares[slots] += total * total
        state.weights[slots] -= self.rate * total / np.sqrt(state.squares[slots])
        return state

    def step(self, state: LinearState, columns: Columns, labels: Floats, weights: Floats) -> LinearState:
        """Learn the rows in one step; changes ``state`` in place and returns it."""
        return self.apply(state, self.gradient(state, columns, labels, weights))

    def export(self, state: LinearState) -> Arrays:
        """Return a copy of the state."""
        return {name: array.copy() for name, array in state._asdict().items()}

    def load(self, arrays: Arrays) -> LinearState:
        """Return the exported state."""
        weights, squares = arrays["weights"], arrays["squares"]
        if weights.shape != (1 << self.bits,):
            raise ValueError(
                f"weights of shape {weights.shape} do not fit bits={self.bits}; load them with the configuration "
                "that they were exported with"
            )
        return LinearState(weights.copy(), squares.copy())

    def _encode(self, columns: Columns) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the slot and the row of every value."""
        mask = (1 << self.bits) - 1
        slots, rows = [], []
        for field in self.fields:
            for row, value in enumerate(columns[field]):
                for part in value if isinstance(value, list) else (value,):
                    slots.append(_slot(field, part, mask))
                    rows.append(row)
        return np.array(slots, np.int64), np.array(rows, np.int64)


@lru_cache(maxsize=1 << 16, typed=True)
def _slot(field: str, value: object, mask: int) -> int:
    return crc32(str(value).encode(), crc32(field.encode())) & mask


def _probability(state: LinearState, slots: NDArray[np.int64], rows: NDArray[np.int64], size: int) -> Floats:
    logits = np.bincount(rows, state.weights[slots], size).astype(float, copy=False)  # int for no rows
    return 0.5 + 0.5 * np.tanh(0.5 * logits)
