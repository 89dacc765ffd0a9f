"""Which lengths share a batch, on a device that takes 10 ms and 1 ms a unit of padded length, and exactly that."""

from __future__ import annotations

import math
from itertools import combinations
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contbatch.transforms.batching import BatchPolicy, CostModel, Reason, Scheduler
from tests.transforms.batching.devices import Line

DEVICE = Line(0.010, 0.0, 0.001)


def scheduler(lengths: list[float], cost: CostModel = DEVICE, slacks: Any = (), **bounds: Any) -> Scheduler[float]:
    """Let elements that are their own lengths wait, all from 0 s on, in the order given."""
    ours: Scheduler[float] = Scheduler(BatchPolicy(**{"max_delay": 1.0, "length_fn": float, **bounds}), cost)
    for number, length in enumerate(lengths):
        ours.submit(length, 0.0, slacks[number] if slacks else None, length)
    return ours


def regret(batch: list[float], size: int) -> float:
    """Return, for each element, the padding and the empty places' part of the fixed cost, in seconds."""
    padding = len(batch) * max(batch) - sum(batch)
    return (0.010 * (1 - len(batch) / size) + 0.001 * padding) / len(batch)


@given(st.lists(st.integers(0, 12), min_size=1, max_size=7), st.integers(1, 4), st.sampled_from([None, 5.0, 20.0]))
def test_of_all_batches_there_could_be_that_of_least_regret_runs(
    lengths: list[int], size: int, most: float | None
) -> None:
    every = [list(batch) for count in range(1, size + 1) for batch in combinations(sorted(map(float, lengths)), count)]
    allowed = [batch for batch in every if len(batch) == 1 or len(batch) * max(batch) <= (most or math.inf)]
    best = min(regret(batch, size) for batch in allowed)
    ours = scheduler([*map(float, lengths)], max_size=size, pool_size=8, max_weight=most).release(0.0)
    assert ours.batch in allowed
    assert regret(ours.batch, size) == pytest.approx(best)
    assert ours.weight == len(ours.batch) * max(ours.batch)


def test_a_place_is_left_empty_where_filling_it_costs_more() -> None:
    """1 by itself leaves half of 10 ms unused, 5 ms; with 12 beside it 11 ms are padding, 5.5 ms each."""
    assert scheduler([1.0, 12.0], max_size=2).release(0.0).batch == [1.0]
    assert scheduler([1.0, 10.0], max_size=2).release(0.0).batch == [1.0, 10.0]


def test_only_the_most_urgent_are_chosen_from() -> None:
    """Of 1, 9 and 9 the two of 9 have no regret, but the pool is the first two: each half empty is best, at 4 ms."""
    ours = scheduler([1.0, 9.0, 9.0], max_size=2, pool_size=2)
    first = ours.release(0.0)
    assert (first.batch, first.reason) == ([1.0, 9.0], Reason.SIZE)
    assert (ours.release(0.0).batch, len(ours)) == ([9.0], 0)
    assert scheduler([1.0, 9.0, 9.0], max_size=2, pool_size=3).release(0.0).batch == [9.0, 9.0]


@pytest.mark.parametrize(
    ("now", "batch", "reason"), [(0.9879, [1.0, 1.0], Reason.IDLE_DEVICE), (0.9881, [50.0], Reason.DELAY)]
)
def test_the_first_is_in_the_batch_that_would_otherwise_make_it_wait_beyond_the_delay(
    now: float, batch: list[float], reason: Reason
) -> None:
    """1 and 1 take 12 ms. 50 by itself has a regret of 5 ms, beside 1 of 24.5 ms."""
    ours = scheduler([50.0], max_size=2)
    for length in (1.0, 1.0):
        ours.submit(length, 0.5, weight=length)
    done = ours.release(now)
    assert (done.batch, done.reason) == (batch, reason)


@pytest.mark.parametrize(
    ("slack", "batch", "reason"),
    [(0.0821, [1.0, 1.0], Reason.IDLE_DEVICE), (0.0819, [60.0], Reason.DEADLINE), (0.0701, [60.0], Reason.DEADLINE)],
)
def test_the_first_is_in_the_batch_that_would_otherwise_make_it_late(
    slack: float, batch: list[float], reason: Reason
) -> None:
    """1 and 1 take 12 ms, and then 60 takes 70 ms."""
    done = scheduler([60.0, 1.0, 1.0], slacks=[slack, 1.0, 1.0], max_size=2).release(0.0)
    assert (done.batch, done.shed, done.reason) == (batch, [], reason)


@pytest.mark.parametrize(
    ("lengths", "slack", "batch"),
    [
        ([10, 9, 8, 7], 0.0505, [7, 8, 9, 10]),  # 10 + 4 * 10 = 50 ms
        ([10, 9, 8, 7], 0.0405, [8, 9, 10]),  # the head is the longest: the shortest is left out, 40 ms
        ([10, 9, 8, 7], 0.0205, [10]),
        ([7, 8, 9, 10], 0.0405, [7, 8, 9]),  # it is the shortest: the longest is left out, 37 ms
        ([7, 8, 9, 10], 0.0265, [7, 8]),
        ([8, 7, 9, 10], 0.0265, [7, 8]),
    ],
)
def test_a_batch_is_cut_for_its_most_urgent_who_stays(lengths: list[float], slack: float, batch: list[float]) -> None:
    ours = scheduler([*map(float, lengths)], slacks=[slack, 1.0, 1.0, 1.0], max_size=4)
    done = ours.release(0.0)
    assert (done.batch, done.shed) == (batch, [])
    assert done.reason is (Reason.DEADLINE if len(batch) < 4 else Reason.IDLE_DEVICE)
    assert len(ours) == 4 - len(batch)


@pytest.mark.parametrize(("least", "batch"), [(1, [4, 4]), (3, [4, 4, 4]), (4, [4, 4, 4, 4])])
def test_a_goal_of_time_cuts_a_batch_but_not_below_min_size(least: int, batch: list[float]) -> None:
    """10 ms + 4 ms each: 18, 22 and 26 ms."""
    ours = scheduler([4.0] * 4, max_size=4, min_size=least, max_seconds=0.0181)
    assert ours.release(0.0).batch == batch


def test_the_time_is_that_of_the_allowed_size() -> None:
    """2 of 5 are padded to 3: 25 ms, and alone each takes what 3 of it take."""
    for slack, batch in ((0.0251, [5.0, 5.0]), (0.0249, [])):
        done = scheduler([5.0, 5.0], slacks=[slack] * 2, max_size=3, allowed_sizes=(3,)).release(0.0)
        assert (done.batch, len(done.shed)) == (batch, 2 - len(batch))
    assert (scheduler([5.0, 5.0], allowed_sizes=(3,)).release(0.0).weight) == 15.0


def test_the_pool_is_filled_again_where_what_was_in_it_is_shed() -> None:
    """10 ms and 1 ms: alone each takes 11 ms."""
    ours = scheduler([1.0] * 5, slacks=[0.005] * 3 + [0.5] * 2, max_size=1, pool_size=2)
    done = ours.release(0.0)
    assert (len(done.batch), len(done.shed)) == (1, 3)
    assert len(ours) == 1


def test_what_has_become_too_late_in_the_pool_is_shed_though_nothing_comes_after_it() -> None:
    ours = scheduler([1.0, 1.0], slacks=[0.5, 0.5], max_size=1)
    assert ours.release(0.0).batch == [1.0]
    assert ours.release(0.495)[:4] == ([], [1.0], Reason.IDLE_DEVICE, 0)


@pytest.mark.parametrize("cost", [CostModel(), Line(0.010, 0.0), Line(0.010, 0.001), Line(0.0, 0.0, 0.001)])
def test_where_only_one_of_both_is_known_to_cost_batches_are_full_and_similar_all_the_same(cost: CostModel) -> None:
    ours = scheduler([1.0, 9.0, 1.0, 9.0], cost, max_size=2)
    assert [ours.release(0.0).batch for _ in range(2)] == [[1.0, 1.0], [9.0, 9.0]]


def test_lengths_of_nothing_make_full_batches() -> None:
    ours = scheduler([0.0] * 3, max_size=2)
    assert [ours.release(0.0).batch for _ in range(3)] == [[0.0, 0.0], [0.0], []]
