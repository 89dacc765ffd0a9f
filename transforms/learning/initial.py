"""The factors that a slot has before it is learned: drawn once for all slots, or again for a few."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ids = NDArray[np.int64]

_BLOCK = 1024  # slots; to draw one slot again means to draw its block, some 0.1 ms for 8 factors


class InitialFactors(NamedTuple):
    """Standard normal factors of ``slots`` slots, in the order of the slots from one generator."""

    seed: int
    slots: int
    factors: int

    def all(self) -> Floats:
        """Return the factors of every slot, shape ``(slots, factors)``, not to be written to."""
        return _all(self)

    def of(self, slots: Ids) -> Floats:
        """Return the factors of these slots, shape ``(len(slots), factors)``, bitwise those of :meth:`all`.

        The first call in a process draws all slots, to learn where each block starts.
        """
        drawn = np.empty((len(slots), self.factors))
        blocks, generator = slots // _BLOCK, np.random.default_rng(self.seed)
        for block in np.unique(blocks):
            generator.bit_generator.state = _starts(self)[block]
            inside = blocks == block
            drawn[inside] = generator.standard_normal((_BLOCK, self.factors))[slots[inside] % _BLOCK]
        return drawn


@lru_cache(maxsize=2)  # a server loads a version every second, and they are most of its time
def _all(initial: InitialFactors) -> Floats:
    factors = np.random.default_rng(initial.seed).standard_normal((initial.slots, initial.factors))
    factors.flags.writeable = False
    return factors


@lru_cache(maxsize=8)
def _starts(initial: InitialFactors) -> list[Any]:
    """Return the generator's state before each block: a normal takes a varying number of its steps."""

    def states() -> Iterator[Any]:
        generator = np.random.default_rng(initial.seed)
        for _ in range(0, initial.slots, _BLOCK):
            yield generator.bit_generator.state
            generator.standard_normal((_BLOCK, initial.factors))

    return list(states())
