"""Which elements share a batch that is padded to its longest."""

from __future__ import annotations

import math
from bisect import insort
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from contbatch.transforms.batching.cost import CostModel
from contbatch.transforms.batching.policy import BatchPolicy, Reason
from contbatch.transforms.batching.queue import Choice, DeadlineQueue, Room, Waiting
from contbatch.transforms.batching.sizing import Sizing

T = TypeVar("T")
Array = NDArray[Any]

_LEAST_SHARE = 1e-3
"""Of the fixed cost, what the longest element is taken to cost where length seems to cost nothing, and the reverse."""


class ByLength(Generic[T]):
    """Out of a bounded pool of the most urgent, sorted by length, the batch with the least *regret* is taken.

    Any element costs something: its own length, and its part of the fixed cost of a full batch. Regret is what a
    batch costs beyond that: padding, and the empty places that also share the fixed cost. Choosing the least regret
    per element takes good batches at any length, where the least cost per element would take the shortest elements
    and be left with the longest ones, of all lengths, in the end.

    The most urgent element is in the batch once it cannot wait for another one.
    """

    def __init__(self, policy: BatchPolicy, cost: CostModel) -> None:
        self._policy = policy
        self._cost = cost
        self._sizing = Sizing(policy, cost)
        self._queue: DeadlineQueue[T] = DeadlineQueue()
        self._pool: list[Waiting[T]] = []

    def __len__(self) -> int:
        return len(self._queue) + len(self._pool)

    def add(self, waiting: Waiting[T]) -> None:
        """Let an element wait."""
        self._queue.push(waiting)

    def elements(self) -> list[Waiting[T]]:
        """Return all that wait, in no order."""
        return self._queue.elements() + self._pool

    def choose(self, now: float, flush: bool, room: Room | None = None) -> Choice[T]:
        """Remove and return the next batch, and what cannot be answered.

        Raises:
            ValueError: ``room`` is given: a padded batch is never joined.
        """
        if room is not None:
            raise ValueError("a batch by length_fn is not joined while it runs; use weight_fn and max_weight")
        shed: list[Waiting[T]] = []
        while hopeless := self._fill(now):
            self._remove(hopeless)
            shed += hopeless
        if not self._pool:
            return Choice([], shed, Reason.IDLE_DEVICE)
        full = len(self._pool) >= self._policy.pool
        head, best = min(self._pool), self._best()
        batch = self._in_time(best, now)
        reason = Reason.DEADLINE if len(batch) < len(best) else Reason.SIZE if full else Reason.IDLE_DEVICE
        if not self._can_wait(head, batch, now):
            batch = self._in_time(self._best(head), now, head)
            reason = Reason.DELAY if head.deadline == math.inf else Reason.DEADLINE
        self._remove(batch)
        return Choice(batch, shed, reason)

    def _fill(self, now: float) -> list[Waiting[T]]:
        """Fill the pool, and return what of it could not be answered even alone."""
        for one in self._queue.take(self._policy.pool - len(self._pool)):
            insort(self._pool, one, key=_length)
        if all(one.deadline == math.inf for one in self._pool):
            return []
        return [one for one in self._pool if one.deadline - now < self._seconds([one])]

    def _can_wait(self, head: Waiting[T], batch: list[Waiting[T]], now: float) -> bool:
        """Whether the head will be in time even if this batch runs first, or with it."""
        if any(one is head for one in batch):
            return True
        seconds = self._upper(batch) + self._upper([head])
        if head.deadline < math.inf and now + seconds > head.deadline:
            return False
        return now + self._seconds(batch) < head.arrival + self._policy.max_delay

    def _seconds(self, batch: list[Waiting[T]]) -> float:
        return self._cost.expected(*self._load(batch))

    def _upper(self, batch: list[Waiting[T]]) -> float:
        return self._cost.upper(*self._load(batch))

    def _load(self, batch: list[Waiting[T]]) -> tuple[int, float]:
        """Return the size and the weight that the device runs."""
        size = self._sizing.padded(len(batch))
        return size, size * batch[-1].weight

    def _remove(self, waiting: list[Waiting[T]]) -> None:
        gone = {one.number for one in waiting}
        self._pool = [one for one in self._pool if one.number not in gone]

    def _in_time(self, batch: list[Waiting[T]], now: float, head: Waiting[T] | None = None) -> list[Waiting[T]]:
        """Return a batch without its longest elements, as far as it would be late with them; the head stays."""
        longest = self._sizing.longest
        if longest == math.inf and all(one.deadline == math.inf for one in batch):
            return batch
        batch = list(batch)
        while len(batch) > self._policy.min_size:
            slack = min(longest, min([one.deadline for one in batch]) - now)
            if self._upper(batch) <= slack:
                break
            del batch[0 if batch[-1] is head else -1]
        return batch

    def _best(self, head: Waiting[T] | None = None) -> list[Waiting[T]]:
        """Return the batch with the least regret per element, by length; the head is in it if one is given."""
        lengths = np.array([one.weight for one in self._pool])
        start, end = np.ogrid[: len(lengths), : min(self._policy.max_size, len(lengths))]
        end = start + end + 1  # batch (i, k): the elements from i on, k + 1 of them
        inside = end <= len(lengths)
        end = np.minimum(end, len(lengths))
        size, padded = end - start, (end - start) * lengths[end - 1]
        inside &= (size == 1) | (padded <= (self._policy.max_weight or np.inf))
        if head is not None:
            at = next(k for k, one in enumerate(self._pool) if one is head)
            inside &= (start <= at) & (at < end)
        regret = np.where(inside, self._regret(lengths, size, padded, start, end), np.inf)
        first, last = divmod(int(regret.argmin()), regret.shape[1])
        return self._pool[first : first + last + 1]

    def _regret(self, lengths: Array, size: Array, padded: Array, start: Array, end: Array) -> Array:
        """Return the regret per element of the batches from ``start`` to ``end``."""
        fixed, _, per_length = self._cost.parameters
        longest = float(lengths[-1]) or 1.0
        if not (fixed or per_length):
            fixed = 1.0
        fixed = max(fixed, _LEAST_SHARE * per_length * longest)
        per_length = max(per_length, _LEAST_SHARE * fixed / longest)
        sums = np.concatenate([[0.0], np.cumsum(lengths)])
        padding = padded - (sums[end] - sums[start])
        return (fixed * (1 - size / self._policy.max_size) + per_length * padding) / size


def _length(one: Waiting[Any]) -> float:
    return one.weight
