"""How much may wait."""

from __future__ import annotations

import math

from contbatch.transforms.batching.cost import CostModel
from contbatch.transforms.batching.policy import BatchPolicy


class Admission:
    """Bounds what waits, in elements and in seconds of work.

    Seconds are what backpressure is about: a queue of a hundred long elements is not one of a hundred short ones, and
    both are shorter on a quicker device. The idea is that of Flink's buffer debloating, with the cost model in place
    of a measured throughput.
    """

    def __init__(self, policy: BatchPolicy, cost: CostModel) -> None:
        self._policy = policy
        self._cost = cost

    def seconds(self, waiting: int, weight: float = 0.0) -> float:
        """Return what so many elements of that total weight take in full batches; 0 before any batch was seen."""
        fixed, each, per_weight = self._cost.parameters
        return waiting * (fixed / self._policy.max_size + each) + weight * per_weight

    def room(self, waiting: int, weight: float = 0.0, running: float = 0.0) -> int:
        """Return how many more elements of the mean weight may wait; below 0, how many are too many.

        Args:
            waiting: elements that wait.
            weight: their total weight.
            running: seconds that the batch on the device still takes.
        """
        room = self._policy.most_waiting - waiting
        bound = self._policy.capacity_seconds
        if bound is not None:
            work = self.seconds(waiting, weight) if waiting else 0.0
            each = work / waiting if waiting else self.seconds(1)
            if each > 0:
                free = math.floor((bound - running - work) / each)
                # a device that has nothing to do takes one, however long it is
                room = min(room, free if waiting or running else max(free, 1))
        return room
