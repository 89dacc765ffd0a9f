"""Feeds one device: which batch to run when it is free."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar

from contbatch.transforms.batching.admission import Admission
from contbatch.transforms.batching.cost import CostModel
from contbatch.transforms.batching.lengths import ByLength
from contbatch.transforms.batching.policy import BatchPolicy, Overflow, Reason
from contbatch.transforms.batching.queue import Room, Waiting, each, items
from contbatch.transforms.batching.release import Backlog
from contbatch.transforms.batching.sizing import Sizing
from contbatch.transforms.batching.urgency import ByUrgency

T = TypeVar("T")

_PATIENCE = 60.0
"""Seconds after its arrival at which an element without deadline or delay is as urgent as one with a deadline."""


class Released(NamedTuple, Generic[T]):
    """What to do with a free device.

    Attributes:
        batch: elements to run together, the most urgent first, or with lengths the shortest first; empty when nothing
            is left to run.
        shed: elements that cannot be answered in time.
        reason: why the batch is what it is.
        size: what the device runs: as many as the batch holds, or the allowed size that it is padded to.
        weight: the batch's weight; with lengths its padded size times its longest.
        arrival: when the first of them came, in seconds.
    """

    batch: list[T]
    shed: list[T]
    reason: Reason
    size: int = 0
    weight: float = 0.0
    arrival: float = math.inf


@dataclass(frozen=True)
class SchedulerStatistics:
    """Counts since the scheduler was made.

    Attributes:
        submitted: elements that came.
        released: elements given to the device.
        refused: elements turned away at once, as too much was waiting.
        shed: elements given up because their deadline could not be met.
        waiting: elements in the queue now.
        waiting_seconds: what they would take in full batches, by the cost model.
        batches: batches by the reason of their release.
    """

    submitted: int
    released: int
    refused: int
    shed: int
    waiting: int
    waiting_seconds: float
    batches: dict[Reason, int]


class Scheduler(Generic[T]):
    """Batches for one device, formed when the device is free and not before, so that a batch grows until it is taken.

    An idle device never waits. Which elements share a batch is said by :class:`ByUrgency`, and where the policy has
    lengths by :class:`ByLength`.

    Args:
        policy: all but the clock of ``max_delay`` is used here; the functions are the caller's to call.
        cost: learns from :meth:`finish`; give a shared one to keep what was learned elsewhere.
    """

    def __init__(self, policy: BatchPolicy, cost: CostModel | None = None) -> None:
        self._cost = cost or CostModel()
        self._count = self._submitted = self._released = self._refused = self._shed = 0
        self._weight = 0.0
        self._batches: Counter[Reason] = Counter()
        self._use(policy, [])

    def __len__(self) -> int:
        """Return how many elements wait."""
        return self._count

    def change(self, policy: BatchPolicy) -> None:
        """Go on under another policy; what waits keeps its deadline, weight and place."""
        self._use(policy, self._waiting.elements())

    def _use(self, policy: BatchPolicy, waiting: list[Waiting[T]]) -> None:
        self._policy = policy
        self._patience = policy.max_delay if policy.max_delay < math.inf else _PATIENCE
        self._sizing = Sizing(policy, self._cost)
        self._admission = Admission(policy, self._cost)
        self._room = policy.most_waiting
        self._weighs = bool(policy.weight_fn or policy.length_fn)
        self._bounds_seconds = policy.capacity_seconds is not None
        self._waiting: ByUrgency[T] | ByLength[T] = (ByLength if policy.pool else ByUrgency)(policy, self._cost)
        self._add = self._waiting.add
        for one in waiting:
            self._add(one)

    def submit(
        self, item: T, now: float, deadline: float | None = None, weight: float = 0.0, priority: float = 0.0
    ) -> bool:
        """Add an element; returns whether it was taken in.

        Where it was not, ``overflow`` says what it means: block asks for it again later, and shed gives it up, which
        is what ``refused`` counts.

        Args:
            item: the element.
            now: the time, in seconds.
            deadline: when its answer must be there; by default ``latency_slo`` from now, else never.
            weight: its weight, or with ``length_fn`` its length.
            priority: seconds by which it is more urgent than its deadline says.
        """
        if self._count >= self._room or (self._bounds_seconds and self._admission.room(self._count, self._weight) <= 0):
            if self._policy.overflow is Overflow.SHED:
                self._submitted += 1
                self._refused += 1
            return False
        if deadline is None:
            slo = self._policy.latency_slo
            deadline = math.inf if slo is None else now + slo
        order = deadline if deadline < math.inf else now + self._patience
        self._add(Waiting(order - priority, self._submitted, (item,), deadline, now, weight))
        self._submitted += 1
        self._count += 1
        self._weight += weight
        return True

    def submit_together(self, items: Sequence[T], now: float) -> int:
        """Add elements that came together, without deadlines or priorities of their own; returns how many got in.

        The others are not taken in, for the same reasons as in :meth:`submit`. To add many so costs what one does.

        Raises:
            ValueError: the policy has weights or lengths.
        """
        if self._weighs:
            raise ValueError("elements that have weights or lengths are submitted one by one")
        room = min(len(items), self._room - self._count)
        if self._bounds_seconds:
            room = min(room, self._admission.room(self._count, self._weight))
        room = max(0, room)
        if room:
            slo = self._policy.latency_slo
            order = now + (self._patience if slo is None else slo)
            deadline = math.inf if slo is None else order
            self._add(Waiting(order, self._submitted, items[:room], deadline, now))
            self._submitted += room
            self._count += room
        if room < len(items) and self._policy.overflow is Overflow.SHED:
            self._submitted += len(items) - room
            self._refused += len(items) - room
        return room

    def discard(self, unwanted: Callable[[T], bool]) -> int:
        """Forget the waiting elements that nobody wants any more; returns how many they were."""
        before = self._count
        wanted = [
            one._replace(items=[item for item in one.items if not unwanted(item)]) for one in self._waiting.elements()
        ]
        kept = [one for one in wanted if one.items]
        self._count = len(items(kept))
        self._weight = sum(each(kept, "weight")) if self._weighs else 0.0
        self._use(self._policy, kept)
        return before - self._count

    def release(self, now: float, flush: bool = False, room: Room | None = None) -> Released[T]:
        """Return what a free device should run now.

        Args:
            now: the time, in seconds.
            flush: whether nothing more is to come, so that what is left over runs next.
            room: for a device that runs some already, what may join them; nothing if nothing fits.
        """
        batch, shed, reason = self._waiting.choose(now, flush, room)
        taken, gone = items(batch), items(shed)
        self._count -= len(taken) + len(gone)
        self._shed += len(gone)
        if self._weighs:
            self._weight -= sum(each(shed, "weight")) + sum(each(batch, "weight"))
        if not taken:
            return Released(taken, gone, reason)
        self._released += len(taken)
        self._batches[reason] += 1
        size = self._sizing.padded(len(taken))
        weight = self._weigh(each(batch, "weight"), size) if self._weighs else 0.0
        return Released(taken, gone, reason, size, weight, min([one.arrival for one in batch]))

    def backlog(self) -> Backlog:
        """Return what waits, in summary."""
        waiting = self._waiting.elements()
        return Backlog(
            self._count,
            sum(one.weight * len(one.items) for one in waiting),
            min((one.arrival for one in waiting), default=math.inf),
            min((one.deadline for one in waiting), default=math.inf),
        )

    def finish(self, size: int, seconds: float, weight: float = 0.0) -> None:
        """Learn that a batch of this size and weight took so many seconds."""
        self._cost.observe(size, seconds, weight)

    def statistics(self) -> SchedulerStatistics:
        """Return the counts so far."""
        return SchedulerStatistics(
            self._submitted,
            self._released,
            self._refused,
            self._shed,
            len(self),
            self._admission.seconds(len(self), self._weight),
            dict(self._batches),
        )

    def _weigh(self, weights: Sequence[float], size: int) -> float:
        return size * max(weights) if self._policy.length_fn else sum(weights)
