"""Sizes on a device that takes 10 ms + 0.5 ms * n, and exactly that."""

from __future__ import annotations

import math
from itertools import accumulate
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contbatch.transforms.batching import BatchPolicy, CostModel
from contbatch.transforms.batching.sizing import Sizing
from tests.transforms.batching.devices import Line

DEVICE = Line(0.010, 0.0005)


def sizing(cost: CostModel = DEVICE, **policy: Any) -> Sizing:
    return Sizing(BatchPolicy(**policy), cost)


@pytest.mark.parametrize(
    ("policy", "size"),
    [
        ({}, 64),
        ({"max_seconds": 0.0201}, 20),  # 10 + 0.5 * 20 = 20 ms
        ({"max_seconds": 9.0}, 64),
        ({"target_overhead": 0.5}, 20),  # 10 / (10 + 0.5 * 20) = 1 / 2
        ({"target_overhead": 0.4}, 30),  # 10 / (10 + 0.5 * 30) = 2 / 5
        ({"target_overhead": 0.45}, 25),  # 10 / (10 + 0.5 * 24.4) = 0.45, and a batch of 24 has more overhead
        ({"target_overhead": 0.1}, 64),  # 180 would be needed
        ({"target_overhead": 0.5, "max_seconds": 0.0151}, 10),  # 10 + 0.5 * 10 = 15 ms
        ({"target_overhead": 0.5, "max_seconds": 0.0301}, 20),
        ({"target_overhead": 0.5, "min_size": 40}, 40),
        ({"max_seconds": 0.0201, "min_size": 40}, 40),
    ],
)
def test_a_batch_is_large_enough_when_it_is_full_or_reaches_a_goal(policy: dict[str, Any], size: int) -> None:
    assert sizing(max_size=64, **policy).enough() == size


def test_without_fixed_cost_one_is_enough_for_any_overhead_and_without_cost_per_element_only_a_full_batch() -> None:
    assert sizing(Line(0.0, 0.001), max_size=64, target_overhead=0.1).enough() == 1
    assert sizing(Line(0.010, 0.0), max_size=64, target_overhead=0.1).enough() == 64


def test_before_any_batch_was_seen_the_smallest_is_tried_for_a_goal_of_time() -> None:
    assert sizing(CostModel(), max_size=64, max_seconds=9.0).enough() == 1
    assert sizing(CostModel(), max_size=64, target_overhead=0.1).enough() == 64


@pytest.mark.parametrize(
    ("policy", "slack", "size"),
    [
        ({}, math.inf, 40),
        ({}, 0.0151, 10),  # 10 + 0.5 * 10 = 15 ms
        ({}, 9.0, 40),
        ({}, 0.001, 1),
        ({"max_seconds": 0.0131}, 0.0151, 6),  # 10 + 0.5 * 6 = 13 ms
        ({"max_seconds": 0.0151}, 0.0131, 6),
        ({"max_seconds": 0.0131}, math.inf, 6),
        ({"min_size": 8}, 0.0131, 8),
        ({"min_size": 8}, 0.0151, 10),
        ({"min_size": 50}, 0.0151, 40),  # as many as wait
    ],
)
def test_of_forty_that_wait_run_as_many_as_the_time_allows(policy: dict[str, Any], slack: float, size: int) -> None:
    assert sizing(max_size=64, **policy).most(slack, 40) == size


def test_weight_counts() -> None:
    """10 ms + 1 ms * weight, 2 each: in 15 ms 2 run."""
    assert sizing(Line(0.010, 0.0, 0.001), max_size=64).most(0.0151, 4, [2.0, 4.0, 6.0, 8.0]) == 2


@pytest.mark.parametrize(("least", "size"), [(1, 2), (3, 3), (9, 4)])
def test_where_the_first_are_heavier_than_the_mean_fewer_run(least: int, size: int) -> None:
    """10 ms + 1 ms * weight: by the mean, 1.5 each, 3 run in 15 ms, but the first 3 weigh 6; the first 2 weigh 5."""
    rule = sizing(Line(0.010, 0.0, 0.001), max_size=64, min_size=least)
    assert rule.most(0.0151, 4, [3.0, 5.0, 6.0, 6.0]) == size


@pytest.mark.parametrize(
    ("sizes", "waiting", "flush", "taken"),
    [
        ((1, 4, 8), 5, False, 5),  # padded to 8: 14 ms / 5 = 2.8 ms each; 4: 12 ms / 4 = 3 ms each
        ((4, 32), 5, False, 4),  # padded to 32: 26 ms / 5 = 5.2 ms each
        ((4, 24), 5, False, 4),  # padded to 24: 22 ms / 5 = 4.4 ms each
        ((4, 24), 5, True, 5),  # 22 ms; 4, then 1 padded to 4: 12 ms + 12 ms
        ((4, 32), 5, True, 4),  # 26 ms
        ((1, 4, 24), 5, True, 5),  # 22 ms; 4, then 1: 12 ms + 10.5 ms
        ((1, 4, 26), 5, True, 4),  # 23 ms
        ((4, 16), 6, True, 6),  # 18 ms
        ((4, 8, 32), 9, False, 8),  # padded to 32: 26 ms / 9 = 2.9 ms each; 8: 14 ms / 8 = 1.75 ms each
        ((4, 8, 32), 8, False, 8),  # nothing is padded
        ((4, 8), 3, False, 3),  # nothing smaller is allowed
        ((4, 8), 20, False, 8),  # the largest is full
        ((4, 8), 8, True, 8),
    ],
)
def test_padding_up_or_leaving_a_remainder_whichever_costs_less(
    sizes: tuple[int, ...], waiting: int, flush: bool, taken: int
) -> None:
    assert sizing(allowed_sizes=sizes).static([math.inf] * waiting, [], flush) == taken


@pytest.mark.parametrize(
    ("first", "after", "taken"),
    [
        (math.inf, math.inf, 4),  # as without deadlines
        (0.0225, 0.0245, 4),  # 4, and then 1 padded to 4: 12 ms + 12 ms
        (0.0225, 0.0235, 5),  # too late for the one left over; padded to 24 all take 22 ms
        (0.0215, 0.0235, 4),  # padding is too late for the first, who is served before the one left over
        (0.0010, 0.0235, 4),  # nothing is in time; the smallest is least late
    ],
)
def test_a_remainder_is_left_only_if_it_is_still_answered_in_time(first: float, after: float, taken: int) -> None:
    """Of 5, sizes 4 and 24: 3 ms each for 4, 4.4 ms each for 5 padded to 24."""
    assert sizing(allowed_sizes=(4, 24)).static([first] * 4 + [after], [], flush=False) == taken


def test_where_both_cost_the_same_it_is_padded_and_fewer_wait() -> None:
    """2 s + 1 s * n. 3 padded to 4 take 6 s / 3, 2 take 4 s / 2.

    At the end, 3 padded to 6 take 8 s; 2 and then 1 padded to 2 take 4 s + 4 s.
    """
    assert sizing(Line(2.0, 1.0), allowed_sizes=(2, 4)).static([math.inf] * 3, [], flush=False) == 3
    assert sizing(Line(2.0, 1.0), allowed_sizes=(2, 6)).static([math.inf] * 3, [], flush=True) == 3


def test_exactly_in_time_is_in_time() -> None:
    """1 s + 1 s * n: 2 take 3 s, 4 take 5 s; 2 and then 1 padded to 2 take 6 s."""
    rule = sizing(Line(1.0, 1.0), allowed_sizes=(2, 4))
    assert rule.static([5.0] * 4, [], flush=False) == 4
    assert sizing(Line(1.0, 1.0), allowed_sizes=(2, 8)).static([3.0, 3.0, 6.0], [], flush=False) == 2


def test_without_a_goal_all_run_before_any_batch_was_seen() -> None:
    assert sizing(CostModel(), max_size=64).most(math.inf, 40) == 40


def test_by_itself_an_element_takes_what_the_smallest_allowed_size_takes() -> None:
    """1 s + 1 s * n + 1 s * weight."""
    assert sizing(Line(1.0, 1.0, 1.0)).alone() == 2.0
    assert sizing(Line(1.0, 1.0, 1.0), allowed_sizes=(4, 8)).alone(3.0) == 8.0
    assert [sizing(allowed_sizes=(4, 8)).padded(size) for size in (1, 4, 5, 8)] == [4, 4, 8, 8]


@pytest.mark.parametrize(
    ("sizes", "slack", "weights", "taken"),
    [
        ((2, 4), 13.0, [2.0] * 4, 4),  # 1 + 4 + 8 s, exactly
        ((2, 4), 12.9, [2.0] * 4, 2),  # 1 + 2 + 4 s
        ((2, 4), 5.0, [], 4),  # 1 + 4 s, where weight costs nothing
        ((1, 2, 4), 10.9, [2.0] * 3, 2),  # 3 padded to 4 weigh 6, 11 s; the first 2 weigh 4, 7 s
        ((1, 2, 4), 8.0, [2.0] * 3, 2),
        ((1, 2, 4), 6.9, [2.0] * 3, 1),  # 1 + 1 + 2 s
    ],
)
def test_the_weight_of_those_taken_counts_in_every_allowed_size(
    sizes: tuple[int, ...], slack: float, weights: list[float], taken: int
) -> None:
    """1 s + 1 s * n + 1 s * weight; what a batch is padded with weighs nothing."""
    rule = sizing(Line(1.0, 1.0, 1.0), allowed_sizes=sizes)
    assert rule.static([slack] * (len(weights) or 4), [*accumulate(weights)], flush=True) == taken


def test_a_remainder_has_its_own_weight() -> None:
    """2 of weight 4 take 7 s, then 1 of weight 2 padded to 2 takes 5 s: 12 s, exactly in time; together 11 s.

    Each of 2 takes 3.5 s, of 3 padded to 4 takes 3.7 s. At the end, 3 padded to 8 take 15 s.
    """
    rule = sizing(Line(1.0, 1.0, 1.0), allowed_sizes=(2, 4))
    assert rule.static([11.0, 11.0, 12.0], [2.0, 4.0, 6.0], flush=False) == 2
    assert rule.static([11.0, 11.0, 11.9], [2.0, 4.0, 6.0], flush=False) == 3
    assert sizing(Line(1.0, 1.0, 1.0), allowed_sizes=(2, 8)).static([math.inf] * 3, [2.0, 4.0, 6.0], flush=True) == 2


@pytest.mark.parametrize("slacks", [[17.0, 17.0, 17.0, 17.0, math.inf], [17.0, 17.0, 17.0, math.inf, 17.0]])
def test_the_tightest_of_a_remainder_counts_wherever_it_is(slacks: list[float]) -> None:
    """6 s + n: 3 and then 2 padded to 3 take 18 s, 3 s each for the first; 5 padded to 10 take 16 s, 3.2 s each."""
    rule = sizing(Line(6.0, 1.0), allowed_sizes=(3, 10))
    assert rule.static(slacks, [], flush=False) == 5
    assert rule.static([18.0] * 5, [], flush=False) == 3


@pytest.mark.parametrize(
    ("sizes", "flush", "taken"),
    [
        ((3, 10), False, 3),  # 16 s / 5 > 9 s / 3
        ((3, 9), False, 5),  # 15 s / 5 = 9 s / 3
        ((3, 13), True, 3),  # 19 s > 9 s + 9 s
        ((3, 12), True, 5),  # 18 s
    ],
)
def test_doubt_is_no_cost(sizes: tuple[int, ...], flush: bool, taken: int) -> None:
    """6 s + n, and up to a quarter more."""
    assert sizing(Line(6.0, 1.0, doubt=0.25), allowed_sizes=sizes).static([math.inf] * 5, [], flush) == taken


def test_with_doubt_a_size_must_be_in_time() -> None:
    """6 s + n, and up to a quarter more: 10 take up to 20 s, 3 up to 11.25 s, and 3 and then 3 up to 22.5 s."""
    rule = sizing(Line(6.0, 1.0, doubt=0.25), allowed_sizes=(3, 10))
    assert rule.static([20.0] * 10, [], flush=False) == 10
    assert rule.static([19.9] * 10, [], flush=False) == 3
    assert rule.static([22.5] * 5, [], flush=False) == 3
    assert rule.static([22.4] * 5, [], flush=False) == 5


def test_with_doubt_a_batch_cut_by_weight_must_be_in_time() -> None:
    """1 s + 1 s * n + 1 s * weight, and up to a quarter more: 2 of 6 take 9 to 11.25 s."""
    rule = sizing(Line(1.0, 1.0, 1.0, doubt=0.25), max_size=64)
    assert rule.most(11.25, 3, [4.0, 6.0, 6.0]) == 2
    assert rule.most(11.2, 3, [4.0, 6.0, 6.0]) == 1


def test_no_batch_is_padded_beyond_max_seconds() -> None:
    """8 take 14 ms."""
    assert sizing(allowed_sizes=(2, 8), max_seconds=0.0139).static([math.inf] * 3, [], flush=False) == 2
    assert sizing(allowed_sizes=(2, 8), max_seconds=0.0141).static([math.inf] * 3, [], flush=False) == 3


@given(
    st.sets(st.integers(1, 40), min_size=1, max_size=5),
    st.lists(st.floats(0.0, 0.05), min_size=1, max_size=50),
    st.booleans(),
)
def test_the_padded_batch_is_in_time_for_the_first_if_any_allowed_size_is(
    sizes: set[int], slacks: list[float], flush: bool
) -> None:
    slacks = sorted(slacks)
    taken = sizing(allowed_sizes=tuple(sizes)).static(slacks, [], flush)
    assert 1 <= taken <= min(len(slacks), max(sizes))
    padded = min(size for size in sizes if size >= taken)
    assert DEVICE.upper(padded) <= slacks[0] or padded == min(sizes)
