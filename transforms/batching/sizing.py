"""How large a batch should be, by what it costs and by the sizes that the device knows."""

from __future__ import annotations

import math
from collections.abc import Sequence

from contbatch.transforms.batching.cost import CostModel
from contbatch.transforms.batching.policy import BatchPolicy


class Sizing:
    """Sizes of batches under a policy, by a cost model."""

    def __init__(self, policy: BatchPolicy, cost: CostModel) -> None:
        self._policy = policy
        self._cost = cost
        self.longest = policy.max_seconds or math.inf
        """Most seconds that a batch may run."""

    def enough(self) -> int:
        """Return the size that is worth waiting for: full, or as large as the policy's goals for a batch allow."""
        policy, overhead, size = self._policy, self._policy.target_overhead, self._policy.max_size
        if policy.max_seconds is not None:
            size = self.most(policy.max_seconds, size)
        if overhead is not None:
            fixed, each, _ = self._cost.parameters
            if each > 0.0:  # a / (a + b * n) = overhead
                size = max(policy.min_size, min(size, math.ceil(fixed * (1 - overhead) / (overhead * each))))
        return size

    def padded(self, size: int) -> int:
        """Return what the device runs for so many elements: the next allowed size, if sizes are bound."""
        if not self._policy.allowed_sizes:
            return size
        return next(allowed for allowed in self._policy.allowed_sizes if allowed >= size)

    def alone(self, weight: float = 0.0) -> float:
        """Return what an element of that weight takes by itself, in seconds."""
        return self._cost.expected(self.padded(1), weight)

    def most(self, slack: float, waiting: int, sums: Sequence[float] = ()) -> int:
        """Return how many of those that wait finish within the slack.

        Args:
            slack: seconds.
            waiting: how many wait.
            sums: what the first, the first two and so on weigh together; empty if weight costs nothing.
        """
        slack = min(slack, self.longest)
        if slack == math.inf:
            return waiting
        least = min(self._policy.min_size, waiting)
        size = self._cost.largest(slack, waiting, sums[waiting - 1] / waiting if sums else 0.0)
        while sums and size > least and self._cost.upper(size, sums[size - 1]) > slack:
            size -= 1
        return max(size, least)

    def static(self, slacks: Sequence[float], sums: Sequence[float], flush: bool) -> int:
        """Choose between padding up to an allowed size and leaving a remainder, by the cost of a useful element.

        Args:
            slacks: seconds until each of the elements that could be in the batch must be answered, by urgency.
            sums: what the first, the first two and so on weigh together; empty if weight costs nothing.
            flush: whether what is left over runs next, and not together with others.

        Returns:
            how many elements to take; the batch is padded to the next allowed size.
        """
        cost, sizes, waiting = self._cost, self._policy.allowed_sizes, len(slacks)

        def weight(first: int) -> float:
            return sums[min(first, waiting) - 1] if sums else 0.0

        usable = [n for n in sizes if cost.upper(n, weight(n)) <= min(self.longest, *slacks[:n])] or [sizes[0]]
        if waiting >= usable[-1]:
            return usable[-1]
        up = next(size for size in usable if size >= waiting)
        down = max((size for size in usable if size < waiting), default=0)
        if up == waiting or not down:
            return waiting
        rest, rest_weight = self.padded(waiting - down), weight(waiting) - weight(down)
        if cost.upper(down, weight(down)) + cost.upper(rest, rest_weight) > min(slacks[down:]):
            return waiting
        padded, cut = cost.expected(up, weight(waiting)), cost.expected(down, weight(down))
        if flush:
            return waiting if padded <= cut + cost.expected(rest, rest_weight) else down
        return waiting if padded / waiting <= cut / down else down
