"""Which elements share a batch when the most urgent go first."""

from __future__ import annotations

import math
from itertools import accumulate
from typing import Generic, TypeVar

from contbatch.transforms.batching.cost import CostModel
from contbatch.transforms.batching.policy import BatchPolicy, Reason
from contbatch.transforms.batching.queue import Choice, DeadlineQueue, Room, Waiting, each, first
from contbatch.transforms.batching.sizing import Sizing

T = TypeVar("T")


class ByUrgency(Generic[T]):
    """The most urgent elements, as many as the tightest deadline among them allows.

    An element that could not be answered even alone is shed. When a full batch waits and the head's slack allows only
    a smaller one, the head is shed if that smaller batch would cost the others more than one answer (early drop, Shen
    et al., *Nexus*, SOSP 2019; earliest deadline first with deferral, *Symphony*, 2023).
    """

    def __init__(self, policy: BatchPolicy, cost: CostModel) -> None:
        self._policy = policy
        self._cost = cost
        self._sizing = Sizing(policy, cost)
        self._queue: DeadlineQueue[T] = DeadlineQueue()
        self.add = self._queue.push

    def __len__(self) -> int:
        return len(self._queue)

    def elements(self) -> list[Waiting[T]]:
        """Return all that wait, in no order."""
        return self._queue.elements()

    def choose(self, now: float, flush: bool, room: Room | None = None) -> Choice[T]:
        """Remove and return the next batch, and what cannot be answered; with ``room``, what fits beside others."""
        shed = self._hopeless_heads(now)
        most = self._policy.max_size if room is None else room.size
        count = min(most, len(self._queue))
        batch = self._queue.take(most)
        reason = Reason.SIZE if count == most else Reason.IDLE_DEVICE
        sums = list(accumulate(each(batch, "weight"))) if self._policy.weight_fn else []
        heaviest = self._policy.max_weight if room is None else room.weight
        if heaviest is not None and sums:
            fitting = max(room is None, sum([weight <= heaviest for weight in sums]))
            if fitting < count:
                reason, count = Reason.WEIGHT, fitting
                batch = self._keep(batch, fitting)
        tightest = min([one.deadline for one in batch], default=math.inf)
        if batch and (tightest < math.inf or self._policy.max_seconds):
            if tightest - now < self._sizing.alone():  # by its priority it was less urgent than its deadline says
                late = [one for one in batch if one.deadline - now < self._sizing.alone(one.weight)]
                batch = [one for one in batch if one.deadline - now >= self._sizing.alone(one.weight)]
                shed += late
                sums = list(accumulate(each(batch, "weight"))) if sums else sums
                count = sum([len(one.items) for one in batch])
            size = self._in_time(batch, sums, now)
            if size < count:
                reason, count = Reason.DEADLINE, size
                batch = self._keep(batch, size)
        if batch and self._policy.allowed_sizes:
            taken = self._sizing.static([deadline - now for deadline in each(batch, "deadline")], sums, flush)
            if taken < count:
                reason = Reason.SIZE
                batch = self._keep(batch, taken)
        return Choice(batch, shed, reason)

    def _keep(self, batch: list[Waiting[T]], size: int) -> list[Waiting[T]]:
        """Return the first elements of a batch; the others wait again."""
        batch, others = first(batch, size)
        for one in others:
            self._queue.push(one)
        return batch

    def _in_time(self, batch: list[Waiting[T]], sums: list[float], now: float) -> int:
        """Return how many of the first meet the tightest deadline among them."""
        deadlines = each(batch, "deadline")
        end = len(deadlines)
        while end:
            tightest = min(deadlines[:end])
            at = deadlines.index(tightest)
            size = self._sizing.most(tightest - now, end, sums)
            if size > at:
                return size
            end = at  # the tightest one comes too late in the order to bind the others
        return 0

    def _hopeless_heads(self, now: float) -> list[Waiting[T]]:
        """Remove and return the heads that cannot be answered, or for whom a full queue would lose more than one."""
        queue, shed = self._queue, []
        together = None
        while queue:
            slack = queue.head.deadline - now
            if slack == math.inf:
                break
            gone = len(queue.head.items)
            if slack >= self._sizing.alone(queue.head.weight):
                if len(queue) < self._policy.max_size:
                    break
                if together is None:
                    together = self._slack_when_full()
                if slack >= together:
                    break
                gone = min(gone, len(queue) - self._policy.max_size + 1)
            shed += queue.take(gone)
        return shed

    def _slack_when_full(self) -> float:
        """Return the slack that a head needs to be worth a batch smaller than ``max_size``, in seconds.

        With batches of s instead of m elements, ``m * T(s) / T(m) - s`` answers are lost. For ``T(n) = a + b * n``
        that is more than one where ``s < m - T(m) / a``.
        """
        most, (fixed, _, _) = self._policy.max_size, self._cost.parameters
        if fixed == 0.0:
            return 0.0
        size = max(1, math.ceil(most - self._cost.expected(most) / fixed))
        return self._cost.upper(size)
