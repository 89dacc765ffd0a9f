from __future__ import annotations

import json
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from contbatch.transforms.learning.learner import Arrays, Columns
from contbatch.transforms.learning.observed import FIELD, Observed
from contbatch.transforms.learning.replay_buffer import ReplayBuffer, Replayed, Rows, due

Floats = np.ndarray[Any, np.dtype[np.float64]]


class Log:
    """Notes the rows it learns, as (x, label, weight), one list a step."""

    fields = ("x",)

    def init(self) -> list[list[tuple[Any, float, float]]]:
        return []

    def predict(self, state: Any, columns: Columns) -> Floats:
        return np.full(len(columns["x"]), float(len(state)))

    def step(self, state: Any, columns: Columns, labels: Floats, weights: Floats) -> Any:
        return [*state, list(zip(columns["x"], labels.tolist(), weights.tolist(), strict=True))]

    def export(self, state: Any) -> Arrays:
        return {"log": np.array([row for step in state for row in step]), "steps": np.array([len(s) for s in state])}

    def load(self, arrays: Arrays) -> Any:
        rows = iter(arrays["log"].tolist())
        return [[tuple(next(rows)) for _ in range(size)] for size in arrays["steps"].tolist()]


def add(buffer: ReplayBuffer, rows: Rows, values: list[Any], keys: list[str] | None = None) -> None:
    columns = {"x": values, "user": keys or ["ann"] * len(values)}
    buffer.add(rows, columns, ("x", "user"), np.zeros(len(values)), np.ones(len(values)))


def kept(buffer: ReplayBuffer, rows: Rows) -> list[Any]:
    """The x of the rows, in the order in which they are kept."""
    return [json.loads(row.columns)["x"] for row in rows.kept]


def test_a_reservoir_keeps_all_until_it_is_full() -> None:
    buffer = ReplayBuffer(capacity=5)
    rows = buffer.init()
    add(buffer, rows, [1, 2, 3, 4, 5])
    assert kept(buffer, rows) == [1, 2, 3, 4, 5]
    add(buffer, rows, list(range(6, 200)))
    assert len(kept(buffer, rows)) == 5
    assert rows.seen == 199


def test_a_reservoir_is_a_uniform_sample() -> None:
    """10 of 100 rows, by 400 seeds: each tenth of the stream should have 400 of the 4,000, give or take 20."""
    tenths: Counter[int] = Counter()
    for seed in range(400):
        buffer = ReplayBuffer(capacity=10, seed=seed)
        rows = buffer.init()
        add(buffer, rows, list(range(100)))
        tenths.update(value // 10 for value in kept(buffer, rows))
    assert sum(tenths.values()) == 4_000
    assert all(320 < tenths[tenth] < 480 for tenth in range(10))


def test_each_key_keeps_its_newest_rows() -> None:
    buffer = ReplayBuffer(capacity=100, key_field="user", per_key=2)
    rows = buffer.init()
    add(buffer, rows, [1, 2, 3, 4, 5, 6], ["ann", "bob", "ann", "ann", "ann", "bob"])
    assert kept(buffer, rows) == [4, 2, 5, 6]  # ann's 4 and 5 are where her 1 and 3 were


def test_a_busy_key_does_not_push_out_the_others() -> None:
    buffer = ReplayBuffer(capacity=1_000, key_field="user", per_key=2)
    rows = buffer.init()
    add(buffer, rows, [1], ["bob"])
    add(buffer, rows, list(range(2, 5_000)))
    assert sorted(kept(buffer, rows)) == [1, 4_998, 4_999]


@given(st.lists(st.text(max_size=3), max_size=60), st.integers(1, 8), st.integers(1, 3))
def test_memory_is_bounded_whatever_the_keys(keys: list[str], capacity: int, per_key: int) -> None:
    buffer = ReplayBuffer(capacity=capacity + per_key, key_field="user", per_key=per_key)
    rows = buffer.init()
    add(buffer, rows, list(range(len(keys))), keys)
    assert len(rows.kept) == len(rows.places) <= buffer.capacity
    assert len(rows.turns) == buffer.capacity // per_key
    assert rows.turns.sum() == rows.seen == len(keys)


def test_a_drawn_row_is_as_it_was_kept() -> None:
    buffer = ReplayBuffer()
    rows = buffer.init()
    columns = {"x": ["é\n\u2028", "b"], "genres": [["a", "b"], []], "age": np.array([3, 4]), "none": [None, 0.1]}
    buffer.add(rows, columns, tuple(columns), np.array([1.0, 0.25]), np.array([2.0, 3.0]))
    rows = buffer.load(buffer.export(rows))
    batch = buffer.draw(rows, 20)
    assert len(batch.labels) == len(batch.weights) == 20
    drawn = set(map(str, zip(*batch.columns.values(), batch.labels.tolist(), batch.weights.tolist(), strict=True)))
    assert drawn == {str(("é\n\u2028", ["a", "b"], 3, None, 1.0, 2.0)), str(("b", [], 4, 0.1, 0.25, 3.0))}


def test_every_kept_row_is_drawn_about_as_often() -> None:
    buffer = ReplayBuffer(capacity=4)
    rows = buffer.init()
    add(buffer, rows, [0, 1, 2, 3])
    counts = Counter(x for _ in range(100) for x in buffer.draw(rows, 40).columns["x"])
    assert rows.drawn == 4_000
    assert all(850 < counts[value] < 1_150 for value in range(4))


def test_nothing_is_drawn_of_nothing() -> None:
    buffer = ReplayBuffer()
    rows = buffer.init()
    assert buffer.draw(rows, 3).labels.shape == (0,)
    assert rows.drawn == 0


def test_values_that_are_no_json_are_refused() -> None:
    with pytest.raises(TypeError, match="keeps rows as JSON, which has no bytes; give text or numbers"):
        add(ReplayBuffer(), ReplayBuffer().init(), [b"raw"])


def step(learner: Replayed[Any], state: Any, values: list[float], weight: float = 1.0) -> Any:
    return learner.step(state, {"x": values}, np.zeros(len(values)), np.full(len(values), weight))


def test_new_rows_are_learned_at_once_and_replayed_ones_besides() -> None:
    learner = Replayed(Log(), ReplayBuffer(), share=0.5, weight=0.25)
    state = step(learner, learner.init(), [1.0, 2.0, 3.0], weight=4.0)
    assert state.inner == [[(1.0, 0.0, 4.0), (2.0, 0.0, 4.0), (3.0, 0.0, 4.0)]]  # nothing to replay yet
    state = step(learner, state, [4.0, 5.0, 6.0])
    assert state.inner[1] == [(4.0, 0.0, 1.0), (5.0, 0.0, 1.0), (6.0, 0.0, 1.0)]
    assert len(state.inner[2]) == 2  # rows 4 to 6 at a half each: floor(3) - floor(1.5)
    assert all(x <= 3.0 and weight == 1.0 for x, _, weight in state.inner[2])  # 4 times a quarter
    assert len(state.inner) == 3


@given(st.lists(st.integers(1, 9), max_size=20), st.floats(0.01, 3.0))
def test_the_share_does_not_depend_on_the_batches(sizes: list[int], share: float) -> None:
    total, replayed = 0, 0
    for size in sizes:
        replayed += due(share, total, size)
        total += size
    assert replayed == int(share * total)


@given(
    st.lists(st.integers(1, 6), max_size=12),
    st.integers(0, 12),
    st.sampled_from([ReplayBuffer(7), ReplayBuffer(8, "x", per_key=2, seed=3)]),
)
@settings(deadline=None)
def test_restored_goes_on_as_if_not_interrupted(sizes: list[int], where: int, buffer: ReplayBuffer) -> None:
    learner = Replayed(Log(), buffer, share=1.5)
    batches = [[float(number * 10 + row) for row in range(size)] for number, size in enumerate(sizes)]
    whole, state = learner.init(), learner.init()
    for number, batch in enumerate(batches):
        whole = step(learner, whole, batch)
        if number == where:
            state = learner.load({name: array.copy() for name, array in learner.export(state).items()})
        state = step(learner, state, batch)
    assert state.inner == whole.inner
    left, right = learner.export(state), learner.export(whole)
    assert all(np.array_equal(left[name], right[name]) for name in right)
    assert left.keys() == right.keys()


def test_predictions_are_those_of_the_learner() -> None:
    learner = Replayed(Log())
    state = step(learner, learner.init(), [1.0])
    assert learner.predict(state, {"x": [1, 2]}).tolist() == [1.0, 1.0]
    assert learner.fields == ("x",)
    assert Replayed(Log(), ReplayBuffer(key_field="user")).fields == ("x", "user")


def test_rows_of_another_buffer_are_refused() -> None:
    buffer = ReplayBuffer(capacity=20)
    rows = buffer.init()
    add(buffer, rows, list(range(20)))
    arrays = buffer.export(rows)
    with pytest.raises(ValueError, match=r"20 rows in 0 buckets do not fit ReplayBuffer\(capacity=10,"):
        ReplayBuffer(capacity=10).load(arrays)
    with pytest.raises(ValueError, match="in 0 buckets do not fit"):
        ReplayBuffer(capacity=20, key_field="user").load(arrays)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"capacity": 0}, "capacity is 0 rows; give 1 or more"),
        ({"per_key": 0}, "per_key is 0 rows; give 1 or more"),
        ({"capacity": 9, "key_field": "user"}, "capacity is 9 rows; give 10 or more"),
    ],
)
def test_settings_outside_their_range_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ReplayBuffer(**settings)


@pytest.mark.parametrize("name", ["share", "weight"])
def test_a_share_or_weight_outside_its_range_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} is 0.0; give a finite number above 0"):
        Replayed(Log(), **{name: 0.0})


def test_what_is_only_assumed_is_not_kept_and_what_is_kept_is_final() -> None:
    buffer = ReplayBuffer(10)
    rows = buffer.init()
    columns = {"x": [0, 1, 2, 3], FIELD: [*Observed]}
    buffer.add(rows, columns, ("x",), np.array([1.0, 0.0, 1.0, 0.0]), np.ones(4))
    batch = buffer.draw(rows, 50)
    assert set(batch.columns) == {"x"}
    assert set(zip(batch.columns["x"], batch.labels.tolist(), strict=True)) == {(0, 1.0), (2, 1.0), (3, 0.0)}
