"""Sizes at which a straight line does not say what a batch costs: cliffs and steps."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

_SIZES, _REMEMBERED = 32, 50
"""Sizes that are kept, and batches that a size's mean goes back."""
_RETRY_FIRST = 1024
"""Batches after which a cliff is tried again."""
_WIDER = 1.05
"""Only a size so much above all that were fine can be a cliff; below, the device has changed."""
_BETTER = 1.02
"""Elements a second by which another size must do better."""


class _Seen(NamedTuple):
    """What batches of one size took: the mean, the deviations from it, and the bounds that follow.

    ``low`` and ``high`` bound the mean by two standard errors, ``top`` a single batch by three deviations.
    """

    mean: float
    squares: float
    batches: int
    low: float
    high: float
    top: float


class SizeTable:
    """What single sizes cost, beside a cost model that is a line.

    A **cliff** is a size from which on batches are far slower, as when a device's memory spills. It is enclosed by
    bisection between the largest size that was fine and the smallest that was not, and tried again after 1,024
    batches, then twice as many. A **step** is a size just below a jump, as where a device works in waves: once seen a
    few times to do clearly more elements a second than the size asked for, it is preferred.
    """

    def __init__(self) -> None:
        self._seen: dict[int, _Seen] = {}
        self._good = 0
        self._bad: int | None = None
        self._since_bad = 0
        self._retry_after = _RETRY_FIRST

    def fine(self, size: int, seconds: float, noise: float) -> None:
        """Note a batch that took about what it should.

        Args:
            size: of the batch.
            seconds: that it took.
            noise: standard deviation of a batch, relative; what a size is taken to have until it is known better.
        """
        before = self._seen.pop(size, None)
        mean, squares, batches = before[:3] if before else (seconds, 0.0, 0)
        batches = min(batches + 1, _REMEMBERED)
        deviation = seconds / mean - 1
        mean += (seconds - mean) / batches
        squares = squares * (1 - 1 / _REMEMBERED) + deviation * deviation
        spread = math.sqrt((2 * noise**2 + squares) / (2 + batches))
        doubt = 2 * spread / math.sqrt(batches)
        # Popped and added again: the first is the one that was not seen for longest.
        self._seen[size] = _Seen(
            mean, squares, batches, mean * (1 - doubt), mean * (1 + doubt), mean * (1 + 3 * spread)
        )
        if len(self._seen) > _SIZES:
            del self._seen[next(iter(self._seen))]
        self._good = max(self._good, size)
        self._since_bad += 1
        if self._bad is not None and size >= self._bad:
            self._bad, self._retry_after = None, _RETRY_FIRST

    def is_cliff(self, size: int) -> bool:
        """Note a batch that was far too slow; returns whether its size, untried so far, explains it."""
        if self._good == 0 or size <= self._good * (1 if self._bad else _WIDER):
            return False
        if self._bad is not None and size >= self._bad:
            self._retry_after *= 2
        self._bad, self._since_bad = min(size, self._bad or size), 0
        return True

    def usable(self, size: int) -> int:
        """Return the size, or a smaller one where it would be over a cliff."""
        if self._bad is None or size <= self._good:
            return size
        if self._since_bad >= self._retry_after:
            return min(size, self._bad)
        enclosed = self._bad - self._good <= max(1, self._good // 32)
        return min(size, self._good if enclosed else (self._good + self._bad) // 2)

    def prefer(self, size: int, seconds: float, budget: float, limit: int) -> int:
        """Return a seen size that does clearly more a second within the budget, else the one given.

        Args:
            size: the size to beat, by a line the largest within the budget.
            seconds: what the line expects it to take.
            budget: seconds that a batch may take.
            limit: the largest size allowed.
        """
        better, floor, rate, half = size, seconds, 0.0, size / 2
        for seen, (_, _, _, low, high, top) in self._seen.items():
            if seen <= size and low > floor:
                floor = low  # no size is quicker than a smaller one, whatever the line says
            if half <= seen <= limit and top <= budget and seen > rate * high:
                better, rate = seen, seen / high
        return better if rate > _BETTER * size / floor else size

    def export(self) -> dict[str, Any]:
        """Return all that is known, as JSON values."""
        seen = [[size, *it] for size, it in self._seen.items()]
        return {"seen": seen, "cliff": [self._good, self._bad, self._since_bad, self._retry_after]}

    def load(self, content: dict[str, Any]) -> None:
        """Take over what :meth:`export` returned."""
        self._seen = {size: _Seen(*it) for size, *it in content["seen"]}
        self._good, self._bad, self._since_bad, self._retry_after = content["cliff"]
