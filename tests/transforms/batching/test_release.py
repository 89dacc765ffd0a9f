"""When something is due: tables of what a scripted trace becomes, with a clock that is set by hand.

The device takes 10 ms and 0.5 ms an element.
"""

from __future__ import annotations

import math
from typing import Any

import pytest

from contbatch.transforms.batching import BatchPolicy, CostModel, Reason, Scheduler
from contbatch.transforms.batching.release import Backlog, ReleaseRule


def known_device(a: float = 0.010, b: float = 0.0005) -> CostModel:
    model = CostModel()
    for size in (1, 8, 16, 32) * 6:
        model.observe(size, a + b * size)
    return model


def trace(policy: BatchPolicy, times: list[float], cost: CostModel | None = None) -> list[tuple[float, int, Reason]]:
    """Run a trace in steps of a millisecond before a device that is always free; returns time, size and reason."""
    cost = cost or known_device()
    scheduler: Scheduler[float] = Scheduler(policy, cost)
    rule, released, left = ReleaseRule(policy, cost), [], sorted(times)
    for milliseconds in range(10_000):
        now = milliseconds / 1000
        while left and left[0] <= now:
            weight = policy.weight_fn(left[0]) if policy.weight_fn else 0.0
            scheduler.submit(left.pop(0), now, weight=weight)
        while reason := rule.due(scheduler.backlog(), now):
            done = scheduler.release(now)
            because = reason if done.reason is Reason.IDLE_DEVICE else done.reason
            released.append((now, len(done.batch), because))
    assert not left
    return released


EVERY_10_MS = [number / 100 for number in range(10)]


@pytest.mark.parametrize(
    ("bounds", "expected"),
    [
        # four are there at 30 and 70 ms; the last two, of 80 and 90 ms, wait their second
        ({"max_size": 4}, [(0.030, 4, Reason.SIZE), (0.070, 4, Reason.SIZE), (1.080, 2, Reason.DELAY)]),
        # the first waits until 25 ms, with those of 10 and 20; that of 30 until 55; that of 60 until 85, and 90
        (
            {"max_delay": 0.025},
            [(0.025, 3, Reason.DELAY), (0.055, 3, Reason.DELAY), (0.085, 3, Reason.DELAY), (0.115, 1, Reason.DELAY)],
        ),
        # without delay each leaves by itself
        ({"max_delay": 0.0}, [(time, 1, Reason.DELAY) for time in EVERY_10_MS]),
        # weights 1 each, and 3 at most
        (
            {"max_weight": 3.0, "weight_fn": lambda _: 1.0},
            [(0.020, 3, Reason.WEIGHT), (0.050, 3, Reason.WEIGHT), (0.080, 3, Reason.WEIGHT), (1.090, 1, Reason.DELAY)],
        ),
        # 10 ms of 10 + 0.5 n are 0.79 of it where n = 5.3: six are as good
        ({"target_overhead": 0.79}, [(0.050, 6, Reason.SIZE), (1.060, 4, Reason.DELAY)]),
        # 12.1 ms are enough for 4
        (
            {"max_seconds": 0.0121},
            [(0.030, 4, Reason.SIZE), (0.070, 4, Reason.SIZE), (1.080, 2, Reason.DELAY)],
        ),
    ],
)
def test_a_trace_becomes_these_batches(bounds: dict[str, Any], expected: list[tuple[float, int, Reason]]) -> None:
    released = trace(BatchPolicy(**bounds), EVERY_10_MS)
    assert [(size, reason) for _, size, reason in released] == [(size, reason) for _, size, reason in expected]
    # a wait that runs out between two steps is seen at the next one
    assert [time for time, _, _ in released] == pytest.approx([time for time, _, _ in expected], abs=0.0011)


def test_a_deadline_is_met_with_as_many_as_still_fit() -> None:
    """100 ms; ten of them, of 0 to 90 ms, take 15 ms: with one more, 15.5 ms, the first has to start by 84.5 ms.

    By then nine are there, for whom it is 85 ms. The tenth, of 90 ms, has until 189 ms less 11 for two.
    """
    (first, count, reason), (second, rest, _) = trace(BatchPolicy(latency_slo=0.1), EVERY_10_MS)
    assert (count, reason, rest) == (9, Reason.DEADLINE, 1)
    assert first == pytest.approx(0.085, abs=0.002)
    assert second == pytest.approx(0.179, abs=0.002)


def test_a_pool_by_length_releases_when_it_is_full() -> None:
    rule = ReleaseRule(BatchPolicy(2, length_fn=float, pool_size=5), CostModel())
    assert rule.due(Backlog(4, 4.0, 0.0), 0.0) is None
    assert rule.due(Backlog(5, 5.0, 0.0), 0.0) is Reason.SIZE


def test_the_most_weight_is_not_asked_of_lengths() -> None:
    """Four of length 3 are 12 as a batch, and 12 of a pool of 16 are not a batch."""
    rule = ReleaseRule(BatchPolicy(2, length_fn=float, pool_size=16, max_weight=6.0), CostModel())
    assert rule.due(Backlog(4, 12.0, 0.0), 0.0) is None


def test_nothing_is_never_due() -> None:
    rule = ReleaseRule(BatchPolicy(max_delay=0.0), CostModel())
    assert rule.due(Backlog(), 5.0) is None
    assert rule.next_time(Backlog(), 5.0) == math.inf
    assert Backlog().plus(Backlog(2, 3.0, 1.0, 4.0)) == Backlog(2, 3.0, 1.0, 4.0)
