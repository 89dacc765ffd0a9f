from __future__ import annotations

import math
from typing import Any

import pytest

from contbatch.transforms.batching import BatchPolicy, Overflow, TimeDomain


@pytest.mark.parametrize("size", [0, -3, 2.5, "8"])
def test_a_size_is_a_whole_number_of_elements(size: Any) -> None:
    with pytest.raises(ValueError, match=f"max_size is {size!r}; give a whole number of elements, 1 or more"):
        BatchPolicy(max_size=size)


@pytest.mark.parametrize("delay", [-0.1, -math.inf, math.nan])
def test_a_delay_is_not_negative(delay: float) -> None:
    with pytest.raises(ValueError, match=f"max_delay is {delay!r}; give seconds, 0 or more, or math.inf"):
        BatchPolicy(max_delay=delay)


@pytest.mark.parametrize(
    ("bounds", "message"),
    [
        ({"max_size": 4, "min_size": 5}, "min_size is 5; give at most max_size, 4"),
        ({"allowed_sizes": (4, 0)}, "allowed_sizes is 0; give a whole number of elements, 1 or more"),
        ({"max_weight": 0.0, "weight_fn": len}, "max_weight is 0.0; give a finite number above 0, or None"),
        ({"latency_slo": 0.0}, "latency_slo is 0.0; give a finite number above 0, or None"),
        ({"latency_slo": math.nan}, "latency_slo is nan; give a finite number above 0, or None"),
        ({"max_seconds": math.inf}, "max_seconds is inf; give a finite number above 0, or None"),
        ({"capacity_seconds": -1}, "capacity_seconds is -1; give a finite number above 0, or None"),
        ({"min_size": 0}, "min_size is 0; give a whole number of elements, 1 or more"),
        ({"target_overhead": 0.0}, "target_overhead is 0.0; give a share above 0 and below 1, or None"),
        ({"target_overhead": 1.0}, "target_overhead is 1.0; give a share above 0 and below 1, or None"),
        ({"overflow": "drop"}, "overflow is 'drop'; give block or shed"),
        ({"time_domain": "wall"}, "time_domain is 'wall'; give real_time or event_time"),
        ({"weight_fn": len, "length_fn": len}, "both weight_fn and length_fn are given; with length_fn a batch weighs"),
        ({"max_weight": 1.0}, "max_weight needs the weight of an element: give weight_fn or length_fn"),
        ({"pool_size": 64}, "pool_size is 64; give it with length_fn, and at least 256"),
        ({"max_size": 8, "length_fn": len, "pool_size": 7}, "pool_size is 7; give it with length_fn, and at least 8"),
        ({"max_size": 4, "capacity": 3}, "capacity is 3; give at least what a batch is taken from, 4"),
        ({"max_size": 8, "length_fn": len, "capacity": 63}, "give at least what a batch is taken from, 64"),
    ],
)
def test_what_cannot_be_is_refused_with_what_can(bounds: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BatchPolicy(**bounds)


def test_allowed_sizes_are_sorted_and_the_largest_is_the_most() -> None:
    policy = BatchPolicy(allowed_sizes=(32, 8, 16))
    assert (policy.allowed_sizes, policy.max_size) == ((8, 16, 32), 32)


def test_names_stand_for_the_members() -> None:
    policy = BatchPolicy(overflow="shed", time_domain="event_time")  # type: ignore[arg-type]
    assert (policy.overflow, policy.time_domain) == (Overflow.SHED, TimeDomain.EVENT_TIME)


def test_where_nobody_waits_a_goal_of_latency_bounds_what_a_batch_takes() -> None:
    calm = BatchPolicy(8, 2.0, latency_slo=0.1, max_seconds=0.3, deadline_fn=float, overflow=Overflow.SHED).unhurried()
    assert calm == BatchPolicy(8, math.inf, max_seconds=0.1)


def test_in_event_time_the_delay_stays() -> None:
    policy = BatchPolicy(8, 2.0, time_domain=TimeDomain.EVENT_TIME)
    assert policy.unhurried() == policy


def test_a_pool_is_eight_batches_and_2048_at_most_where_nobody_gave_one() -> None:
    assert BatchPolicy(8).pool == 0
    assert [BatchPolicy(size, length_fn=len).pool for size in (8, 256, 257, 3_000)] == [64, 2_048, 2_048, 3_000]
    assert BatchPolicy(8, length_fn=len, pool_size=10).pool == 10


@pytest.mark.parametrize(
    "bounds",
    [
        {"min_size": 4},
        {"target_overhead": 0.999},
        {"max_delay": 0.0},
        {"max_delay": math.inf},
        {"length_fn": len, "pool_size": 4},
        {"length_fn": len, "capacity": 32},
        {"capacity": 4},
        {"max_weight": 1.0, "length_fn": len},
        {"max_weight": 1.0, "weight_fn": len, "time_domain": TimeDomain.EVENT_TIME},
    ],
)
def test_what_is_just_inside_its_range_is_taken(bounds: dict[str, Any]) -> None:
    policy = BatchPolicy(4, **{"max_delay": 1.0, **bounds})
    assert {name: getattr(policy, name) for name in bounds} == bounds


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("latency_slo", 1.0),
        ("deadline_fn", len),
        ("priority_fn", len),
        ("length_fn", len),
        ("allowed_sizes", (4,)),
        ("target_overhead", 0.5),
        ("max_seconds", 1.0),
        ("capacity_seconds", 1.0),
    ],
)
def test_event_time_knows_no_costs(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"{name} is given with time_domain event_time, which knows no costs; drop"):
        BatchPolicy(time_domain=TimeDomain.EVENT_TIME, **{name: value})
    assert BatchPolicy(**{name: value}).asks_costs is (name != "priority_fn")


def test_costs_are_not_asked_for_by_bounds_of_size_weight_and_delay() -> None:
    assert not BatchPolicy(8, 2.0, max_weight=3.0, weight_fn=len, capacity=9, min_size=2).asks_costs


@pytest.mark.parametrize(
    ("bounds", "most"),
    [({}, 100_000), ({"max_size": 200_000}, 200_000), ({"max_size": 200_000, "length_fn": len}, 200_000)],
)
def test_a_capacity_that_nobody_gave_is_large_and_holds_what_a_batch_is_taken_from(
    bounds: dict[str, Any], most: int
) -> None:
    assert BatchPolicy(**bounds).most_waiting == most
    assert BatchPolicy(**bounds, capacity=most + 1).most_waiting == most + 1
