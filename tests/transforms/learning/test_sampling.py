from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from contbatch.transforms.learning.learner import Arrays, Columns
from contbatch.transforms.learning.sampling import Downsampled, uniform

Floats = np.ndarray[Any, np.dtype[np.float64]]


class Shares:
    """Predicts, exactly, the weighted mean label of all rows with the same ``x`` (0 to 9)."""

    fields = ("x",)

    def init(self) -> Floats:
        return np.zeros((10, 2))

    def predict(self, state: Floats, columns: Columns) -> Floats:
        rows = state[list(columns["x"])]
        return np.divide(rows[:, 0], rows[:, 1], out=np.full(len(rows), 0.5), where=rows[:, 1] > 0)

    def step(self, state: Floats, columns: Columns, labels: Floats, weights: Floats) -> Floats:
        np.add.at(state, list(columns["x"]), np.column_stack([labels * weights, weights]))
        return state

    def export(self, state: Floats) -> Arrays:
        return {"sums": state.copy()}

    def load(self, arrays: Arrays) -> Floats:
        return arrays["sums"].copy()


@pytest.mark.parametrize(
    ("score", "corrected"),
    [
        (0.5, 0.1 / 1.1),  # odds 1 become 0.1
        (10 / 11, 0.5),  # odds 10 become 1
        (0.0, 0.0),
        (1.0, 1.0),
    ],
)
def test_the_correction_by_hand(score: float, corrected: float) -> None:
    learner = Downsampled(Shares(), 0.1)
    state = np.tile([score, 1.0], (10, 1))
    assert learner.predict(state, {"x": [0], "request_id": ["a"]}) == pytest.approx([corrected], abs=1e-15)


def test_the_correction_is_a_shift_of_the_logit() -> None:
    score = 0.3
    value = Downsampled(Shares(), 0.25).predict(np.tile([score, 1.0], (10, 1)), {"x": [0]})[0]
    assert math.log(value / (1 - value)) == pytest.approx(math.log(score / (1 - score)) + math.log(0.25))


def stream(size: int) -> tuple[dict[str, list[Any]], Floats]:
    """A logistic model: the logit of a positive is -4 + 0.4 x, 1.8 % at x = 0 and 40 % at x = 9."""
    rng = np.random.default_rng(7)
    x = rng.integers(0, 10, size)
    labels = (rng.random(size) < 1 / (1 + np.exp(4 - 0.4 * x))).astype(float)
    return {"x": x.tolist(), "request_id": [f"r{number}" for number in range(size)]}, labels


def test_scores_are_calibrated_at_a_tenth_of_the_negatives() -> None:
    columns, labels = stream(100_000)
    learner = Downsampled(Shares(), 0.1)
    state = learner.step(learner.init(), columns, labels, np.ones(len(labels)))
    negatives = float((labels == 0).sum())
    assert state[:, 1].sum() - labels.sum() == pytest.approx(0.1 * negatives, rel=0.02)
    assert state[:, 0].sum() == labels.sum()
    scores = learner.predict(state, columns)
    assert 0.98 <= scores.mean() / labels.mean() <= 1.02
    raw = Shares().predict(state, columns)
    assert raw.mean() / labels.mean() > 2  # without the correction


def test_which_rows_are_learned_depends_on_their_id_and_label_alone() -> None:
    columns, labels = stream(2_000)
    learner = Downsampled(Shares(), 0.3)
    whole = learner.step(learner.init(), columns, labels, np.ones(len(labels)))
    pieces = learner.init()
    for start in range(0, 2_000, 7):
        part = slice(start, start + 7)
        cut = {field: column[part] for field, column in columns.items()}
        pieces = learner.step(pieces, cut, labels[part], np.ones(len(labels[part])))
    assert np.array_equal(whole, pieces)


def test_the_hash_is_the_same_in_every_release() -> None:
    assert uniform("r1") == uniform("r1")
    assert [round(uniform(f"r{number}"), 6) for number in (1, 2)] == [0.870294, 0.558375]
    assert uniform(1) == uniform("1")


def test_positives_and_soft_labels_from_a_half_are_always_learned() -> None:
    learner = Downsampled(Shares(), 1e-12)
    ids = [f"r{number}" for number in range(4)]
    state = learner.step(
        learner.init(), {"x": [1, 2, 3, 4], "request_id": ids}, np.array([1.0, 0.5, 0.49, 0.0]), np.full(4, 3.0)
    )
    assert state[:5].tolist() == [[0, 0], [3.0, 3.0], [1.5, 3.0], [0, 0], [0, 0]]


@given(st.lists(st.text(max_size=8)), st.floats(0.0, 1.0))
def test_a_rate_of_one_changes_nothing(ids: list[str], score: float) -> None:
    learner = Downsampled(Shares(), 1.0)
    columns = {"x": [0] * len(ids), "request_id": ids}
    state = learner.step(learner.init(), columns, np.zeros(len(ids)), np.ones(len(ids)))
    assert state[0, 1] == len(ids)
    assert learner.predict(np.tile([score, 1.0], (10, 1)), columns) == pytest.approx([score] * len(ids))


def test_export_and_load_go_on_exactly() -> None:
    columns, labels = stream(500)
    learner = Downsampled(Shares(), 0.5)
    state = learner.step(learner.init(), columns, labels, np.ones(500))
    arrays = learner.export(state)
    assert sorted(arrays) == ["inner/sums", "rate"]
    assert np.array_equal(learner.load(arrays), state)


def test_weights_of_another_rate_are_refused() -> None:
    arrays = Downsampled(Shares(), 0.5).export(Shares().init())
    with pytest.raises(ValueError, match=r"learned at rate 0.5, not 0.1: their scores would be corrected wrongly"):
        Downsampled(Shares(), 0.1).load(arrays)
    with pytest.raises(ValueError, match="learned at rate None"):
        Downsampled(Shares(), 0.1).load({})


def test_columns_read_are_those_of_the_learner_and_the_id() -> None:
    assert Downsampled(Shares(), 0.5).fields == ("x", "request_id")
    assert Downsampled(Shares(), 0.5, id_field="x").fields == ("x",)


@pytest.mark.parametrize("rate", [0.0, -0.1, 1.1, math.nan])
def test_a_rate_outside_its_range_is_refused(rate: float) -> None:
    with pytest.raises(ValueError, match=f"rate is {rate}; give a number above 0 and at most 1"):
        Downsampled(Shares(), rate)
