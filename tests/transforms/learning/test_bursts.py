from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from contbatch.transforms.learning.bursts import BurstCapped, BurstState
from contbatch.transforms.learning.learner import Arrays, Columns

Floats = np.ndarray[Any, np.dtype[np.float64]]


class Weights:
    """Notes the weight of every row that it learns."""

    fields = ("x",)

    def init(self) -> Floats:
        return np.zeros(0)

    def predict(self, state: Floats, columns: Columns) -> Floats:
        return np.full(len(columns["x"]), 0.5)

    def step(self, state: Floats, columns: Columns, labels: Floats, weights: Floats) -> Floats:
        return np.concatenate([state, weights])

    def export(self, state: Floats) -> Arrays:
        return {"weights": state.copy()}

    def load(self, arrays: Arrays) -> Floats:
        return arrays["weights"].copy()


State = BurstState[Floats]


def learn(
    learner: BurstCapped[Floats], state: State, users: list[Any], times: list[Any] | None = None, weight: float = 1.0
) -> State:
    size = len(users)
    columns = {"x": [0] * size, "user": users, "event_time": [0.0] * size if times is None else times}
    return learner.step(state, columns, np.zeros(size), np.full(size, weight))


def test_rows_beyond_the_cap_count_less_and_less() -> None:
    learner = BurstCapped(Weights(), "user", most=2)
    state = learn(learner, learner.init(), ["ann", "bob", "ann", "ann", "ann", "bob", "ann"], weight=10.0)
    # ann's rows 1 to 5 and bob's 1 and 2: 2 / 3, 2 / 4 and 2 / 5 beyond her cap
    assert state.inner == pytest.approx([10, 10, 10, 20 / 3, 5, 10, 4])
    assert (state.capped, state.given) == (3, 70.0)
    assert state.learned == pytest.approx(50 + 20 / 3 - 1)


def test_a_new_stretch_of_rows_begins_anew() -> None:
    learner = BurstCapped(Weights(), "user", most=1, rows=3)
    state = learn(learner, learner.init(), ["ann"] * 7)
    assert state.inner == pytest.approx([1, 1 / 2, 1 / 3, 1, 1 / 2, 1 / 3, 1])


def test_a_new_stretch_of_time_begins_anew_and_late_rows_count_in_it() -> None:
    learner = BurstCapped(Weights(), "user", most=1, seconds=60.0)
    state = learn(learner, learner.init(), ["ann"] * 7, [0.0, 59.9, 60.0, 10.0, None, math.nan, "120"])
    assert state.inner == pytest.approx([1, 1 / 2, 1, 1 / 2, 1 / 3, 1 / 4, 1])


def test_a_time_that_is_not_finite_begins_nothing() -> None:
    learner = BurstCapped(Weights(), "user", most=1, seconds=60.0)
    state = learn(learner, learner.init(), ["ann"] * 4, [0.0, math.inf, 59.0, 60.0])
    assert state.inner == pytest.approx([1, 1 / 2, 1 / 3, 1])


def test_a_stretch_that_a_late_row_begins_is_not_of_its_time() -> None:
    learner = BurstCapped(Weights(), "user", most=1, seconds=60.0, rows=2)
    state = learn(learner, learner.init(), ["ann"] * 4, [120.0, 120.0, 0.0, 120.0])
    assert state.inner == pytest.approx([1, 1 / 2, 1, 1 / 2])


def test_memory_is_bounded_by_the_rows_of_a_stretch() -> None:
    learner = BurstCapped(Weights(), "user", most=1, seconds=60.0, rows=10)
    state = learner.init()
    for number in range(50):
        state = learn(learner, state, [f"user {number}"])
        assert len(state.seen) <= 10


users = st.lists(st.tuples(st.sampled_from("abc"), st.floats(-200, 200)), max_size=40)


@given(users, st.integers(1, 4), st.sampled_from([30.0, math.inf]), st.integers(1, 20))
def test_no_row_is_lost_and_no_weight_uncounted(
    rows: list[tuple[str, float]], most: int, seconds: float, stretch: int
) -> None:
    learner = BurstCapped(Weights(), "user", most, seconds, stretch)
    state = learn(learner, learner.init(), [user for user, _ in rows], [time for _, time in rows], weight=3.0)
    assert len(state.inner) == len(rows)
    assert (state.inner > 0).all()
    assert (state.inner <= 3.0).all()
    assert state.given == 3.0 * len(rows)
    assert state.learned == pytest.approx(state.inner.sum())
    assert state.capped == (state.inner < 3.0).sum()


@given(users, st.integers(0, 40), st.integers(1, 20))
def test_restored_and_cut_elsewhere_goes_on_as_if_not_interrupted(
    rows: list[tuple[str, float]], where: int, stretch: int
) -> None:
    learner = BurstCapped(Weights(), "user", 2, 30.0, stretch)
    names, times = [user for user, _ in rows], [time for _, time in rows]
    whole = learn(learner, learner.init(), names, times)
    first = learn(learner, learner.init(), names[:where], times[:where])
    restored = learner.load({name: array.copy() for name, array in learner.export(first).items()})
    restored = learn(learner, restored, names[where:], times[where:])
    assert np.array_equal(restored.inner, whole.inner)
    assert restored[:5] == whole[:5]
    assert restored.learned == pytest.approx(whole.learned)


def test_keys_of_any_kind_are_restored() -> None:
    learner = BurstCapped(Weights(), "user", 1)
    state = learn(learner, learner.init(), ["é\n", 7, None])
    assert learner.load(learner.export(state)).seen == {"é\n": 1, "7": 1, "None": 1}


def test_columns_read() -> None:
    assert BurstCapped(Weights(), "user", 1).fields == ("x", "user")
    assert BurstCapped(Weights(), "user", 1, seconds=60.0).fields == ("x", "user", "event_time")
    assert BurstCapped(Weights(), "user", 1).predict(BurstCapped(Weights(), "user", 1).init(), {"x": [1]}) == [0.5]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"most": 0}, "most is 0 rows; give 1 or more"),
        ({"rows": 0}, "rows is 0 rows; give 1 or more"),
        ({"seconds": 0.0}, "seconds is 0.0; give seconds above 0, or math.inf"),
        ({"seconds": math.nan}, "seconds is nan; give seconds above 0"),
    ],
)
def test_settings_outside_their_range_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BurstCapped(Weights(), "user", **{"most": 1, **settings})
