from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from contbatch.transforms.learning.learner import Arrays, Columns
from contbatch.transforms.learning.statistics import RunningStatistics, Standardized, StandardizedState, floats

HALF_LIFE = 100.0

Row = tuple[float, float, float, float]

numbers = st.floats(-1e6, 1e6)
row = st.tuples(numbers, numbers, st.floats(0.0, 1000.0), st.floats(0.1, 10.0))
rows = st.lists(row, max_size=12)


class Recorder:
    """Adds up the labels it learns, and notes the rows it is given."""

    fields = ("price", "size", "user")

    def __init__(self) -> None:
        self.predicted: list[list[tuple[Any, ...]]] = []
        self.learned: list[list[tuple[Any, ...]]] = []

    def init(self) -> float:
        return 0.0

    def predict(self, state: float, columns: Columns) -> np.ndarray[Any, np.dtype[np.float64]]:
        self.predicted.append(list(zip(*(columns[field] for field in self.fields), strict=True)))
        return np.array(columns["price"]) + state

    def step(self, state: float, columns: Columns, labels: Any, weights: Any) -> float:
        self.learned.append(list(zip(*(columns[field] for field in self.fields), strict=True)))
        return state + float(labels @ weights)

    def export(self, state: float) -> Arrays:
        return {"sum": np.array([state])}

    def load(self, arrays: Arrays) -> float:
        return float(arrays["sum"][0])


def standardized(**settings: Any) -> Standardized[float]:
    return Standardized(Recorder(), ("price", "size"), HALF_LIFE, **settings)


def columns(prices: list[Any], times: list[Any] | None = None, sizes: list[Any] | None = None) -> dict[str, list[Any]]:
    size = len(prices)
    return {
        "price": prices,
        "size": [1.0] * size if sizes is None else sizes,
        "user": ["ann"] * size,
        "event_time": [0.0] * size if times is None else times,
    }


def learn(wrapper: Standardized[float], state: StandardizedState[float], batch: Columns) -> StandardizedState[float]:
    size = len(batch["price"])
    return wrapper.step(state, batch, np.ones(size), np.ones(size))


def statistics(some_rows: list[Row]) -> RunningStatistics:
    table = np.array(some_rows).reshape(-1, 4)
    return RunningStatistics.empty(2).learn(table[:, :2], table[:, 2], table[:, 3], HALF_LIFE)


def close(left: RunningStatistics, right: RunningStatistics) -> bool:
    assert left.time == right.time
    scale = np.maximum(1.0, np.abs(right.squares))
    return (
        np.allclose(left.weight, right.weight, rtol=1e-9)
        and np.allclose(left.mean, right.mean, rtol=1e-9, atol=1e-9 * 1e6)
        and bool((np.abs(left.squares - right.squares) <= 1e-9 * (scale + 1e12 * right.weight)).all())
    )


def test_mean_and_deviation_by_hand() -> None:
    """1, 3 and 8 with weights 1, 1, 2: mean 20 / 4 = 5, squares 16 + 4 + 2 * 9 = 38."""
    values = np.array([[1.0], [3.0], [8.0]])
    result = RunningStatistics.empty(1).learn(values, np.zeros(3), np.array([1.0, 1.0, 2.0]), HALF_LIFE)
    assert (result.weight[0], result.mean[0], result.squares[0]) == (4.0, 5.0, 38.0)
    assert result.std[0] == math.sqrt(38 / 4)


def test_a_row_counts_half_after_a_half_life() -> None:
    """0 at time 0, 3 at time 100: weights 1/2 and 1, mean 3 / 1.5 = 2, squares 4/2 + 1 = 3."""
    once = RunningStatistics.empty(1).learn(np.array([[0.0], [3.0]]), np.array([0.0, 100.0]), np.ones(2), 100.0)
    late = (
        RunningStatistics.empty(1)
        .learn(np.array([[3.0]]), np.array([100.0]), np.ones(1), 100.0)
        .learn(np.array([[0.0]]), np.array([0.0]), np.ones(1), 100.0)
    )
    for result in (once, late):
        assert (result.weight[0], result.mean[0], result.time) == (1.5, 2.0, 100.0)
        assert result.squares[0] == pytest.approx(3.0)


def test_the_weight_stays_bounded() -> None:
    """One row a half-life: 1 + 1/2 + 1/4 + ... = 2, however long it goes on."""
    result = RunningStatistics.empty(1)
    for second in range(200):
        result = result.learn(np.array([[7.0]]), np.array([100.0 * second]), np.ones(1), 100.0)
    assert result.weight[0] == pytest.approx(2.0)
    assert result.std[0] == 0.0


@given(rows, rows, st.permutations(range(24)))
def test_merging_equals_learning_both(left: list[Row], right: list[Row], order: list[int]) -> None:
    both = left + right
    shuffled = [both[index] for index in order if index < len(both)]
    whole = statistics(shuffled)
    assert close(statistics(left).merge(statistics(right), HALF_LIFE), whole)
    assert close(statistics(right).merge(statistics(left), HALF_LIFE), whole)


@given(st.lists(row, min_size=1, max_size=12))
def test_learning_one_by_one_equals_the_formula(some_rows: list[Row]) -> None:
    result = RunningStatistics.empty(2)
    for first, second, time, weight in some_rows:
        result = result.learn(np.array([[first, second]]), np.array([time]), np.array([weight]), HALF_LIFE)
    table = np.array(some_rows)
    share = table[:, 3] * 2.0 ** ((table[:, 2] - table[:, 2].max()) / HALF_LIFE)
    mean = np.average(table[:, :2], axis=0, weights=share)
    assert np.allclose(result.mean, mean, rtol=1e-9, atol=1e-3)
    variance = np.average((table[:, :2] - mean) ** 2, axis=0, weights=share)
    assert np.allclose(result.squares / result.weight, variance, rtol=1e-9, atol=1e3)


@given(st.floats(-1e9, 1e9), st.integers(2, 9))
def test_a_constant_column_has_no_deviation(value: float, count: int) -> None:
    result = RunningStatistics.empty(1)
    for time in range(count):
        result = result.learn(np.array([[value]]), np.array([3.7 * time]), np.array([1.1]), HALF_LIFE)
    assert result.std[0] == 0.0
    assert result.standardize(np.array([[value], [value + 1e6]]), 10.0).tolist() == [[0.0], [0.0]]


def test_a_prediction_is_standardised_by_hand() -> None:
    """Prices 1 and 5: mean 3, deviation 2; 7 becomes 2, and 1000 the limit. Other columns stay as they are."""
    wrapper = standardized()
    state = learn(wrapper, wrapper.init(), columns([1.0, 5.0]))
    assert wrapper.predict(state, columns([7.0, 1000.0, -1000.0])).tolist() == [2 + 2.0, 2 + 10.0, 2 - 10.0]
    assert wrapper.learner.predicted[-1][0] == (2.0, 0.0, "ann")  # type: ignore[attr-defined]


def test_rows_are_learned_as_they_were_served() -> None:
    wrapper = standardized()
    state = wrapper.init()
    rng = np.random.default_rng(5)
    for second in range(30):
        size = int(rng.integers(1, 9))
        batch = columns(rng.lognormal(3, 2, size).tolist(), [float(second)] * size, rng.normal(size=size).tolist())
        wrapper.predict(state, batch)
        state = learn(wrapper, state, batch)
    served, learned = wrapper.learner.predicted, wrapper.learner.learned  # type: ignore[attr-defined]
    assert served == learned  # floats: equal bit for bit
    assert np.abs(np.array([row[:2] for batch in served for row in batch])).max() > 0


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e101, None, "cheap", 10**400])
def test_what_is_no_finite_number_is_the_mean_and_is_counted(bad: object) -> None:
    wrapper = standardized()
    clean = learn(wrapper, wrapper.init(), columns([1.0, 5.0], sizes=[1.0, 3.0]))
    state = learn(wrapper, wrapper.init(), columns([1.0, bad, 5.0], sizes=[1.0, 2.0, 3.0]))
    assert state.statistics.skipped.tolist() == [1, 0]
    assert state.statistics.mean.tolist() == [3.0, 2.0]
    assert state.statistics.weight.tolist() == [2.0, 3.0]  # the row's other number counts
    assert state.statistics.std[0] == clean.statistics.std[0]
    assert wrapper.predict(state, columns([bad])).tolist() == [0.0 + state.inner]


def test_a_row_without_a_time_does_not_enter_the_statistics() -> None:
    wrapper = standardized()
    state = learn(wrapper, wrapper.init(), columns([1.0, 9.0, 5.0], [0.0, math.inf, 0.0]))
    state = learn(wrapper, state, columns([9.0], [None]))
    assert state.statistics.mean.tolist() == [3.0, 1.0]
    assert state.statistics.skipped.tolist() == [2, 2]
    assert state.statistics.time == 0.0


def test_no_rows_change_nothing() -> None:
    wrapper = standardized()
    state = learn(wrapper, wrapper.init(), columns([1.0, 5.0]))
    after = learn(wrapper, state, columns([]))
    assert all(np.array_equal(a, b) for a, b in zip(state.statistics, after.statistics, strict=True))
    assert wrapper.predict(state, columns([])).shape == (0,)
    assert learn(wrapper, wrapper.init(), columns([])).statistics.time == -math.inf


@given(st.lists(st.lists(row, min_size=1, max_size=5), min_size=1, max_size=4))
def test_export_and_load_go_on_exactly(batches: list[list[Row]]) -> None:
    wrapper = standardized()
    state = wrapper.init()
    as_columns = [columns([r[0] for r in batch], [r[2] for r in batch], [r[1] for r in batch]) for batch in batches]
    for batch in as_columns:
        restored = wrapper.load({name: array.copy() for name, array in wrapper.export(state).items()})
        state, restored = learn(wrapper, state, batch), learn(wrapper, restored, batch)
        assert all(np.array_equal(a, b) for a, b in zip(state.statistics, restored.statistics, strict=True))
        assert state.inner == restored.inner


def test_nothing_is_shared_with_the_statistics() -> None:
    """What is exported, or was loaded from, may be changed in place; the statistics stay what they are."""
    wrapper = standardized()
    state = learn(wrapper, wrapper.init(), columns([1.0, 5.0], sizes=[1.0, 3.0]))
    exported = wrapper.export(state)
    wanted = {name: array.copy() for name, array in exported.items()}
    restored = wrapper.load(exported)
    for name in ("weight", "mean", "squares", "skipped", "time"):
        exported[name][:] = 7
    wrapper.predict(state, columns([7.0]))
    for one in (state, restored):
        again = wrapper.export(one)
        assert {name: array.tolist() for name, array in again.items()} == {
            name: array.tolist() for name, array in wanted.items()
        }
    later = learn(wrapper, state, columns([100.0], [50.0]))
    assert later.statistics.mean[0] != 3.0
    assert wrapper.export(state)["mean"].tolist() == wanted["mean"].tolist()
    with pytest.raises(ValueError, match="read-only"):
        state.statistics.squares[:] = 1 / state.statistics.squares


def test_arrays_of_other_columns_are_refused() -> None:
    wrapper = standardized()
    arrays = wrapper.export(wrapper.init())
    other = Standardized(Recorder(), ("size", "price"), HALF_LIFE)
    with pytest.raises(ValueError, match=r"statistics of \('price', 'size'\), not of \('size', 'price'\)"):
        other.load(arrays)
    with pytest.raises(ValueError, match=r"statistics of \(\), not of"):
        other.load({})


def test_columns_read_are_those_of_the_learner_and_the_time() -> None:
    assert standardized().fields == ("price", "size", "user", "event_time")
    assert standardized(time_field="size").fields == ("price", "size", "user")


def test_floats_of_a_mixed_column() -> None:
    assert np.array_equal(floats([1, "2.5", None, "x", [3]]), [1.0, 2.5, math.nan, math.nan, math.nan], equal_nan=True)


@pytest.mark.parametrize(
    ("setting", "text"),
    [
        ({"numbers": ()}, r"numbers is \(\); name one column or more, each once"),
        ({"numbers": ("size", "size")}, "each once"),
        ({"numbers": ("age",)}, "numbers names 'age', which is not one of the learner's"),
        ({"half_life": 0.0}, r"half_life is 0.0 s; give a finite number of seconds above 0"),
        ({"half_life": math.inf}, "half_life is inf s"),
        ({"limit": math.nan}, "limit is nan; give a finite number above 0"),
    ],
)
def test_a_setting_outside_its_range_is_refused(setting: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        Standardized(**{"learner": Recorder(), "numbers": ("price",), "half_life": 1.0, **setting})
