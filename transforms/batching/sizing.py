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

    def most(self, slack: float, waiting: int, weight: float = 0.0) -> int:
        """Return the largest size, up to those that wait and weigh so much together, to finish within the slack."""
        slack = min(slack, self._policy.max_seconds or math.inf)
        if slack == math.inf:
            return waiting
        size = self._cost.largest(slack, waiting, weight / waiting)
        return max(size, min(self._policy.min_size, waiting))

    def static(self, slacks: Sequence[float], flush: bool) -> int:
        """Choose between padding up to an allowed size and leaving a remainder, by the cost of a useful element.

        Args:
            slacks: seconds until each of the elements that could be in the batch must be answered, by urgency.
            flush: whether what is left over runs next, and not together with others.

        Returns:
            how many elements to take; the batch is padded to the next allowed size.
        """
        cost, sizes, waiting = self._cost, self._policy.allowed_sizes, len(slacks)
        usable = [size for size in sizes if cost.upper(size) <= slacks[0]] or [sizes[0]]
        if waiting >= usable[-1]:
            return usable[-1]
        up = next(size for size in usable if size >= waiting)
        down = max((size for size in usable if size < waiting), default=0)
        if up == waiting or not down:
            return waiting
        rest = next(size for size in sizes if size >= waiting - down)
        if slacks[down] < math.inf and cost.upper(down) + cost.upper(rest) > slacks[down]:
            return waiting
        padded, cut = cost.expected(up), cost.expected(down)
        if flush:
            return waiting if padded <= cut + cost.expected(rest) else down
        return waiting if padded / waiting <= cut / down else down
