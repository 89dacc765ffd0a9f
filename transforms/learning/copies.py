"""Copies of weights while they learn, of which one counts as good once what came after it looks healthy."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from contbatch.transforms.learning.learner import Arrays, prefixed, unprefixed

_MOST = 4


class Copy(NamedTuple):
    """Exported weights.

    Attributes:
        label: labels before them.
        step: updates in them.
        arrays: the weights.
    """

    label: int
    step: int
    arrays: Arrays


class Copies:
    """A few copies of the live weights, oldest first; at most one of them counts as good.

    Args:
        every: labels between two copies.
        settle: labels that have to look healthy after a copy.
    """

    def __init__(self, every: int, settle: int) -> None:
        self._every = every
        self._settle = settle
        self._copies: list[Copy] = []
        self._last = 0

    def clear(self, at: int) -> None:
        """Drop all copies; the next one is due ``every`` labels after label ``at``."""
        self._copies, self._last = [], at

    def is_due(self, at: int) -> bool:
        """Return whether the weights after label ``at`` should be copied."""
        return at - self._last >= self._every and len(self._copies) < _MOST

    def take(self, at: int, step: int, arrays: Arrays) -> None:
        """Copy weights; those that are not numbers are left out, as nothing could go back to them."""
        self._last = at
        if not any(np.isnan(array).any() for array in arrays.values() if array.dtype.kind == "f"):
            self._copies.append(Copy(at, step, copied(arrays)))

    def good(self, since: float) -> Copy | None:
        """Return the newest copy with ``settle`` healthy labels after it, and drop those before it.

        Args:
            since: the label up to which all is known to have been well.
        """
        while len(self._copies) > 1 and self._copies[1].label + self._settle <= since:
            del self._copies[0]
        return self._copies[0] if self._copies and self._copies[0].label + self._settle <= since else None

    def export(self) -> Arrays:
        """Return all copies."""
        arrays: Arrays = {}
        for place, copy in enumerate(self._copies):
            arrays |= prefixed(copied(copy.arrays), f"{place}/")
        taken = [number for copy in self._copies for number in (copy.label, copy.step)]
        return arrays | {"taken": np.array([self._last, *taken])}

    def load(self, arrays: Arrays) -> None:
        """Take over what :meth:`export` returned."""
        self._last, *taken = arrays["taken"].tolist()
        self._copies = [
            Copy(label, step, copied(unprefixed(arrays, f"{place}/")))
            for place, (label, step) in enumerate(zip(taken[::2], taken[1::2], strict=True))
        ]


def copied(arrays: Arrays) -> Arrays:
    """Return arrays of their own: a learner may give out the ones it learns in."""
    return {name: np.array(array) for name, array in arrays.items()}
