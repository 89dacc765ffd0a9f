"""When a free device waits: for what is likely to come at once, and for less than it saves."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contbatch.transforms.engine.hold import Hold


def seen(*arrivals: float) -> Hold:
    hold = Hold()
    for time in arrivals:
        hold.arrived(time)
    return hold


def test_without_a_gap_it_does_not_wait() -> None:
    assert Hold().until(1, 1, 1.0) == -math.inf
    assert seen(1.0).until(1, 1, 1.0) == -math.inf


def test_it_waits_for_three_gaps_after_the_last_arrival() -> None:
    assert math.isclose(seen(0.0, 0.001, 0.002).until(1, 1, 0.010), 0.002 + 3 * 0.001)


def test_a_return_is_another_thing_than_a_gap() -> None:
    hold = seen(0.0, 0.001)
    hold.delivered(1.0, 2)
    assert hold.until(1, 1, 1.0) == -math.inf  # no return was seen
    hold.arrived(1.004)
    assert math.isclose(hold.until(1, 1, 1.0), 1.004 + 3 * 0.001)
    hold.delivered(2.0, 2)
    assert math.isclose(hold.until(1, 1, 1.0), 2.0 + 3 * 0.004)


@pytest.mark.parametrize(
    ("waiting", "giving", "fixed", "waits"),
    [
        (1, 1, 0.0021, True),  # 1 * 1 ms <= half of 1 * 2.1 ms
        (1, 1, 0.0019, False),
        (4, 1, 0.0081, True),
        (4, 1, 0.0079, False),
        (4, 4, 0.0021, True),
        (0, 1, 0.0021, True),
        (1, 0, 1.0, False),
    ],
)
def test_what_waits_loses_less_than_half_of_what_those_that_come_save(
    waiting: int, giving: int, fixed: float, waits: bool
) -> None:
    assert (seen(0.0, 0.001).until(waiting, giving, fixed) > 0) is waits


def cycles(times: int, seconds: float, comes: float) -> Hold:
    """An answer at the beginning of each cycle, and so long after it the next arrival; two bundles are open."""
    hold = Hold()
    for cycle in range(times):
        hold.delivered(cycle * seconds, 2)
        hold.arrived(cycle * seconds + comes)
    return hold


def test_callers_are_waited_for_that_come_back_and_no_others() -> None:
    back = cycles(8, 0.010, 0.0029)  # 2.9 ms after an answer: before 0.3 of the 10 ms from one arrival to the next
    back.delivered(0.080, 2)
    assert math.isclose(back.until(1, 0, 0.010), 0.080 + 3 * 0.0029)
    others = cycles(8, 0.010, 0.0031)
    others.delivered(0.080, 2)
    assert others.until(1, 0, 0.010) == -math.inf
    assert others.until(1, 1, 0.010) > 0.080  # but one that is there, and gives more


def test_the_peak_is_that_of_the_last_deliveries() -> None:
    hold = Hold()
    assert hold.peak == 0
    for bundles in (8, 2, *[1] * 14):
        hold.delivered(0.0, bundles)
    assert hold.peak == 8
    hold.delivered(0.0, 1)
    assert hold.peak == 2


@given(st.lists(st.floats(0, 10), min_size=2), st.integers(0, 100), st.integers(0, 100), st.floats(0, 1))
def test_it_never_waits_for_more_than_its_gain(times: list[float], waiting: int, giving: int, fixed: float) -> None:
    times = sorted(times)
    assert seen(*times).until(waiting, giving, fixed) <= times[-1] + 3 * giving * fixed / 2
