"""Asynchronous data-parallel training with bounded staleness: the one who applies gradients, and what it needs.

Workers compute gradients on weights they have read at some version and never wait; an :class:`Applier` owns the
weights and takes the gradients in the order of arrival. The staleness of a gradient is the number of versions that
were made since its weights were read.

Stale Synchronous Parallel (Ho et al., 2013) bounds staleness by holding up the fastest worker until the slowest has
caught up. Inside Beam nobody may wait, so here the bound acts where a gradient is applied: one beyond it is computed
again at the current weights, or dropped. So a stalled worker holds up no other, and with bound 0 the result is that
of serial training. Rejected: a smaller step for a stale gradient, ``1 / (1 + staleness)``. On MovieLens 100k it is
worth 0.001 AUC at 1 version behind and costs 0.002 at 2, 0.008 at 8 and 0.023 at 32.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from enum import StrEnum
from typing import Generic, Literal, NamedTuple, Protocol, TypeVar, get_args

import numpy as np
from numpy.typing import NDArray

from contbatch.transforms.learning.batches import Batch
from contbatch.transforms.learning.learner import Arrays, Columns, Learner, prefixed, unprefixed

Floats = NDArray[np.float64]
State = TypeVar("State")

OnStale = Literal["recompute", "drop"]
"""What happens to a gradient beyond the bound."""


class GradientLearner(Learner[State], Protocol[State]):
    """A learner whose update comes in two halves, which may be done in different places.

    The rows of a gradient are one update, also where :meth:`step` would make several of them.
    """

    def gradient(self, state: State, columns: Columns, labels: Floats, weights: Floats) -> Arrays:
        """Return the gradient, a sum over n rows, as plain arrays. Leaves ``state`` as it is."""

    def apply(self, state: State, gradient: Arrays) -> State:
        """Take one step along a gradient; the given state is used up."""


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
        counts = [[self._gradients[fate], self._examples[fate]] for fate in Fate]
        return prefixed(self._learner.export(self.state), "model/") | {
            "version": np.array([self.version]),
            "counts": np.array(counts),
            "staleness": np.array(sorted(self._staleness.items()), np.int64).reshape(-1, 2),
        }

    def load(self, arrays: Arrays) -> None:
        """Go on from what :meth:`export` returned.

        Raises:
            ValueError: the arrays are of another configuration.
        """
        self.state = self._learner.load(unprefixed(arrays, "model/"))
        self.version = int(arrays["version"][0])
        gradients, examples = arrays["counts"].T.tolist()
        self._gradients = Counter(dict(zip(Fate, gradients, strict=True)))
        self._examples = Counter(dict(zip(Fate, examples, strict=True)))
        self._staleness = Counter(dict(arrays["staleness"].tolist()))
