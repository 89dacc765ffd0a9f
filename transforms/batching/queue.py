"""What waits for a device: the most urgent first."""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable, Sequence
from typing import Generic, NamedTuple, TypeVar

from contbatch.transforms.batching.policy import Reason

T = TypeVar("T")


class Waiting(NamedTuple, Generic[T]):
    """Elements that wait, and that came together: often one. They compare by urgency, then by arrival.

    Attributes:
        order: their virtual deadline, in seconds: the deadline less the priority.
        number: of the first one's arrival; the others follow it.
        items: the elements, at least one.
        deadline: when their answers must be there, in seconds; infinite if never.
        arrival: when they came, in seconds.
        weight: the weight or length of each.
    """

    order: float
    number: int
    items: Sequence[T]
    deadline: float = math.inf
    arrival: float = 0.0
    weight: float = 0.0

    def split(self, size: int) -> tuple[Waiting[T], Waiting[T]]:
        """Return the first ``size`` of them, and the others."""
        first, rest = self.items[:size], self.items[size:]
        return self._replace(items=first), self._replace(items=rest, number=self.number + size)


def items(batch: Iterable[Waiting[T]]) -> list[T]:
    """Return the elements of what was taken."""
    return [item for one in batch for item in one.items]


def each(batch: Iterable[Waiting[T]], name: str) -> list[float]:
    """Return the deadline, arrival or weight of each of the elements of what was taken."""
    return [value for one in batch for value in (getattr(one, name),) * len(one.items)]


def first(batch: list[Waiting[T]], size: int) -> tuple[list[Waiting[T]], list[Waiting[T]]]:
    """Return the first ``size`` elements of what was taken, and the others."""
    for at, one in enumerate(batch):
        if size < len(one.items):
            if not size:
                return batch[:at], batch[at:]
            left, right = one.split(size)
            return [*batch[:at], left], [right, *batch[at + 1 :]]
        size -= len(one.items)
    return batch, []


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
        self._count = 0

    def __len__(self) -> int:
        """Return how many elements wait."""
        return self._count

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
        """Add elements."""
        heapq.heappush(self._heap, waiting)
        self._count += len(waiting.items)

    def take(self, size: int) -> list[Waiting[T]]:
        """Remove and return the most urgent, ``size`` elements of them or as many as there are."""
        if size >= self._count:
            taken, self._heap, self._count = sorted(self._heap), [], 0
            return taken
        taken, self._count = [], self._count - size
        while size:
            one = heapq.heappop(self._heap)
            if size < len(one.items):
                one, rest = one.split(size)
                heapq.heappush(self._heap, rest)
            size -= len(one.items)
            taken.append(one)
        return taken
