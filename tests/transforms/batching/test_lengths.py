"""Batches by length, on a device that takes 10 ms and 0.1 ms a unit of padded length."""

from __future__ import annotations

import math
from typing import Any

import pytest

from contbatch.transforms.batching import BatchPolicy, Reason, Scheduler
from tests.transforms.batching.devices import Line

DEVICE = Line(0.010, 0.0, 0.0001)


def scheduler(size: int = 4, pool: int = 12, **bounds: Any) -> Scheduler[float]:
    return Scheduler(BatchPolicy(size, length_fn=float, pool_size=pool, **bounds), DEVICE)


def fill(ours: Scheduler[float], lengths: list[float], now: float = 0.0, **given: Any) -> None:
    for length in lengths:
        ours.submit(length, now, weight=length, **given)


def test_similar_lengths_share_a_batch() -> None:
    ours = scheduler()
    fill(ours, [1, 50, 2, 52, 100, 3, 51, 101, 4, 53, 102, 103])
    batches = [ours.release(0.0) for _ in range(3)]
    assert sorted(batch.batch for batch in batches) == [[1, 2, 3, 4], [50, 51, 52, 53], [100, 101, 102, 103]]
    assert [batch.reason for batch in batches] == [Reason.SIZE, Reason.IDLE_DEVICE, Reason.IDLE_DEVICE]
    assert sorted(batch.weight for batch in batches) == [4 * 4, 4 * 53, 4 * 103]


def test_a_batch_leaves_out_what_would_pad_it_too_much() -> None:
    """With the 100, 4 * 100 * 0.1 = 40 ms and 0 empty places; without it one place of four is empty, 2.5 ms."""
    ours = scheduler()
    fill(ours, [10, 10, 10, 100])
    assert ours.release(0.0).batch == [10, 10, 10]
    assert ours.release(0.0).batch == [100]


def test_the_most_weight_is_that_of_the_padded_batch_and_too_long_a_one_runs_alone() -> None:
    ours = scheduler(max_weight=30.0)
    fill(ours, [10, 10, 10, 10, 40])
    batches = [ours.release(0.0).batch for _ in range(3)]
    assert sorted(batches) == [[10], [10, 10, 10], [40]]


def test_the_most_urgent_is_in_the_batch_once_it_cannot_wait() -> None:
    """Four of 10 take 14 ms, one of 100 20 ms and with one of 10 30: with 50 ms it can wait, with 29 it runs alone."""
    for slack, first in ((0.050, [10, 10, 10, 10]), (0.029, [100])):
        ours = scheduler()
        fill(ours, [100], deadline=slack)
        fill(ours, [10, 10, 10, 10], deadline=1.0)
        batch, shed, reason, *_ = ours.release(0.0)
        assert (batch, shed) == (first, [])
        assert (reason is Reason.DEADLINE) == (slack == 0.029)


def test_it_takes_others_with_it_only_while_it_is_in_time() -> None:
    """100 alone is 20 ms, with the 95 it is 30; it cannot wait for the two others, 16 ms."""
    for slack, first in ((0.0205, [100]), (0.0320, [95, 100])):
        ours = scheduler(2)
        fill(ours, [100], deadline=slack)
        fill(ours, [95, 30, 30], deadline=1.0)
        assert ours.release(0.0).batch == first


def test_without_deadline_it_leaves_after_the_delay() -> None:
    """By itself it leaves a place empty, 5 ms; a 1 beside it would be padded for 20."""
    ours = scheduler(2, max_delay=1.0)
    fill(ours, [200])
    fill(ours, [1, 1, 1, 1], now=0.5)
    assert ours.release(0.9).batch == [1, 1]
    done = ours.release(1.0)
    assert (done.batch, done.reason) == ([200], Reason.DELAY)


def test_what_cannot_be_answered_even_alone_is_shed() -> None:
    """100 alone is 20 ms."""
    ours = scheduler()
    fill(ours, [100], deadline=0.019)
    fill(ours, [10], deadline=0.019)
    batch, shed, *_ = ours.release(0.0)
    assert (batch, shed) == ([10], [100])


def test_the_pool_takes_the_most_urgent_of_the_queue() -> None:
    ours = scheduler(2, pool=2)
    fill(ours, [1, 1, 1], deadline=math.inf)
    fill(ours, [7, 7], deadline=0.5)
    assert ours.release(0.0).batch == [7, 7]


@pytest.mark.parametrize("lengths", [[0, 0, 0], [5, 5, 5]])
def test_lengths_that_say_nothing_make_full_batches(lengths: list[float]) -> None:
    ours: Scheduler[float] = Scheduler(BatchPolicy(2, length_fn=float))
    fill(ours, lengths)
    assert [len(ours.release(0.0).batch) for _ in range(2)] == [2, 1]
