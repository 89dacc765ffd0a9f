"""What a trace becomes where a timer fires at the time that the rule names, on a clock that is moved by hand.

The device takes 10 ms + 0.5 ms * n, is known exactly, and is always free.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contbatch.transforms.batching import BatchPolicy, CostModel, Reason, Scheduler
from contbatch.transforms.batching.release import Backlog, ReleaseRule
from contbatch.transforms.testing import ManualClock
from tests.transforms.batching.devices import Line

DEVICE = Line(0.010, 0.0005)
Row = tuple[float, list[int], Reason]
"""When a batch was released, in milliseconds, who is in it, and why."""


def timed(
    policy: BatchPolicy, times: list[float], cost: CostModel = DEVICE, weights: list[float] | None = None
) -> tuple[list[Row], list[int]]:
    """Let elements come at these times, and fire the timer in between; returns the batches, and who was shed."""
    clock, rule = ManualClock(), ReleaseRule(policy, cost)
    scheduler: Scheduler[int] = Scheduler(policy, cost)
    rows: list[Row] = []
    shed: list[int] = []

    def run() -> None:
        while reason := rule.due(scheduler.backlog(), clock()):
            done = scheduler.release(clock())
            shed.extend(done.shed)
            because = reason if done.reason is Reason.IDLE_DEVICE else done.reason
            rows.append((round(clock() * 1000, 6), done.batch, because))

    def wait_until(time: float) -> None:
        while (at := rule.next_time(scheduler.backlog(), clock())) < time:
            clock.advance(at - clock())
            run()

    for number, time in enumerate(times):
        wait_until(time)
        clock.advance(max(0.0, time - clock()))
        assert scheduler.submit(number, clock(), weight=weights[number] if weights else 0.0)
        run()
    wait_until(math.inf)
    if scheduler:
        rows.append((math.inf, scheduler.release(clock(), flush=True).batch, Reason.DRAIN))
    return rows, shed


TEN = [number / 100 for number in range(10)]
"""One each 10 ms, from 0 to 90 ms."""


@pytest.mark.parametrize(
    ("bounds", "expected"),
    [
        # 4 are there at 30 and at 70 ms; the others came at 80 and 90 ms
        ({"max_size": 4}, [(30, 4, Reason.SIZE), (70, 4, Reason.SIZE), (1080, 2, Reason.DELAY)]),
        (
            {"max_size": 4, "max_delay": math.inf},
            [(30, 4, Reason.SIZE), (70, 4, Reason.SIZE), (math.inf, 2, Reason.DRAIN)],
        ),
        # those of 0, 10 and 20 ms; of 30, 40 and 50; of 60, 70 and 80; of 90
        (
            {"max_delay": 0.025},
            [(25, 3, Reason.DELAY), (55, 3, Reason.DELAY), (85, 3, Reason.DELAY), (115, 1, Reason.DELAY)],
        ),
        # without delay each leaves by itself
        ({"max_delay": 0.0}, [(10 * number, 1, Reason.DELAY) for number in range(10)]),
        # 9 are there at 80 ms, and must start by 100 - 15 ms for a tenth; that came at 90 ms, and has until 190 - 11 ms
        ({"latency_slo": 0.1}, [(85, 9, Reason.DEADLINE), (179, 1, Reason.DEADLINE)]),
        # 5 are enough: 10 * 0.2 / (0.8 * 0.5) = 5
        ({"target_overhead": 0.8}, [(40, 5, Reason.SIZE), (90, 5, Reason.SIZE)]),
        # 10 * 0.21 / (0.79 * 0.5) = 5.3: six are as good
        ({"target_overhead": 0.79}, [(50, 6, Reason.SIZE), (1060, 4, Reason.DELAY)]),
        # 4 take 12 ms
        ({"max_seconds": 0.0121}, [(30, 4, Reason.SIZE), (70, 4, Reason.SIZE), (1080, 2, Reason.DELAY)]),
        ({"allowed_sizes": (4, 8)}, [(70, 8, Reason.SIZE), (1080, 2, Reason.DELAY)]),
        # a pool of 6 is full at 50 ms, and again with the 2 that are left and 4 more, at 90 ms
        (
            {"max_size": 4, "length_fn": float, "pool_size": 6},
            [(50, 4, Reason.SIZE), (90, 4, Reason.SIZE), (1080, 2, Reason.DELAY)],
        ),
        # 1 each, and 3 at most
        (
            {"weight_fn": float, "max_weight": 3.0},
            [(20, 3, Reason.WEIGHT), (50, 3, Reason.WEIGHT), (80, 3, Reason.WEIGHT), (1090, 1, Reason.DELAY)],
        ),
    ],
)
def test_a_trace_becomes_these_batches(bounds: dict[str, Any], expected: list[tuple[float, int, Reason]]) -> None:
    weights = [1.0] * 10 if "weight_fn" in bounds or "length_fn" in bounds else None
    rows, shed = timed(BatchPolicy(**bounds), TEN, weights=weights)
    assert [(time, len(batch), reason) for time, batch, reason in rows] == expected
    assert shed == []


def test_of_too_much_weight_the_last_one_waits_on() -> None:
    """3 + 3, and with 3 more it is 9 of at most 7 at 20 ms; the third waits, and leaves with the fourth at 40 ms."""
    rows, _ = timed(BatchPolicy(8, max_weight=7.0, weight_fn=float), TEN[:6], weights=[3, 3, 3, 3, 3, 0])
    assert rows == [(20, [0, 1], Reason.WEIGHT), (40, [2, 3], Reason.WEIGHT), (1040, [4, 5], Reason.DELAY)]


@given(
    st.lists(st.sampled_from([0.0, 0.001, 0.0105, 0.04, 0.2]), max_size=30),
    st.integers(1, 6),
    st.sampled_from([0.0, 0.03, 1.0]),
    st.sampled_from([None, 0.014, 0.05]),
)
def test_nothing_waits_beyond_its_delay_and_all_are_in_time_and_as_late_as_can_be(
    gaps: list[float], size: int, delay: float, slo: float | None
) -> None:
    """6 take 13 ms, so that any batch can be in time."""
    times = [sum(gaps[: number + 1]) for number in range(len(gaps))]
    rows, shed = timed(BatchPolicy(size, delay, latency_slo=slo), times)
    assert [number for _, batch, _ in rows for number in batch] == list(range(len(times)))
    assert shed == []
    for milliseconds, batch, reason in rows:
        now, first = milliseconds / 1000, times[batch[0]]
        latest = first + slo - DEVICE.upper(min(len(batch) + 1, size)) if slo else math.inf
        assert now <= first + delay + 1e-6
        assert now + DEVICE.upper(len(batch)) <= first + (slo or math.inf) + 1e-6
        assert len(batch) == size or now >= min(first + delay, latest) - 1e-6
        assert reason in {Reason.SIZE, Reason.DELAY, Reason.DEADLINE}


def rule(cost: CostModel, **bounds: Any) -> ReleaseRule:
    return ReleaseRule(BatchPolicy(**bounds), cost)


def test_at_the_very_end_of_the_delay_a_batch_is_due() -> None:
    ours, backlog = rule(DEVICE, max_delay=0.5), Backlog(2, arrival=2.0)
    assert (ours.next_time(backlog, 2.1), ours.next_time(backlog, 7.0)) == (2.5, 7.0)
    assert (ours.due(backlog, 2.25), ours.due(backlog, 2.5)) == (None, Reason.DELAY)


@pytest.mark.parametrize(
    ("bounds", "backlog", "latest"),
    [
        ({}, Backlog(2, 0.0, 0.0, 20.0), 16.0),  # for 3: 1 + 3 s
        ({"max_size": 3}, Backlog(2, 0.0, 0.0, 20.0), 16.0),
        ({"weight_fn": float}, Backlog(2, 4.0, 0.0, 20.0), 10.0),  # for 3 of weight 2: 1 + 3 + 6 s
        ({"length_fn": float, "max_size": 2}, Backlog(5, 10.0, 0.0, 20.0), 13.0),  # for 2 of length 2: 1 + 2 + 4 s
    ],
)
def test_a_batch_is_due_when_one_element_more_would_be_too_late(
    bounds: dict[str, Any], backlog: Backlog, latest: float
) -> None:
    """1 s + 1 s * n + 1 s * weight."""
    ours = rule(Line(1.0, 1.0, 1.0), max_delay=math.inf, **bounds)
    assert ours.next_time(backlog, 0.0) == latest
    assert (ours.due(backlog, latest - 0.5), ours.due(backlog, latest)) == (None, Reason.DEADLINE)


def test_what_one_element_more_may_take_counts_not_what_is_expected() -> None:
    """1 s + 1 s * n, and up to a quarter more: for 3 up to 5 s."""
    assert rule(Line(1.0, 1.0, doubt=0.25), max_delay=math.inf).next_time(Backlog(2, 0.0, 0.0, 20.0), 0.0) == 15.0


def test_before_any_batch_was_seen_what_has_a_deadline_is_due_at_once_and_the_rest_after_its_delay() -> None:
    ours = rule(CostModel(), max_delay=0.5)
    assert ours.due(Backlog(1, 0.0, 2.0, 9.0), 2.0) is Reason.DEADLINE
    assert ours.next_time(Backlog(1, 0.0, 2.0, 9.0), 2.0) == 2.0
    assert ours.next_time(Backlog(1, 0.0, 2.0), 2.0) == 2.5


def test_of_several_reasons_the_first_is_given() -> None:
    """Size, weight, delay and deadline are all reached; without one after the other, the next is given."""
    ours = rule(DEVICE, max_size=4, weight_fn=float, max_weight=7.0, max_delay=1.0)
    backlogs = (
        Backlog(4, 7.0, 0.0, 1.0),
        Backlog(3, 7.0, 0.0, 1.0),
        Backlog(3, 6.9, 0.0, 1.0),
        Backlog(3, 6.9, 0.1, 1.0),
    )
    assert [ours.due(backlog, 1.0) for backlog in backlogs] == [
        Reason.SIZE,
        Reason.WEIGHT,
        Reason.DELAY,
        Reason.DEADLINE,
    ]


def test_backlogs_add_up() -> None:
    both = Backlog(2, 3.0, 5.0, 9.0).plus(Backlog(1, 0.5, 4.0, 10.0))
    assert both == Backlog(1, 0.5, 4.0, 10.0).plus(Backlog(2, 3.0, 5.0, 9.0)) == Backlog(3, 3.5, 4.0, 9.0)


def test_a_pool_by_length_releases_when_it_is_full() -> None:
    ours = rule(CostModel(), max_size=2, length_fn=float, pool_size=5)
    assert ours.due(Backlog(4, 4.0, 0.0), 0.0) is None
    assert ours.due(Backlog(5, 5.0, 0.0), 0.0) is Reason.SIZE


def test_the_most_weight_is_not_asked_of_lengths() -> None:
    """Four of length 3 are 12 as a batch, and 12 of a pool of 16 are not a batch."""
    ours = rule(CostModel(), max_size=2, length_fn=float, pool_size=16, max_weight=6.0)
    assert ours.due(Backlog(4, 12.0, 0.0), 0.0) is None


def test_nothing_is_never_due() -> None:
    ours = rule(CostModel(), max_delay=0.0)
    assert ours.due(Backlog(), 5.0) is None
    assert ours.next_time(Backlog(), 5.0) == math.inf
    assert Backlog().plus(Backlog(2, 3.0, 1.0, 4.0)) == Backlog(2, 3.0, 1.0, 4.0)
