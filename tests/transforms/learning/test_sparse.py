from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from contbatch.transforms import SparseLearner
from contbatch.transforms.learning.hashing import encode

PAIR = SparseLearner(("user", "item"), ((("user",), ("item",)),), factors=2, bits=12)
LISTS = SparseLearner(("user", "item", "tags"), ((("user",), ("item", "tags")),), factors=3, bits=10, chunk=3)


def columns(rows: list[tuple[str, str, list[str]]]) -> dict[str, list[Any]]:
    return {"user": [r[0] for r in rows], "item": [r[1] for r in rows], "tags": [r[2] for r in rows]}


row = st.tuples(st.sampled_from("abcd"), st.sampled_from("xyz"), st.lists(st.sampled_from("klm"), max_size=3))
batches = st.lists(st.lists(row, min_size=1, max_size=9), min_size=1, max_size=5)


def learn(learner: SparseLearner, given_batches: list[list[tuple[str, str, list[str]]]], state: Any = None) -> Any:
    state = learner.init() if state is None else state
    for batch in given_batches:
        labels = np.array([float(user < "c") for user, _, _ in batch])
        state = learner.step(state, columns(batch), labels, np.ones(len(batch)))
    return state


def same(left: Any, right: Any) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(left, right, strict=True))


def test_one_step_of_a_linear_model_by_hand() -> None:
    """Score 1/2, label 1: gradient -1/2 for bias and user, sum of squares 0.1 + 0.25, step 0.3 * 0.5 / sqrt(0.35)."""
    learner = SparseLearner(("user",), bits=12, rate=0.3, accumulator=0.1, l2=0.0)
    state = learner.step(learner.init(), {"user": ["ann"]}, np.array([1.0]), np.array([1.0]))
    weight = 0.3 * 0.5 / math.sqrt(0.35)
    assert learner.predict(state, {"user": ["ann"]}) == pytest.approx([1 / (1 + math.exp(-2 * weight))])
    assert learner.predict(state, {"user": ["bob"]}) == pytest.approx([1 / (1 + math.exp(-weight))])  # the bias alone


def test_one_step_of_the_factors_by_hand() -> None:
    learner = SparseLearner(
        ("user", "item"), ((("user",), ("item",)),), factors=1, bits=12, factor_rate=0.2, l2=0.0, accumulator=0.1
    )
    state = learner.init()
    row = {"user": ["ann"], "item": ["tea"]}
    _, user, item = encode(row, learner.fields, learner.bits).slots
    p, q = state.weights[user, 1], state.weights[item, 1]
    error = 1 / (1 + math.exp(-p * q)) - 1
    learner.step(state, row, np.array([1.0]), np.array([1.0]))
    # d/dp = error * q, d/dq = error * p, both of the factors as they were before the step
    assert state.weights[user, 1] == pytest.approx(p - 0.2 * error * q / math.sqrt(0.1 + (error * q) ** 2))
    assert state.weights[item, 1] == pytest.approx(q - 0.2 * error * p / math.sqrt(0.1 + (error * p) ** 2))


def test_gradients_of_a_chunk_are_summed_not_averaged() -> None:
    """Four rows at once, each with gradient -1/2: the bias sees -2."""
    learner = SparseLearner(("user",), bits=12, rate=0.3, accumulator=0.1, l2=0.0)
    state = learner.step(learner.init(), {"user": list("abcd")}, np.ones(4), np.ones(4))
    assert state.weights[0, 0] == pytest.approx(0.3 * 2 / math.sqrt(0.1 + 4))


def test_a_weight_of_two_is_two_rows() -> None:
    once, twice = (
        PAIR.step(PAIR.init(), {"user": ["a"] * n, "item": ["x"] * n}, np.ones(n), np.full(n, 2.0 / n)) for n in (1, 2)
    )
    assert np.allclose(once.weights, twice.weights, atol=1e-15)


def test_the_penalty_pulls_used_weights_towards_zero() -> None:
    learner = SparseLearner(("user",), bits=12, l2=0.5, rate=0.1)
    state = learner.init()
    state.weights[:, 0] = 1.0
    score = 1 / (1 + math.exp(-2.0))  # bias 1 + user 1
    learner.step(state, {"user": ["a"]}, np.array([score]), np.array([1.0]))  # error 0: only the penalty acts
    assert state.weights[0, 0] == pytest.approx(1 - 0.1 * 0.5 / math.sqrt(0.1 + 0.25))
    assert np.count_nonzero(state.weights[:, 0] != 1.0) == 2


@given(batches)
def test_a_step_is_the_steps_of_its_chunks(given_batches: list[list[tuple[str, str, list[str]]]]) -> None:
    whole = learn(LISTS, given_batches)
    chunks = [batch[start : start + 3] for batch in given_batches for start in range(0, len(batch), 3)]
    assert same(learn(LISTS, chunks), whole)


@given(batches)
def test_export_and_load_go_on_exactly(given_batches: list[list[tuple[str, str, list[str]]]]) -> None:
    state = learn(LISTS, given_batches)
    restored = LISTS.load({name: array.copy() for name, array in LISTS.export(state).items()})
    assert same(restored, state)
    assert same(learn(LISTS, given_batches, restored), learn(LISTS, given_batches, state))


@given(st.lists(row, min_size=1, max_size=9))
def test_predicting_changes_nothing_and_rows_do_not_touch_each_other(rows: list[tuple[str, str, list[str]]]) -> None:
    state = learn(LISTS, [rows])
    before = [array.copy() for array in state]
    together = LISTS.predict(state, columns(rows))
    assert same(state, before)
    assert together.tolist() == [LISTS.predict(state, columns([one]))[0] for one in rows]


def test_a_list_counts_as_the_mean_of_its_factors() -> None:
    learner = SparseLearner(("user", "tags"), ((("user",), ("tags",)),), factors=2, bits=12, init_scale=1.0)
    state = learner.init()
    slots = encode({"user": ["a"], "tags": [["k", "l"]]}, learner.fields, learner.bits).slots
    user, k, l = (state.weights[slot, 1:] for slot in slots[1:])  # noqa: E741
    logit = float(user @ ((k + l) / 2))
    assert learner.predict(state, {"user": ["a"], "tags": [["k", "l"]]}) == pytest.approx([1 / (1 + math.exp(-logit))])
    assert learner.predict(state, {"user": ["a"], "tags": [[]]}) == pytest.approx([0.5])


def test_no_rows_have_no_scores() -> None:
    assert LISTS.predict(LISTS.init(), columns([])).shape == (0,)


def test_weights_of_another_configuration_are_refused() -> None:
    arrays = PAIR.export(PAIR.init())
    with pytest.raises(ValueError, match=r"do not fit bits=12, factors=5; load them with the configuration"):
        SparseLearner(("user",), factors=5, bits=12).load(arrays)
    used = PAIR.step(PAIR.init(), {"user": ["a"], "item": ["x"]}, np.ones(1), np.ones(1))
    with pytest.raises(ValueError, match="do not fit bits=4"):
        SparseLearner(("user",), factors=2, bits=4).load(PAIR.export(used))


@pytest.mark.parametrize(
    ("setting", "text"),
    [
        ({"fields": ()}, "fields is empty; name at least one column"),
        ({"interactions": ((("user",), ("genre",)),)}, "interactions names 'genre', which is not one of fields"),
        ({"bits": 3}, "bits is 3; give 4 to 28"),
        ({"factors": 0}, "factors is 0; give 1 or more"),
        ({"chunk": 0}, "chunk is 0; give 1 to 256"),
        ({"chunk": 257}, "chunk is 257; give 1 to 256"),
        ({"rate": math.nan}, "rate is nan; give a number above 0"),
        ({"factor_rate": 0.0}, "factor_rate is 0.0; give a number above 0"),
        ({"l2": -1.0}, "l2 is -1.0; give 0 or more"),
        ({"seed": -1}, "seed is -1; give 0 or more"),
    ],
)
def test_a_setting_outside_its_range_is_refused(setting: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        SparseLearner(**{"fields": ("user",), **setting})
