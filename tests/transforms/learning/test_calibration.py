from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from contbatch.transforms.learning.calibration import CalibrationMonitor, CalibrationState

Row = tuple[float, float, float, float]

row = st.tuples(st.floats(0.0, 1.0), st.floats(0.0, 1.0), st.floats(-1e4, 1e4), st.floats(0.1, 10.0))
rows = st.lists(row, max_size=12)


def learn(monitor: CalibrationMonitor, state: CalibrationState, some: list[Row]) -> CalibrationState:
    scores, labels, times, weights = np.array(some, float).reshape(-1, 4).T
    return monitor.learn(state, scores, labels, times, weights)


def of(monitor: CalibrationMonitor, scores: list[Any], labels: list[Any], times: list[Any]) -> CalibrationState:
    return monitor.learn(monitor.init(), np.array(scores), np.array(labels), np.array(times))


def test_the_mean_prediction_over_the_mean_label() -> None:
    monitor = CalibrationMonitor((10.0,))
    state = of(monitor, [0.2, 0.4, 0.3], [0.0, 1.0, 0.0], [5.0, 5.0, 5.0])
    assert monitor.ratios(state) == {10.0: pytest.approx(0.9)}


def test_a_row_counts_half_after_its_horizon() -> None:
    monitor = CalibrationMonitor((10.0, 20.0))
    state = of(monitor, [0.2, 0.8], [0.5, 1.0], [0.0, 20.0])
    # After 20 s the first row counts 1/4 over a horizon of 10 s, and 1/2 over one of 20 s.
    assert monitor.ratios(state) == {
        10.0: pytest.approx((0.2 / 4 + 0.8) / (0.5 / 4 + 1.0)),
        20.0: pytest.approx((0.2 / 2 + 0.8) / (0.5 / 2 + 1.0)),
    }


def test_a_short_horizon_shows_a_jump_that_a_long_one_hides() -> None:
    monitor = CalibrationMonitor((60.0, 86400.0))
    times = np.arange(0.0, 2 * 86400, 60)
    labels = np.where(times < times[-10], 0.1, 0.2)
    ratios = monitor.ratios(monitor.learn(monitor.init(), np.full(len(times), 0.1), labels, times))
    assert ratios[60.0] == pytest.approx(0.5, abs=0.01)
    assert ratios[86400.0] > 0.98


def test_without_weights_each_row_counts_one() -> None:
    monitor = CalibrationMonitor()
    plain = of(monitor, [0.2, 0.6], [0.0, 1.0], [1.0, 2.0])
    weighed = learn(monitor, monitor.init(), [(0.2, 0.0, 1.0, 1.0), (0.6, 1.0, 2.0, 1.0)])
    assert monitor.ratios(plain) == monitor.ratios(weighed)
    heavier = learn(monitor, monitor.init(), [(0.2, 0.0, 2.0, 3.0), (0.6, 1.0, 2.0, 1.0)])
    assert monitor.ratios(heavier)[60.0] == pytest.approx(3 * 0.2 + 0.6)


def test_no_rows_have_no_ratio_and_no_positives_an_infinite_one() -> None:
    monitor = CalibrationMonitor((10.0,))
    assert math.isnan(monitor.ratios(monitor.init())[10.0])
    assert math.isnan(monitor.ratios(of(monitor, [], [], []))[10.0])
    assert monitor.ratios(of(monitor, [0.2], [0.0], [1.0])) == {10.0: math.inf}


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", range(4))
def test_a_row_that_is_not_finite_is_counted_and_left_out(bad: float, place: int) -> None:
    monitor = CalibrationMonitor((10.0,))
    broken = [0.5, 1.0, 7.0, 1.0]
    broken[place] = bad
    good = (0.2, 0.5, 3.0, 1.0)
    state = learn(monitor, monitor.init(), [good, (*broken,)])
    alone = learn(monitor, monitor.init(), [good])
    assert (state.skipped, alone.skipped) == (1, 0)
    assert monitor.ratios(state) == monitor.ratios(alone) == {10.0: pytest.approx(0.4)}
    assert state.time == 3.0
    assert learn(monitor, state, [(*broken,), good]).skipped == 2
    assert learn(monitor, monitor.init(), [(*broken,)]).skipped == 1


@given(rows, st.randoms(use_true_random=False))
def test_the_order_and_the_batches_of_rows_do_not_matter(some: list[Row], random: Any) -> None:
    monitor = CalibrationMonitor((100.0, 5000.0))
    whole = learn(monitor, monitor.init(), some)
    mixed = some.copy()
    random.shuffle(mixed)
    cut = random.randint(0, len(some))
    parts = learn(monitor, learn(monitor, monitor.init(), mixed[:cut]), mixed[cut:])
    assert parts.time == whole.time
    assert parts.scores == pytest.approx(whole.scores, rel=1e-9)
    assert parts.labels == pytest.approx(whole.labels, rel=1e-9)


@given(rows, rows)
def test_learning_changes_no_state_and_a_restored_one_goes_on_exactly(first: list[Row], second: list[Row]) -> None:
    monitor = CalibrationMonitor()
    state = learn(monitor, monitor.init(), first)
    arrays = monitor.export(state)
    after = learn(monitor, state, second)
    again = learn(monitor, monitor.load(arrays), second)
    left, right = monitor.export(after), monitor.export(again)
    assert all(np.array_equal(left[name], right[name]) for name in left)
    assert all(np.array_equal(arrays[name], value) for name, value in monitor.export(state).items())


def test_sums_of_other_horizons_are_refused() -> None:
    arrays = CalibrationMonitor((10.0,)).export(CalibrationMonitor((10.0,)).init())
    with pytest.raises(ValueError, match=r"of horizons \(10.0,\), not \(20.0,\); load them with"):
        CalibrationMonitor((20.0,)).load(arrays)
    with pytest.raises(ValueError, match=r"of horizons \(\), not"):
        CalibrationMonitor((20.0,)).load({})


@pytest.mark.parametrize("horizons", [(), (0.0,), (-1.0,), (math.inf,), (math.nan,), (5.0, 5.0)])
def test_horizons_that_cannot_be_are_refused(horizons: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match=r"horizons is .*; give finite numbers of seconds above 0, each once"):
        CalibrationMonitor(horizons)
