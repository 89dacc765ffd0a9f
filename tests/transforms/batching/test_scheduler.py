"""The queue and the scheduler in front of a device that takes 10 ms + 0.5 ms * n."""

from __future__ import annotations

import math
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contbatch.transforms.batching import BatchPolicy, Overflow, Reason, Scheduler, SchedulerStatistics
from contbatch.transforms.batching.release import Backlog
from tests.transforms.batching.devices import Line, known_device


def scheduler(size: int = 4, slo: float | None = 0.1, capacity: int = 1_000) -> Scheduler[str]:
    return Scheduler(BatchPolicy(size, latency_slo=slo, capacity=capacity, overflow=Overflow.SHED), known_device())


def test_an_idle_device_does_not_wait_and_a_full_batch_is_full() -> None:
    ours = scheduler()
    for name in "abcdef":
        ours.submit(name, 0.0)
    first, second, third = (ours.release(0.0) for _ in range(3))
    assert (first.batch, first.reason) == (list("abcd"), Reason.SIZE)
    assert (second.batch, second.reason) == (list("ef"), Reason.IDLE_DEVICE)
    assert third.batch == []


def test_no_more_than_the_capacity_waits() -> None:
    ours = scheduler(size=2, capacity=3)
    assert [ours.submit(name, 0.0) for name in "abcd"] == [True, True, True, False]
    assert len(ours) == 3
    assert ours.statistics().refused == 1


@given(
    st.lists(st.tuples(st.floats(0, 0.05), st.sampled_from([0.011, 0.02, 0.1, 5.0])), max_size=80),
    st.integers(1, 8),
)
def test_every_element_is_released_or_shed_once_and_in_time(plan: list[tuple[float, float]], size: int) -> None:
    ours: Scheduler[int] = Scheduler(BatchPolicy(size, capacity=1_000), known_device())
    now, free, fates, deadlines = 0.0, 0.0, Counter(), {}

    def turn() -> None:
        nonlocal free
        batch, shed, *_ = ours.release(now)
        assert len(batch) <= size
        fates.update(batch + shed)
        if batch:
            free = now + 0.010 + 0.0005 * len(batch)
            assert all(free <= deadlines[number] + 1e-4 for number in batch)

    for number, (gap, slo) in enumerate(plan):
        now += gap
        if now >= free:
            turn()
        deadlines[number] = now + slo
        ours.submit(number, now, deadline=deadlines[number])
    while ours:
        now = max(now, free)
        turn()
    assert fates == Counter(range(len(plan)))
    counts = ours.statistics()
    assert counts.submitted == counts.released + counts.shed
    assert sum(counts.batches.values()) <= counts.released


def test_a_capacity_that_nobody_gave_holds_any_batch() -> None:
    assert BatchPolicy(max_size=200_000).capacity is None
    ours: Scheduler[int] = Scheduler(BatchPolicy(max_size=100_002))
    assert all(ours.submit(number, 0.0) for number in range(100_002))
    assert not ours.submit(0, 0.0)


def test_what_is_turned_away_is_counted_only_where_it_is_given_up() -> None:
    for overflow, submitted, refused in ((Overflow.SHED, 4, 1), (Overflow.BLOCK, 3, 0)):
        ours: Scheduler[str] = Scheduler(BatchPolicy(2, capacity=3, overflow=overflow))
        assert [ours.submit(name, 0.0) for name in "abcd"] == [True, True, True, False]
        counts = ours.statistics()
        assert (counts.submitted, counts.refused, counts.waiting) == (submitted, refused, 3)


def test_a_deadline_of_its_own_counts_before_the_goal_and_none_means_the_goal() -> None:
    """Alone each takes 10.5 ms; "goal" has until 100 ms, "own" until 200 ms, and at 150 ms "own" is left."""
    ours = scheduler()
    ours.submit("goal", 0.0)
    ours.submit("own", 0.0, deadline=0.2)
    ours.submit("never", 0.0, deadline=math.inf)
    assert ours.release(0.15)[:2] == (["own", "never"], ["goal"])


@pytest.mark.parametrize(
    ("delay", "deadline", "order"),
    [
        (1.0, 5.9, ["own", "none"]),  # without a deadline it is as urgent as at the end of its delay, at 6 s
        (1.0, 6.1, ["none", "own"]),
        (math.inf, 64.9, ["own", "none"]),  # and where there is no end, after a minute, at 65 s
        (math.inf, 65.1, ["none", "own"]),
    ],
)
def test_an_element_without_deadline_takes_its_place_among_those_with_one(
    delay: float, deadline: float, order: list[str]
) -> None:
    ours: Scheduler[str] = Scheduler(BatchPolicy(2, delay), known_device())
    ours.submit("none", 5.0)
    ours.submit("own", 5.0, deadline=deadline)
    assert ours.release(5.0).batch == order


def test_the_backlog_is_the_oldest_the_tightest_and_the_sum_of_what_waits() -> None:
    ours: Scheduler[str] = Scheduler(BatchPolicy(2, weight_fn=len))
    assert ours.backlog() == Backlog(0, 0.0, math.inf, math.inf)
    ours.submit("a", 3.0, deadline=9.0, weight=2.0)
    ours.submit("b", 1.0, deadline=20.0, weight=0.5)
    ours.submit("c", 2.0, weight=1.0)
    assert ours.backlog() == Backlog(3, 3.5, 1.0, 9.0)


def test_a_batch_weighs_the_sum_or_with_lengths_as_if_each_was_the_longest_and_without_either_nothing() -> None:
    """2 + 5 = 7, 2 * 5 = 10; padded to 4, 4 * 5 = 20."""
    for bounds, size, weight in (
        ({"weight_fn": float}, 2, 7.0),
        ({"length_fn": float}, 2, 10.0),
        ({}, 2, 0.0),
        ({"length_fn": float, "allowed_sizes": (4,)}, 4, 20.0),
        ({"weight_fn": float, "allowed_sizes": (4,)}, 4, 7.0),
    ):
        ours: Scheduler[float] = Scheduler(BatchPolicy(**{"max_size": 8, **bounds}))
        for each in (2.0, 5.0):
            ours.submit(each, 0.0, weight=each)
        done = ours.release(0.0)
        assert (sorted(done.batch), done.size, done.weight) == ([2.0, 5.0], size, weight)


def test_the_device_is_told_the_size_that_is_padded_to() -> None:
    ours: Scheduler[int] = Scheduler(BatchPolicy(allowed_sizes=(4, 8)), known_device())
    for number in range(11):
        ours.submit(number, 0.0)
    first, second = ours.release(0.0, flush=True), ours.release(0.0, flush=True)
    assert (len(first.batch), first.size, first.reason) == (8, 8, Reason.SIZE)
    assert (len(second.batch), second.size) == (3, 4)


def test_the_seconds_that_wait_are_known_once_a_batch_has_run() -> None:
    """10 ms a batch of whatever size is taken as fixed: 10 / 2 ms each, as two share a batch."""
    ours: Scheduler[str] = Scheduler(BatchPolicy(2))
    for name in "abc":
        ours.submit(name, 0.0)
    assert ours.statistics().waiting_seconds == 0.0
    ours.finish(1, 0.010)
    assert ours.statistics().waiting_seconds == pytest.approx(0.015, rel=0.01)


def test_the_weight_of_what_left_is_not_of_what_waits() -> None:
    """2 s each and 1 s a unit of weight: "late" and the others leave, and 3 units wait with "d", 5 s."""
    ours: Scheduler[str] = Scheduler(BatchPolicy(2, weight_fn=len), Line(0.0, 2.0, 1.0))
    ours.submit("late", 0.0, deadline=1.0, weight=50.0)
    for name, weight in (("b", 7.0), ("c", 11.0), ("d", 3.0)):
        ours.submit(name, 0.0, weight=weight)
    assert ours.release(0.0)[:2] == (["b", "c"], ["late"])
    assert ours.statistics().waiting_seconds == 5.0


def test_batches_are_counted_by_their_reasons() -> None:
    ours = scheduler(size=2)
    for name in "abcde":
        ours.submit(name, 0.0)
    for _ in range(4):
        ours.release(0.0)
    assert ours.statistics() == SchedulerStatistics(5, 5, 0, 0, 0, 0.0, {Reason.SIZE: 2, Reason.IDLE_DEVICE: 1})


def test_a_change_takes_effect_on_what_waits_and_on_what_comes() -> None:
    ours: Scheduler[str] = Scheduler(BatchPolicy(2, capacity=4), known_device())
    for name in "abcd":
        ours.submit(name, 0.0, deadline=1.0)
    ours.change(BatchPolicy(3, capacity=3, overflow=Overflow.SHED))
    assert not ours.submit("e", 0.0)
    assert ours.release(0.0).batch == ["a", "b", "c"]
    assert ours.submit("f", 0.0, deadline=0.5)
    assert ours.release(0.0).batch == ["f", "d"]  # each has kept its deadline
    assert (ours.statistics().submitted, ours.statistics().refused) == (6, 1)


def test_a_change_from_lengths_takes_along_what_is_in_the_pool() -> None:
    """Of four, two have left; two are in the pool and two in the queue behind it."""
    ours: Scheduler[str] = Scheduler(BatchPolicy(2, length_fn=len, pool_size=4), known_device())
    for name in ("a", "b", "cccc", "dddd", "e", "f"):
        ours.submit(name, 0.0, weight=len(name))
    assert ours.release(0.0).batch == ["a", "b"]
    ours.change(BatchPolicy(8))
    assert ours.release(0.0).batch == ["cccc", "dddd", "e", "f"]
