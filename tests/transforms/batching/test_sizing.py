"""Sizes on a device that takes 10 ms and 0.5 ms an element."""

from __future__ import annotations

import math
from typing import Any

import pytest

from contbatch.transforms.batching import BatchPolicy, CostModel, Reason, Scheduler
from contbatch.transforms.batching.sizing import Sizing


def known_device(a: float = 0.010, b: float = 0.0005) -> CostModel:
    model = CostModel()
    for size in (1, 8, 16, 32) * 6:
        model.observe(size, a + b * size)
    return model


def sizing(cost: CostModel | None = None, **bounds: Any) -> Sizing:
    return Sizing(BatchPolicy(**bounds), cost or known_device())


@pytest.mark.parametrize(
    ("bounds", "enough"),
    [
        ({"max_size": 64}, 64),
        ({"max_size": 64, "max_seconds": 0.0204}, 20),
        ({"max_size": 64, "target_overhead": 0.51}, 20),  # 10 * 0.49 / (0.51 * 0.5) = 19.2
        ({"max_size": 64, "target_overhead": 0.01}, 64),
        ({"max_size": 64, "max_seconds": 0.0154, "target_overhead": 0.51}, 10),
        ({"max_size": 64, "max_seconds": 0.0154, "min_size": 16}, 16),
        ({"max_size": 64, "target_overhead": 0.9, "min_size": 16}, 16),
    ],
)
def test_a_batch_is_large_enough(bounds: dict[str, Any], enough: int) -> None:
    assert sizing(**bounds).enough() == enough


def test_what_fits_into_the_slack_is_not_less_than_the_least_size() -> None:
    assert sizing().most(0.0121, 50) == 4
    assert sizing(min_size=8).most(0.0121, 50) == 8
    assert sizing(min_size=8).most(0.0121, 5) == 5
    assert sizing().most(math.inf, 50) == 50


@pytest.mark.parametrize(
    ("a", "b", "waiting", "flush", "taken"),
    [
        (0.010, 0.0005, 32, False, 32),
        (0.010, 0.0005, 40, False, 32),
        (0.010, 0.0005, 8, False, 8),
        (0.010, 0.0005, 5, False, 5),  # the least size pads anything
        # 16 padded for 9: 18 / 9 = 2 ms each; 8 alone: 14 / 8 = 1.75 ms each
        (0.010, 0.0005, 9, False, 8),
        # with the one that is left: 18 against 14 + 14
        (0.010, 0.0005, 9, True, 9),
        # 15: 18 / 15 = 1.2 ms each
        (0.010, 0.0005, 15, False, 15),
        # nearly all by the element: 32 padded for 17 are 33 against 17 + 9 ms
        (0.001, 0.001, 17, True, 16),
    ],
)
def test_a_size_is_padded_up_or_leaves_a_remainder(a: float, b: float, waiting: int, flush: bool, taken: int) -> None:
    ours = sizing(known_device(a, b), allowed_sizes=(8, 16, 32))
    assert ours.static([math.inf] * waiting, flush) == taken


def test_a_remainder_that_would_be_late_is_not_left() -> None:
    """8 and then 8 for the one that is left are 28 ms; the ninth has 27."""
    ours = sizing(allowed_sizes=(8, 16, 32))
    assert ours.static([0.1] * 8 + [0.0295], flush=False) == 8
    assert ours.static([0.1] * 8 + [0.027], flush=False) == 9


def test_a_size_that_would_be_late_is_not_padded_to() -> None:
    """16 are 18 ms, and the first has 17."""
    assert sizing(allowed_sizes=(8, 16, 32)).static([0.017] * 15, flush=True) == 8


def test_the_device_is_told_the_size_that_is_padded_to() -> None:
    ours: Scheduler[int] = Scheduler(BatchPolicy(allowed_sizes=(4, 8)), known_device())
    for number in range(11):
        ours.submit(number, 0.0)
    first, second = ours.release(0.0, flush=True), ours.release(0.0, flush=True)
    assert (len(first.batch), first.size, first.reason) == (8, 8, Reason.SIZE)
    assert (len(second.batch), second.size) == (3, 4)
