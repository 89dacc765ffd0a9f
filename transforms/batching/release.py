"""When to release a batch, where more could be waited for."""

from __future__ import annotations

import math
from typing import NamedTuple

from contbatch.transforms.batching.cost import CostModel
from contbatch.transforms.batching.policy import BatchPolicy, Reason
from contbatch.transforms.batching.sizing import Sizing


class Backlog(NamedTuple):
    """What waits, in summary.

    Attributes:
        size: elements.
        weight: their total weight.
        arrival: when the oldest came, in seconds.
        deadline: the tightest deadline, in seconds.
    """

    size: int = 0
    weight: float = 0.0
    arrival: float = math.inf
    deadline: float = math.inf

    def plus(self, other: Backlog) -> Backlog:
        """Return the summary of both."""
        return Backlog(
            self.size + other.size,
            self.weight + other.weight,
            min(self.arrival, other.arrival),
            min(self.deadline, other.deadline),
        )


class ReleaseRule:
    """Whether what waits is to be released, or when to look again: the first bound of the policy that is reached."""

    def __init__(self, policy: BatchPolicy, cost: CostModel) -> None:
        self._policy = policy
        self._cost = cost
        self._sizing = Sizing(policy, cost)

    def due(self, backlog: Backlog, now: float) -> Reason | None:
        """Return why a batch is to be released now, or ``None``."""
        policy, waiting = self._policy, backlog.size
        if not waiting:
            return None
        if waiting >= (policy.pool or self._sizing.enough()):
            return Reason.SIZE
        if policy.max_weight is not None and not policy.length_fn and backlog.weight >= policy.max_weight:
            return Reason.WEIGHT
        if now >= backlog.arrival + policy.max_delay:
            return Reason.DELAY
        if backlog.deadline < math.inf and now >= self._latest(backlog):
            return Reason.DEADLINE
        return None

    def next_time(self, backlog: Backlog, now: float) -> float:
        """Return when, in seconds and not before now, something is due even if nothing more comes."""
        if not backlog.size:
            return math.inf
        return max(now, min(backlog.arrival + self._policy.max_delay, self._latest(backlog)))

    def _latest(self, backlog: Backlog) -> float:
        """Return when one element more would be too late for the tightest deadline."""
        if backlog.deadline == math.inf:
            return math.inf
        size = min(backlog.size + 1, self._policy.max_size)
        return backlog.deadline - self._cost.upper(size, backlog.weight / backlog.size * size)
