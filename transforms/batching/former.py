"""Forms micro-batches in event time."""

from __future__ import annotations

import math
from typing import Generic, TypeVar

from contbatch.transforms.batching.policy import BatchPolicy, Reason
from contbatch.transforms.events import END_OF_TIME, MICROS

T = TypeVar("T")


class BatchFormer(Generic[T]):
    """The micro-batch that is open: elements are added in event-time order, then taken as one batch.

    It is a function of the elements alone: no clock, no watermark. That is why a batch is the same whatever
    the order of arrival and however far the watermark moves at once.
    """

    def __init__(self, policy: BatchPolicy) -> None:
        self._max_size = policy.max_size
        self._max_weight = policy.max_weight
        self._max_delay = END_OF_TIME if policy.max_delay == math.inf else round(policy.max_delay * MICROS)
        self._elements: list[T] = []
        self._weight = 0.0
        self.closes_at: int | None = None
        """Event time (microseconds) of the deadline; elements of that very instant still get in."""

    @property
    def is_full(self) -> bool:
        """Whether the batch must be taken before another element is added."""
        return len(self._elements) >= self._max_size

    @property
    def elements(self) -> list[T]:
        """What is waiting, oldest first."""
        return self._elements

    def reason_before(self, time: int, weight: float = 0.0) -> Reason | None:
        """Return why the batch must be taken before an element of this time and weight is added, or ``None``."""
        if self.closes_at is None:
            return None
        if self.is_full:
            return Reason.SIZE
        if time > self.closes_at:
            return Reason.DELAY
        if self._max_weight is not None and self._weight + weight > self._max_weight:
            return Reason.WEIGHT
        return None

    def add(self, element: T, time: int, weight: float = 0.0) -> None:
        """Add an element; the first of a batch starts its deadline."""
        if self.closes_at is None:
            self.closes_at = time + self._max_delay
        self._elements.append(element)
        self._weight += weight

    def take(self) -> list[T]:
        """Close the batch and return its elements, oldest first."""
        elements, self._elements, self.closes_at = self._elements, [], None
        self._weight = 0.0
        return elements
