"""Feeds one device: which batch to run when it is free."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar

from contbatch.transforms.batching.cost import CostModel
from contbatch.transforms.batching.policy import BatchPolicy, Reason
from contbatch.transforms.batching.queue import DeadlineQueue

T = TypeVar("T")

_CAPACITY = 100_000
"""Elements that may wait where the policy does not say."""


class Released(NamedTuple, Generic[T]):
    """What to do with a free device.

    Attributes:
        batch: elements to run together, the most urgent first; empty when nothing is left to run.
        shed: elements that cannot be answered in time.
        reason: why the batch is what it is.
    """

    batch: list[T]
    shed: list[T]
    reason: Reason


@dataclass(frozen=True)
class SchedulerStatistics:
    """Counts since the scheduler was made.

    Attributes:
        submitted: elements that came.
        released: elements given to the device.
        refused: elements turned away at once, as ``capacity`` were waiting.
        shed: elements given up because their deadline could not be met.
        waiting: elements in the queue now.
        batches: batches by the reason of their release.
    """

    submitted: int
    released: int
    refused: int
    shed: int
    waiting: int
    batches: dict[Reason, int]


class Scheduler(Generic[T]):
    """Batches for one device, formed when the device is free and not before, so that a batch grows until it is taken.

    The rule: the most urgent elements, as many as the head's deadline allows by the cost model's upper bound. An idle
    device never waits. A head that could not be answered even alone is shed. When a full batch waits and the head's
    slack allows only a smaller one, the head is shed if that smaller batch would cost the others more than one
    answer (early drop, Shen et al., *Nexus*, SOSP 2019; earliest deadline first with deferral, *Symphony*, 2023).

    Args:
        policy: ``max_size``, ``latency_slo`` and ``capacity`` are used.
        cost: learns from :meth:`finish`; give a shared one to keep what was learned elsewhere.
    """

    def __init__(self, policy: BatchPolicy, cost: CostModel | None = None) -> None:
        self._policy = policy
        self._capacity = policy.capacity or max(_CAPACITY, policy.max_size)
        self._cost = cost or CostModel()
        self._queue: DeadlineQueue[T] = DeadlineQueue()
        self._submitted = self._released = self._refused = self._shed = 0
        self._batches: Counter[Reason] = Counter()

    def __len__(self) -> int:
        """Return how many elements wait."""
        return len(self._queue)

    def submit(self, item: T, now: float, deadline: float | None = None) -> bool:
        """Add an element; returns whether it was taken in.

        Args:
            item: the element.
            now: the time, in seconds.
            deadline: when its answer must be there; by default ``latency_slo`` from now, else never.
        """
        self._submitted += 1
        if len(self._queue) >= self._capacity:
            self._refused += 1
            return False
        if deadline is None:
            slo = self._policy.latency_slo
            deadline = math.inf if slo is None else now + slo
        self._queue.push(item, deadline)
        return True

    def release(self, now: float) -> Released[T]:
        """Return what a free device should run now."""
        shed = self._hopeless(now)
        most = min(len(self._queue), self._policy.max_size)
        if not most:
            return Released([], shed, Reason.IDLE_DEVICE)
        size = self._cost.largest(self._queue.deadline - now, most)
        reason = Reason.IDLE_DEVICE if size == most else Reason.DEADLINE
        if size == self._policy.max_size:
            reason = Reason.SIZE
        batch = self._queue.take(size)
        self._released += len(batch)
        self._batches[reason] += 1
        return Released(batch, shed, reason)

    def finish(self, size: int, seconds: float) -> None:
        """Learn that a batch of this size took so many seconds."""
        self._cost.observe(size, seconds)

    def statistics(self) -> SchedulerStatistics:
        """Return the counts so far."""
        return SchedulerStatistics(
            self._submitted, self._released, self._refused, self._shed, len(self._queue), dict(self._batches)
        )

    def _hopeless(self, now: float) -> list[T]:
        """Remove and return the heads that cannot be answered, or for whom a full queue would lose more than one."""
        alone, together, shed = self._cost.expected(1), self._slack_when_full(), []
        while self._queue:
            needed = together if len(self._queue) >= self._policy.max_size else alone
            if self._queue.deadline - now >= needed:
                break
            shed += self._queue.take(1)
        self._shed += len(shed)
        return shed

    def _slack_when_full(self) -> float:
        """Return the slack that a head needs to be worth a batch smaller than ``max_size``, in seconds.

        With batches of s instead of m elements, ``m * T(s) / T(m) - s`` answers are lost. For ``T(n) = a + b * n``
        that is more than one where ``s < m - T(m) / a``.
        """
        most, (fixed, _, _) = self._policy.max_size, self._cost.parameters
        if fixed == 0.0:
            return self._cost.expected(1)
        size = max(1, math.ceil(most - self._cost.expected(most) / fixed))
        return max(self._cost.expected(1), self._cost.upper(size))
