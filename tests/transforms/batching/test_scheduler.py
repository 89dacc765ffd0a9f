"""The queue and the scheduler in front of a device that takes 10 ms + 0.5 ms * n."""

from __future__ import annotations

import math
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contbatch.transforms.batching import BatchPolicy, CostModel, DeadlineQueue, Overflow, Reason, Scheduler, Waiting


def known_device() -> CostModel:
    model = CostModel()
    for size in (1, 8, 16, 32) * 6:
        model.observe(size, 0.010 + 0.0005 * size)
    return model


def scheduler(size: int = 4, slo: float | None = 0.1, capacity: int = 1_000) -> Scheduler[str]:
    return Scheduler(BatchPolicy(size, latency_slo=slo, capacity=capacity, overflow=Overflow.SHED), known_device())


@given(st.lists(st.one_of(st.floats(0, 10), st.none()), max_size=30), st.integers(1, 7))
def test_a_queue_gives_by_deadline_then_by_arrival(deadlines: list[float | None], size: int) -> None:
    queue: DeadlineQueue[str] = DeadlineQueue()
    for number, deadline in enumerate(deadlines):
        queue.push(Waiting(math.inf if deadline is None else deadline, number, "item"))
    taken = []
    while queue:
        taken += [(one.order, one.number) for one in queue.take(size)]
    assert taken == sorted(taken)
    assert len(taken) == len(deadlines)


def test_an_idle_device_does_not_wait_and_a_full_batch_is_full() -> None:
    ours = scheduler()
    for name in "abcdef":
        ours.submit(name, 0.0)
    first, second, third = (ours.release(0.0) for _ in range(3))
    assert (first.batch, first.reason) == (list("abcd"), Reason.SIZE)
    assert (second.batch, second.reason) == (list("ef"), Reason.IDLE_DEVICE)
    assert third.batch == []


def test_a_batch_is_cut_to_meet_the_deadline_of_its_head() -> None:
    """At slack 11.6 ms a batch of 3 would take 11.5 ms, of 4 12 ms; one more than waits would be needed to drop it."""
    ours = scheduler(size=8)
    for name in "abcd":
        ours.submit(name, 0.0)
    batch, shed, reason, *_ = ours.release(0.1 - 0.0117)
    assert (batch, shed, reason) == (["a", "b", "c"], [], Reason.DEADLINE)


def test_what_cannot_be_answered_even_alone_is_shed_and_nothing_else() -> None:
    """Alone it takes 10.5 ms."""
    ours = scheduler()
    ours.submit("late", 0.0)
    ours.submit("fine", 0.05)
    batch, shed, *_ = ours.release(0.1 - 0.0104)
    assert (batch, shed) == (["fine"], ["late"])


def test_a_head_that_would_cost_the_others_more_than_itself_is_dropped() -> None:
    """32 take 26 ms. For a head with 12 ms, 4 could run: in their 12 ms, 32 * 12 / 26 = 14.8 are answered otherwise."""
    ours = scheduler(size=32)
    ours.submit("head", 0.0)
    for number in range(40):
        ours.submit(str(number), 0.07)
    batch, shed, *_ = ours.release(0.1 - 0.0121)
    assert shed == ["head"]
    assert len(batch) == 32


def test_the_same_head_is_kept_where_the_queue_is_not_full() -> None:
    ours = scheduler(size=32)
    ours.submit("head", 0.0)
    for number in range(20):
        ours.submit(str(number), 0.07)
    batch, shed, reason, *_ = ours.release(0.1 - 0.0121)
    assert (batch[0], shed, reason) == ("head", [], Reason.DEADLINE)


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


@pytest.mark.parametrize("slo", [0.0, -1.0, float("nan")])
def test_a_goal_is_above_zero(slo: float) -> None:
    with pytest.raises(ValueError, match="give a finite number above 0, or None"):
        BatchPolicy(latency_slo=slo)


def test_a_capacity_that_nobody_gave_holds_any_batch() -> None:
    assert BatchPolicy(max_size=200_000).capacity is None
    ours: Scheduler[int] = Scheduler(BatchPolicy(max_size=100_002))
    assert all(ours.submit(number, 0.0) for number in range(100_002))
    assert not ours.submit(0, 0.0)


def test_a_capacity_holds_a_batch() -> None:
    with pytest.raises(ValueError, match="capacity is 3; give at least what a batch is taken from, 4"):
        BatchPolicy(max_size=4, capacity=3)
