"""The two halves of a step: the gradient, and what applying it does."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from contbatch.transforms import SparseLearner
from contbatch.transforms.learning.batches import Batch
from contbatch.transforms.learning.coordinate import Ftrl
from contbatch.transforms.learning.hashing import encode

ADAGRAD = SparseLearner(("user", "item", "tags"), ((("user",), ("item", "tags")),), factors=2, bits=5, chunk=6)
FTRL = replace(ADAGRAD, ftrl=Ftrl(alpha=0.3, beta=0.5, l1=0.05, l2=0.2))
LINEAR = SparseLearner(("user",), factors=1, bits=12, rate=0.3, accumulator=0.1, l2=0.0)
LEARNERS = pytest.mark.parametrize("learner", [ADAGRAD, FTRL], ids=["adagrad", "ftrl"])

row = st.tuples(
    st.sampled_from("abcd"),
    st.integers(0, 3),
    st.lists(st.sampled_from("klm"), max_size=3),
    st.sampled_from([0.0, 0.25, 1.0]),
    st.sampled_from([0.0, 0.5, 3.0, math.nan]),
)


def batch_of(rows: list[tuple[Any, ...]]) -> Batch:
    users, items, tags, labels, weights = (list(column) for column in zip(*rows, strict=True))
    return Batch({"user": users, "item": items, "tags": tags}, np.array(labels), np.array(weights))


def small(size: int) -> st.SearchStrategy[Batch]:
    return st.lists(row, min_size=1, max_size=size).map(batch_of)


def bits_of(state: Any) -> list[bytes]:
    return [array.tobytes() for array in state]


def ann(count: int) -> Batch:
    return Batch({"user": ["ann"] * count}, np.ones(count), np.ones(count))


def test_a_gradient_by_hand_and_a_step_along_it() -> None:
    """Two rows, score 1/2, label 1: -1 for bias and user, who move by 0.3 * 1 / sqrt(0.1 + 1)."""
    gradient = LINEAR.gradient(LINEAR.init(), *ann(2))
    bias, user = encode({"user": ["ann"]}, LINEAR.fields, LINEAR.bits).slots
    assert gradient["slots"].tolist() == [bias, user]
    assert gradient["gradient"].tolist() == [[-1.0, 0.0], [-1.0, 0.0]]
    assert gradient["rows"].tolist() == [2]
    state = LINEAR.apply(LINEAR.init(), gradient)
    assert state.weights[[bias, user], 0] == pytest.approx(0.3 / math.sqrt(1.1))
    assert np.flatnonzero(state.touched).tolist() == [bias, user]


def test_a_stale_gradient_moves_the_weights_as_they_are_by_now() -> None:
    """The same -1/2 twice: 0.3 * 0.5 / sqrt(0.1 + 0.25), then 0.3 * 0.5 / sqrt(0.1 + 0.5) from there."""
    stale = LINEAR.gradient(LINEAR.init(), *ann(1))
    state = LINEAR.apply(LINEAR.apply(LINEAR.init(), stale), stale)
    assert state.weights[0, 0] == pytest.approx(0.15 / math.sqrt(0.35) + 0.15 / math.sqrt(0.6))


@LEARNERS
@given(before=st.lists(small(14), max_size=3), batch=small(6))
def test_the_two_halves_are_a_step_of_one_chunk_to_the_bit(
    learner: SparseLearner, before: list[Batch], batch: Batch
) -> None:
    halves, whole = learner.init(), learner.init()
    for earlier in before:
        learner.step(halves, *earlier)
        learner.step(whole, *earlier)
    unchanged = bits_of(halves)
    gradient = learner.gradient(halves, *batch)
    assert bits_of(halves) == unchanged
    assert bits_of(learner.apply(halves, gradient)) == bits_of(learner.step(whole, *batch))


@LEARNERS
@given(batch=small(40))
def test_a_gradient_of_many_chunks_is_one_update(learner: SparseLearner, batch: Batch) -> None:
    batch = batch._replace(weights=np.nan_to_num(batch.weights))
    one = replace(learner, chunk=64)
    ours, theirs = learner.gradient(learner.init(), *batch), one.gradient(one.init(), *batch)
    assert ours["slots"].tolist() == theirs["slots"].tolist()
    assert np.allclose(ours["gradient"], theirs["gradient"], rtol=0, atol=1e-12)
    assert ours["rows"].tolist() == [batch.size]


def test_applying_leaves_the_gradient_as_it_is() -> None:
    gradient = LINEAR.gradient(LINEAR.init(), *ann(1))
    for array in gradient.values():
        array.setflags(write=False)
    LINEAR.apply(LINEAR.init(), gradient)
    assert gradient["gradient"].tolist() == [[-0.5, 0.0], [-0.5, 0.0]]


@LEARNERS
@pytest.mark.parametrize("value", [math.nan, math.inf, 1e200], ids=str)
def test_a_gradient_that_is_not_finite_is_refused_and_its_rows_counted(learner: SparseLearner, value: float) -> None:
    """One wrong value, or one whose square is not finite; 7 rows, in chunks of 6 and 1."""
    batch = batch_of([("a", 1, ["k"], 1.0, 1.0)] * 7)
    gradient = learner.gradient(learner.init(), *batch)
    gradient["gradient"][-1, 0] = value
    state, initial = learner.apply(learner.init(), gradient), learner.init()
    assert int(state.refused) == 7
    assert bits_of(state[:3]) == bits_of(initial[:3])


def test_a_gradient_of_no_rows_moves_nothing() -> None:
    state = ADAGRAD.init()
    empty = ADAGRAD.gradient(state, {"user": [], "item": [], "tags": []}, np.ones(0), np.ones(0))
    assert bits_of(ADAGRAD.apply(state, empty)) == bits_of(ADAGRAD.init())
