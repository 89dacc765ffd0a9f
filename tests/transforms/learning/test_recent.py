from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from contbatch.transforms.learning import SparseLearner
from contbatch.transforms.learning.learner import Arrays, Columns, needs_settled
from contbatch.transforms.learning.observed import FIELD, Observed
from contbatch.transforms.learning.recent import UNKNOWN, RecentLabels, RecentState, recent

Floats = np.ndarray[Any, np.dtype[np.float64]]


class Notes:
    """Writes down what it is given to learn; its score of a row is its bucket."""

    fields = ("x", "recent key")

    def init(self) -> list[Any]:
        return []

    def predict(self, state: list[Any], columns: Columns) -> Floats:
        return np.array(columns["recent key"], float)

    def step(self, state: list[Any], columns: Columns, labels: Floats, weights: Floats) -> list[Any]:
        return [*state, *zip(columns["recent key"], labels.tolist(), strict=True)]

    def export(self, state: list[Any]) -> Arrays:
        return {"rows": np.array(state, float)}

    def load(self, arrays: Arrays) -> list[Any]:
        return [tuple(row) for row in arrays["rows"].tolist()]


class Preparer(Notes):
    """Adds a column of its own: how many rows it has learned."""

    prepared = ("learned",)

    def prepare(self, state: list[Any], columns: Columns) -> Columns:
        return {"learned": [len(state)] * len(columns["x"])}

    def predict(self, state: list[Any], columns: Columns) -> Floats:
        return np.array(columns["learned"], float)


def rows(*keys: str) -> dict[str, list[Any]]:
    return {"x": [0] * len(keys), "key": list(keys)}


def learn(
    learner: RecentLabels[Any], state: RecentState[Any], key: str, *labels: float, weight: float = 1.0
) -> RecentState[Any]:
    count = len(labels)
    return learner.step(state, rows(*[key] * count), np.array(labels, float), np.full(count, weight))


def bucket(learner: RecentLabels[Any], state: RecentState[Any], key: str) -> int:
    (value,) = learner.prepare(state, rows(key))["recent key"]
    return int(value)


def test_a_negative_that_is_only_assumed_moves_no_mean() -> None:
    """Of labels 1, 0 (assumed) and 0 (settled) at a rate of 1/4: 1, 1, .75."""
    learner = RecentLabels(Notes(), ("key",), rate=0.25, buckets=100)
    state = learner.init()
    columns = rows("a", "a", "a") | {FIELD: [Observed.LABEL, Observed.ASSUMED, Observed.SETTLED]}
    state = learner.step(state, columns, np.array([1.0, 0.0, 0.0]), np.ones(3))
    assert bucket(learner, state, "a") == 75


def test_the_inner_learner_sees_settled_rows_only_if_it_asks() -> None:
    learner = RecentLabels(Notes(), ("key",))
    assert needs_settled(learner)
    columns = rows("a", "b") | {FIELD: [Observed.SETTLED, Observed.LABEL]}
    state = learner.step(learner.init(), columns, np.array([0.0, 1.0]), np.ones(2))
    assert [label for _, label in state.inner] == [1.0]
    assert (bucket(learner, state, "a"), bucket(learner, state, "b")) == (0, 19)


def test_the_mean_by_hand() -> None:
    """The first label is the mean: 1; then 1 - 1/4 = .75, .5625, and with a one .5625 + .4375/4 = .671875."""
    learner = RecentLabels(Notes(), ("key",), rate=0.25, buckets=100)
    state, buckets = learner.init(), [bucket(learner, learner.init(), "a")]
    for label in (1, 0, 0, 1):
        state = learn(learner, state, "a", label)
        buckets.append(bucket(learner, state, "a"))
    assert buckets == [UNKNOWN, 99, 75, 56, 67]
    assert bucket(learner, state, "b") == UNKNOWN


def test_labels_of_one_step_count_in_order_each_for_its_own_value() -> None:
    learner = RecentLabels(Notes(), ("key",), rate=0.5, buckets=4)
    labels = np.array([1.0, 0.0, 0.0, 1.0])
    state = learner.step(learner.init(), rows("a", "b", "a", "b"), labels, np.ones(4))
    assert [bucket(learner, state, key) for key in "ab"] == [2, 2]  # 1 -> .5; 0 -> .5
    state = learner.step(state, rows("a", "b"), np.array([1.0, 0.0]), np.ones(2))
    assert [bucket(learner, state, key) for key in "ab"] == [3, 1]  # .75 and .25


def test_the_buckets_cut_zero_to_one_into_equal_parts() -> None:
    learner = RecentLabels(Notes(), ("key",), rate=1.0, buckets=4)
    found = [bucket(learner, learn(learner, learner.init(), "a", label), "a") for label in (0, 0.24, 0.25, 0.99, 1)]
    assert found == [0, 0, 1, 3, 3]


def test_a_weight_counts_as_so_many_labels_and_none_as_no_label() -> None:
    learner = RecentLabels(Notes(), ("key",), rate=0.1)
    start = learn(learner, learner.init(), "a", 0.0)
    (thrice,) = learn(learner, learn(learner, learner.init(), "a", 0.0), "a", 1, 1, 1).means["key"].values()
    (weighted,) = learn(learner, start, "a", 1.0, weight=3.0).means["key"].values()
    assert weighted == pytest.approx(1 - 0.9**3)
    assert weighted == pytest.approx(thrice)
    for weight in (0.0, math.nan, math.inf):
        assert not learn(learner, learner.init(), "a", 1.0, weight=weight).means["key"]
    assert not learn(learner, learner.init(), "a", math.nan).means["key"]


def test_a_row_is_learned_with_the_bucket_that_it_was_served_with() -> None:
    """It is served while the mean is 0, and its label, a one, lands after two others have moved the mean to .75."""
    learner = RecentLabels(Notes(), ("key",), rate=0.5, buckets=4)
    state = learn(learner, learner.init(), "a", 0.0)
    served = {**rows("a"), **learner.prepare(state, rows("a"))}
    state = learn(learner, state, "a", 1.0, 1.0)
    assert bucket(learner, state, "a") == 3
    assert learner.predict(state, served).tolist() == [0.0]
    state = learner.step(state, served, np.ones(1), np.ones(1))
    assert state.inner[-1] == (0, 1.0)
    assert learner.predict(state, rows("a")).tolist() == [3.0]  # computed where it is absent


def test_a_step_alone_learns_every_row_with_the_buckets_from_before_the_step() -> None:
    learner = RecentLabels(Notes(), ("key",))
    state = learn(learner, learner.init(), "a", 1.0, 0.0)
    assert state.inner == [(UNKNOWN, 1.0), (UNKNOWN, 0.0)]


def test_the_inner_learner_prepares_too() -> None:
    learner = RecentLabels(Preparer(), ("key",))
    assert learner.prepared == ("recent key", "learned")
    state = learn(learner, learner.init(), "a", 1.0, 1.0)
    served = learner.prepare(state, rows("a", "b"))
    assert served == {"recent key": [19, UNKNOWN], "learned": [2, 2]}
    state = learn(learner, state, "a", 1.0)
    assert learner.predict(state, {**rows("a", "b"), **served}).tolist() == [2, 2]
    assert learner.predict(state, rows("a", "b")).tolist() == [3, 3]


def test_fields_are_those_of_a_request() -> None:
    assert RecentLabels(Notes(), ("key",)).fields == ("x", "key")
    inner = SparseLearner(("x", "recent x", "recent y"))
    assert RecentLabels(inner, ("x", "y")).fields == ("x", "y")


def test_beyond_the_capacity_the_value_whose_last_label_is_oldest_goes() -> None:
    learner = RecentLabels(Notes(), ("key",), capacity=2)
    state = learner.init()
    for key in ("a", "b", "a", "c"):
        state = learn(learner, state, key, 1.0)
    assert [bucket(learner, state, key) for key in "abc"] == [19, UNKNOWN, 19]


def test_a_flood_of_values_leaves_the_table_as_large_as_it_may_be() -> None:
    learner = RecentLabels(Notes(), ("key",), capacity=50)
    state = learner.step(learner.init(), rows(*map(str, range(1000))), np.ones(1000), np.ones(1000))
    assert len(state.means["key"]) == 50
    assert learner.export(state)["recent/key/values"].shape == (50, 16)


@given(
    st.lists(st.tuples(st.sampled_from("abcdef"), st.floats(0, 1), st.floats(0, 5)), max_size=40), st.integers(0, 40)
)
def test_export_and_load_go_on_bit_by_bit(examples: list[tuple[str, float, float]], cut: int) -> None:
    learner = RecentLabels(SparseLearner(("key", "recent key"), bits=6), ("key",), capacity=4)
    state, other = learner.init(), learner.init()
    for at, (key, label, weight) in enumerate(examples):
        if at == cut:
            other = learner.load(learner.export(other))
        state, other = (
            learner.step(each, {"key": [key]}, np.array([label]), np.array([weight])) for each in (state, other)
        )
    ours, theirs = learner.export(state), learner.export(learner.load(learner.export(other)))
    assert {name: array.tolist() for name, array in ours.items()} == {
        name: array.tolist() for name, array in theirs.items()
    }


@given(st.lists(st.tuples(st.sampled_from("abc"), st.floats(0, 1), st.floats(0, 1e6)), max_size=60))
def test_a_bucket_is_always_one_of_them(examples: list[tuple[str, float, float]]) -> None:
    learner = RecentLabels(Notes(), ("key",), rate=0.3, buckets=7)
    state = learner.init()
    for key, label, weight in examples:
        state = learn(learner, state, key, label, weight=weight)
    known = {key for key, _, weight in examples if weight > 0}
    for key in "abc":
        assert (bucket(learner, state, key) in range(7)) == (key in known)


@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from([0.0, 1.0])), max_size=30), st.integers(1, 9))
def test_the_means_do_not_depend_on_how_labels_come_together(examples: list[tuple[str, float]], size: int) -> None:
    learner = RecentLabels(Notes(), ("key",))
    means = []
    for step in (1, size):
        state = learner.init()
        for start in range(0, len(examples), step):
            part = examples[start : start + step]
            labels = np.array([label for _, label in part])
            state = learner.step(state, rows(*[key for key, _ in part]), labels, np.ones(len(part)))
        means.append(list(state.means["key"].items()))
    assert means[0] == means[1]


def test_arrays_of_another_configuration_are_refused() -> None:
    made = RecentLabels(Notes(), ("key",), capacity=3)
    state = made.step(made.init(), rows("a", "b", "c"), np.ones(3), np.ones(3))
    arrays = made.export(state)
    for other in (RecentLabels(Notes(), ("key",), rate=0.1), RecentLabels(Notes(), ("key",), buckets=10)):
        with pytest.raises(ValueError, match=r"the arrays were made with .*'buckets': 20.*; load them with that"):
            other.load(arrays)
    with pytest.raises(ValueError, match="the arrays have 3 values of 'key', but capacity is 2"):
        RecentLabels(Notes(), ("key",), capacity=2).load(arrays)
    with pytest.raises(ValueError, match="the arrays were made with None"):
        made.load({})


@pytest.mark.parametrize(
    ("attributes", "text"),
    [
        ({"keys": ()}, r"keys is \(\); name one column or more, each once"),
        ({"keys": ("key", "key")}, "name one column or more, each once"),
        ({"keys": ("other",)}, r"the learner reads \('x', 'recent key'\); add 'recent other' to its fields"),
        ({"rate": 0.0}, "rate is 0.0; give a number above 0 and at most 1"),
        ({"rate": math.nan}, "rate is nan"),
        ({"rate": 1.5}, "rate is 1.5"),
        ({"buckets": 0}, "buckets is 0; give 1 or more"),
        ({"capacity": 0}, "capacity is 0; give 1 or more"),
    ],
)
def test_what_cannot_work_is_refused(attributes: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        RecentLabels(Notes(), **{"keys": ("key",), **attributes})


def test_the_column_is_named_after_its_key() -> None:
    assert recent("origin") == "recent origin"
