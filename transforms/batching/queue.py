"""What waits for a device: the most urgent first."""

from __future__ import annotations

import heapq
import math
from typing import Generic, NamedTuple, TypeVar

from contbatch.transforms.batching.policy import Reason

T = TypeVar("T")


class Waiting(NamedTuple, Generic[T]):
    """An element that waits. They compare by urgency, then by arrival.

    Attributes:
        order: its virtual deadline, in seconds: the deadline less the priority.
        number: of its arrival.
        item: the element.
        deadline: when its answer must be there, in seconds; infinite if never.
        arrival: when it came, in seconds.
        weight: its weight or length.
    """

    order: float
    number: int
    item: T
    deadline: float = math.inf
    arrival: float = 0.0
    weight: float = 0.0


class Choice(NamedTuple, Generic[T]):
    """The next batch, what is given up for it, and why it is what it is."""

    batch: list[Waiting[T]]
    shed: list[Waiting[T]]
    reason: Reason


class Room(NamedTuple):
    """What may join elements that run already.

    Attributes:
        size: elements.
        weight: their weight.
    """

    size: int
    weight: float = math.inf


class DeadlineQueue(Generic[T]):
    """A queue by urgency: earliest virtual deadline first, equal ones in the order of arrival.

    Nothing starves: whatever waits becomes the most urgent in the end.
    """

    def __init__(self) -> None:
        self._heap: list[Waiting[T]] = []

    def __len__(self) -> int:
        return len(self._heap)

    @property
    def head(self) -> Waiting[T]:
        """The most urgent.

        Raises:
            IndexError: nothing waits.
        """
        return self._heap[0]

    def elements(self) -> list[Waiting[T]]:
        """Return all that wait, in no order."""
        return list(self._heap)

    def push(self, waiting: Waiting[T]) -> None:
        """Add an element."""
        heapq.heappush(self._heap, waiting)

    def take(self, size: int) -> list[Waiting[T]]:
        """Remove and return the most urgent, ``size`` of them or as many as there are."""
        if size >= len(self._heap):
            taken, self._heap = sorted(self._heap), []
            return taken
        return [heapq.heappop(self._heap) for _ in range(size)]
