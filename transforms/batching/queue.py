"""What waits for a device: earliest deadline first."""

from __future__ import annotations

import heapq
import math
from itertools import count
from typing import Generic, TypeVar

T = TypeVar("T")


class DeadlineQueue(Generic[T]):
    """A queue in the order of deadlines; equal deadlines in the order of arrival.

    Nothing starves: whatever waits becomes the most urgent in the end. Without any deadline it is first in, first out.
    """

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, T]] = []
        self._number = count()

    def __len__(self) -> int:
        return len(self._heap)

    @property
    def deadline(self) -> float:
        """The earliest deadline; infinite when nothing waits or nothing has one."""
        return self._heap[0][0] if self._heap else math.inf

    def push(self, item: T, deadline: float = math.inf) -> None:
        """Add an item."""
        heapq.heappush(self._heap, (deadline, next(self._number), item))

    def take(self, size: int) -> list[T]:
        """Remove and return the most urgent items, ``size`` of them or as many as there are."""
        return [heapq.heappop(self._heap)[2] for _ in range(min(size, len(self._heap)))]
