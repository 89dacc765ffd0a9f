"""How much may wait, on a device that takes 10 ms and 0.5 ms an element: 32 in 26 ms, one of 32 in 0.8125 ms."""

from __future__ import annotations

from typing import Any

import pytest

from contbatch.transforms.batching import Admission, BatchPolicy, CostModel, Scheduler


def known_device(per_weight: float = 0.0) -> CostModel:
    model = CostModel()
    for size in (1, 8, 16, 32) * 6:
        for weight in (0, 10 * size) if per_weight else (0,):
            model.observe(size, 0.010 + 0.0005 * size + per_weight * weight, weight)
    return model


def admission(**bounds: Any) -> Admission:
    return Admission(BatchPolicy(32, **bounds), known_device())


def test_work_is_that_of_full_batches() -> None:
    assert admission().seconds(64) == pytest.approx(0.052, rel=1e-3)
    assert Admission(BatchPolicy(32), CostModel()).seconds(1_000) == 0


def test_weight_is_work() -> None:
    """0.1 ms a unit: 10 elements of 5 are 8.125 + 5 ms."""
    ours = Admission(BatchPolicy(32, weight_fn=float), known_device(0.0001))
    assert ours.seconds(10, 50.0) == pytest.approx(0.013125, rel=0.02)


@pytest.mark.parametrize(
    ("waiting", "running", "room"),
    [
        (0, 0.0, 99),  # 81 ms hold 99.7
        (64, 0.0, 35),  # 52 ms are there, and 29 hold 35.7
        (64, 0.0130, 19),  # the device is busy for 13 ms more
        (112, 0.0, -13),  # 91 ms are 10 too many: 12.3 elements
    ],
)
def test_room_is_what_is_left_of_the_seconds(waiting: int, running: float, room: int) -> None:
    assert admission(capacity_seconds=0.081).room(waiting, running=running) == room


def test_the_tighter_bound_counts() -> None:
    assert admission(capacity=40, capacity_seconds=0.081).room(30) == 10
    assert admission(capacity=40).room(50) == -10


def test_a_device_without_work_takes_one_however_long_it_is() -> None:
    assert admission(capacity_seconds=0.0001).room(0) == 1
    assert admission(capacity_seconds=0.0001).room(0, running=1.0) < 1


def test_before_a_batch_was_seen_elements_alone_bound() -> None:
    assert Admission(BatchPolicy(32, capacity=50, capacity_seconds=0.001), CostModel()).room(10) == 40


@pytest.mark.parametrize(("overflow", "refused"), [("shed", 3), ("block", 0)])
def test_what_is_too_much_is_counted_only_where_it_is_given_up(overflow: str, refused: int) -> None:
    """13 ms hold 16 of 0.8125 ms."""
    policy = BatchPolicy(32, capacity_seconds=0.01301, overflow=overflow)
    scheduler: Scheduler[int] = Scheduler(policy, known_device())
    assert sum(scheduler.submit(number, 0.0) for number in range(19)) == 16
    counts = scheduler.statistics()
    assert (counts.submitted, counts.refused, counts.waiting) == (16 + refused, refused, 16)
    assert counts.waiting_seconds == pytest.approx(0.013, rel=1e-3)
