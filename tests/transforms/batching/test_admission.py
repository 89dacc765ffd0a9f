"""How much may wait, on a device that takes 8 s + 0.5 s * n + 0.25 s * weight: in batches of 16, 1 s for each."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contbatch.transforms.batching import Admission, BatchPolicy, CostModel, Overflow, Scheduler
from tests.transforms.batching.devices import Line

DEVICE = Line(8.0, 0.5, 0.25)


def policy(seconds: float | None = 10.0, capacity: int | None = None, overflow: str = "block") -> BatchPolicy:
    return BatchPolicy(16, weight_fn=float, capacity=capacity, capacity_seconds=seconds, overflow=Overflow(overflow))


def admission(seconds: float | None = 10.0, capacity: int | None = None, cost: CostModel = DEVICE) -> Admission:
    return Admission(policy(seconds, capacity), cost)


def test_seconds_are_those_of_full_batches() -> None:
    """32 in two batches take 2 * (8 + 0.5 * 16) = 32 s, and with a weight of 20 in all 5 s more."""
    assert admission().seconds(32) == 32.0
    assert admission().seconds(32, weight=20.0) == 37.0
    assert admission().seconds(0) == 0.0


@pytest.mark.parametrize(
    ("waiting", "weight", "running", "room"),
    [
        (0, 0.0, 0.0, 10),
        (4, 0.0, 0.0, 6),
        (10, 0.0, 0.0, 0),
        (12, 0.0, 0.0, -2),  # two are too many
        (4, 8.0, 0.0, 2),  # (4 + 2) s for 4, so 1.5 s each; 4 s are free
        (4, 0.0, 3.5, 2),  # 10 - 3.5 - 4 = 2.5 s are free
        (0, 0.0, 9.5, 0),
        (0, 0.0, 12.0, -2),
    ],
)
def test_room_is_what_is_free_of_ten_seconds(waiting: int, weight: float, running: float, room: int) -> None:
    assert admission().room(waiting, weight, running) == room


def test_an_idle_device_takes_one_that_is_longer_than_all_that_may_wait() -> None:
    """1 s where 0.5 s may wait; not beside another, nor while a batch runs."""
    tight = admission(seconds=0.5)
    assert tight.room(0) == 1
    assert tight.room(1) == -1
    assert tight.room(0, running=0.1) == 0


@pytest.mark.parametrize(("waiting", "room"), [(0, 10), (15, -5), (18, -8)])
def test_both_bounds_hold(waiting: int, room: int) -> None:
    assert admission(seconds=10.0, capacity=18).room(waiting) == room
    assert admission(seconds=100.0, capacity=18).room(waiting) == 18 - waiting
    assert admission(seconds=None, capacity=18).room(waiting, weight=1e9, running=1e9) == 18 - waiting


def test_before_any_batch_was_seen_only_elements_are_counted() -> None:
    assert admission(cost=CostModel()).room(4, weight=100.0) == 99_996


@given(st.integers(1, 30), st.integers(0, 40), st.integers(1, 40))
def test_with_as_many_more_as_there_is_room_for_the_next_one_is_too_many(waiting: int, each: int, seconds: int) -> None:
    rule = admission(seconds=float(seconds))
    room = rule.room(waiting, waiting * each)
    assert rule.room(waiting + room, (waiting + room) * each) == 0 or waiting + room <= 0
    assert (rule.seconds(waiting + room, (waiting + room) * each) <= seconds) or waiting + room <= 0


def test_beyond_the_seconds_of_work_elements_are_refused_and_counted() -> None:
    ours: Scheduler[int] = Scheduler(policy(overflow="shed"), DEVICE)
    assert [ours.submit(number, 0.0) for number in range(12)] == [True] * 10 + [False] * 2
    counts = ours.statistics()
    assert (counts.submitted, counts.refused, counts.waiting, counts.waiting_seconds) == (12, 2, 10, 10.0)


def test_beyond_the_seconds_of_work_elements_are_asked_for_later_and_not_counted() -> None:
    ours: Scheduler[int] = Scheduler(policy(overflow="block"), DEVICE)
    assert [ours.submit(number, 0.0) for number in range(12)] == [True] * 10 + [False] * 2
    assert (ours.statistics().submitted, ours.statistics().refused) == (10, 0)
    assert len(ours.release(0.0).batch) == 10
    assert ours.submit(10, 0.0)
    assert ours.statistics().submitted == 11


def test_heavier_elements_fill_the_seconds_sooner() -> None:
    """1 s + 0.25 s * 8 = 3 s each: the fourth would make it 12 s."""
    ours: Scheduler[int] = Scheduler(policy(), DEVICE)
    assert [ours.submit(number, 0.0, weight=8.0) for number in range(5)] == [True] * 3 + [False] * 2


def test_an_idle_scheduler_takes_one_that_is_too_heavy_and_nothing_beside_it() -> None:
    """1 s + 0.25 s * 100 = 26 s."""
    ours: Scheduler[str] = Scheduler(policy(), DEVICE)
    assert ours.submit("heavy", 0.0, weight=100.0)
    assert not ours.submit("light", 0.0)
    assert ours.release(0.0).batch == ["heavy"]
    assert ours.submit("light", 0.0)


def test_a_quicker_device_lets_more_wait() -> None:
    """Half the seconds: 20 instead of 10."""
    ours: Scheduler[int] = Scheduler(policy(), Line(4.0, 0.25))
    assert sum(ours.submit(number, 0.0) for number in range(30)) == 20
