"""Whether a series of samples is flat. Pure."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

GROWTH = 0.05
"""What a flat series may grow by from the median of its second quarter to that of its last, of the former ..."""
SLACK = {"memory": 20e6, "checkpoint": 1e6}
"""... or by so many bytes, if that is more: a heap's own grain."""


def growth(samples: Sequence[float]) -> tuple[float, float]:
    """Return the medians of the second and the last quarter of samples that are evenly spaced; the first is warm-up.

    Raises:
        ValueError: there are fewer than eight, so a quarter has no two.
    """
    count = len(samples)
    if count < 8:
        raise ValueError(f"{count} samples say nothing of a slope; take 8 or more")
    return statistics.median(samples[count // 4 : count // 2]), statistics.median(samples[3 * count // 4 :])


def bound(before: float, kind: str) -> float:
    """Return the largest median of the last quarter that is flat after one of the second quarter."""
    return before + max(GROWTH * before, SLACK[kind])


def versions(updates: int) -> int:
    """Return how many versions a store keeps of so many updates at the most.

    All whose age is less than 128 updates, 64 for each time that this doubles, the two at the edge of each of these
    stretches, and 32 that came since old ones were thinned out last.
    """
    doubled = math.ceil(max(0.0, math.log2(max(updates, 1) / 128)))
    return 128 + (64 + 2) * doubled + 32
