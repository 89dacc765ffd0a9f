from __future__ import annotations

import pickle

import pytest

from contbatch.transforms.testing import ManualClock, stepwise


def test_a_manual_clock_moves_only_when_told() -> None:
    clock = ManualClock(5.0)
    assert (clock(), clock()) == (5.0, 5.0)
    clock.advance(2.5)
    assert clock() == 7.5
    with pytest.raises(ValueError, match="cannot advance by -1 s; give 0 or more"):
        clock.advance(-1)


def test_a_manual_clock_stays_the_same_when_a_runner_pickles_it() -> None:
    clock = ManualClock()
    copy = pickle.loads(pickle.dumps(clock))  # noqa: S301
    clock.advance(3.0)
    assert copy() == 3.0


def test_a_source_without_steps_is_refused() -> None:
    with pytest.raises(ValueError, match="step is 0 s; give at least a microsecond"):
        stepwise([], 0)
