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
        ({"max_seconds": math.inf}, "max_seconds is inf; give a finite number above 0, or None"),
        ({"capacity_seconds": -1}, "capacity_seconds is -1; give a finite number above 0, or None"),
        ({"target_overhead": 1.0}, "target_overhead is 1.0; give a share above 0 and below 1, or None"),
        ({"overflow": "drop"}, "overflow is 'drop'; give block or shed"),
        ({"time_domain": "wall"}, "time_domain is 'wall'; give real_time or event_time"),
        ({"weight_fn": len, "length_fn": len}, "both weight_fn and length_fn are given; with length_fn a batch weighs"),
        ({"max_weight": 1.0}, "max_weight needs the weight of an element: give weight_fn or length_fn"),
        ({"pool_size": 64}, "pool_size is 64; give it with length_fn, and at least 256"),
        ({"max_size": 8, "length_fn": len, "pool_size": 7}, "pool_size is 7; give it with length_fn, and at least 8"),
        ({"max_size": 8, "length_fn": len, "capacity": 63}, "give at least what a batch is taken from, 64"),
        ({"time_domain": "event_time", "latency_slo": 1.0}, "latency_slo is given with time_domain event_time"),
        ({"time_domain": "event_time", "length_fn": len}, "length_fn is given with time_domain event_time"),
        ({"time_domain": "event_time", "allowed_sizes": (8,)}, "allowed_sizes is given with time_domain event_time"),
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


def test_a_pool_is_eight_batches_where_nobody_gave_one() -> None:
    assert [BatchPolicy(8).pool, BatchPolicy(8, length_fn=len).pool] == [0, 64]
    assert BatchPolicy(8, length_fn=len, pool_size=10).pool == 10
