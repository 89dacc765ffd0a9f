"""FTRL-Proximal by hand, and inside the learner."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from contbatch.transforms import SparseLearner
from contbatch.transforms.learning.coordinate import Ftrl
from contbatch.transforms.learning.hashing import encode

PLAIN = Ftrl(alpha=0.5, beta=1.0, l1=0.0, l2=0.0)


def learner(ftrl: Ftrl, **settings: Any) -> SparseLearner:
    return SparseLearner(("user",), bits=12, ftrl=ftrl, **settings)


def slot(model: SparseLearner, user: str) -> int:
    return int(encode({"user": [user]}, model.fields, model.bits).slots[1])


def test_two_steps_by_hand() -> None:
    """Step 1: score 1/2, label 1, g = -1/2; n = 1/4; sigma = (1/2 - 0) / 0.5 = 1; z = -1/2 - 1 * 0.

    w = -z / ((1 + 1/2) / 0.5) = 0.5 / 3 = 1/6.
    Step 2: score s of bias + user = 1/3, g = s - 1; n = 1/4 + g^2; sigma = (sqrt(n) - 1/2) / 0.5;
    z = -1/2 + g - sigma / 6.
    """
    model = learner(PLAIN)
    one = (np.array([1.0]), np.array([1.0]))
    state = model.step(model.init(), {"user": ["ann"]}, *one)
    user = slot(model, "ann")
    assert state.z[user] == pytest.approx(-0.5)
    assert state.squares[user, 0] == pytest.approx(0.25)
    assert state.weights[user, 0] == pytest.approx(1 / 6)
    model.step(state, {"user": ["ann"]}, *one)
    g = 1 / (1 + math.exp(-1 / 3)) - 1
    n = 0.25 + g * g
    z = -0.5 + g - (math.sqrt(n) - 0.5) / 0.5 / 6
    assert state.z[user] == pytest.approx(z)
    assert state.weights[user, 0] == pytest.approx(-z / ((1 + math.sqrt(n)) / 0.5))


def test_gradients_of_a_chunk_are_summed() -> None:
    """Four rows, g = -2: n = 4, z = -2, w = 2 / ((1 + 2) / 0.5) = 1/3."""
    model = learner(PLAIN)
    state = model.step(model.init(), {"user": list("abcd")}, np.ones(4), np.ones(4))
    assert state.weights[0, 0] == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    ("l1", "l2", "weight"),
    [
        (0.5, 0.0, 0.0),  # z = -1/2 is not beyond l1
        (0.6, 0.0, 0.0),
        (0.2, 0.0, (0.5 - 0.2) / 3),
        (0.0, 2.0, 0.5 / (3 + 2)),
    ],
)
def test_penalties_by_hand(l1: float, l2: float, weight: float) -> None:
    model = learner(Ftrl(0.5, 1.0, l1, l2))
    up, down = (
        model.step(model.init(), {"user": ["ann"]}, np.array([label]), np.array([1.0])).weights[0, 0]
        for label in (1.0, 0.0)
    )
    assert (up, down) == pytest.approx((weight, -weight))


def test_the_penalty_of_examples_and_the_rate_are_not_for_ftrl() -> None:
    one, other = (learner(PLAIN, **settings) for settings in ({}, {"l2": 0.5, "rate": 7.0}))
    states = [m.step(m.init(), {"user": ["ann"] * 20}, np.ones(20), np.ones(20)) for m in (one, other)]
    assert np.array_equal(states[0].weights[:, 0], states[1].weights[:, 0])


@pytest.mark.parametrize("weight", [0.0, 1e-200])
def test_a_gradient_whose_square_is_zero_is_no_division_by_zero(weight: float) -> None:
    model = learner(PLAIN)
    state = model.step(model.init(), {"user": ["ann"]}, np.array([1.0]), np.array([weight]))
    assert int(state.refused) == 0
    assert state.z[0] == -0.5 * weight
    assert state.weights[0, 0] == pytest.approx(0.5 * weight / (1 / 0.5))  # n is 0


def test_factors_learn_beside_ftrl() -> None:
    settings: dict[str, Any] = {"fields": ("user", "item"), "interactions": ((("user",), ("item",)),), "bits": 12}
    columns, ones = {"user": ["ann"], "item": ["tea"]}, np.ones(1)
    adagrad, ftrl = SparseLearner(**settings), SparseLearner(**settings, ftrl=Ftrl())
    ours, theirs = (m.step(m.init(), columns, ones, ones) for m in (ftrl, adagrad))
    assert np.array_equal(ours.weights[:, 1:], theirs.weights[:, 1:])
    assert not np.array_equal(ours.weights[:, 0], theirs.weights[:, 0])


@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from([0.0, 1.0])), min_size=1, max_size=20))
def test_export_and_load_go_on_exactly(rows: list[tuple[str, float]]) -> None:
    model = learner(Ftrl(l1=0.1), chunk=3)
    columns, labels = {"user": [user for user, _ in rows]}, np.array([label for _, label in rows])
    state = model.step(model.init(), columns, labels, np.ones(len(rows)))
    restored = model.load({name: array.copy() for name, array in model.export(state).items()})
    for again in (False, True):
        if again:
            state, restored = (model.step(s, columns, labels, np.ones(len(rows))) for s in (state, restored))
        assert all(np.array_equal(a, b) for a, b in zip(state, restored, strict=True))


def test_weights_of_the_other_step_size_are_refused() -> None:
    plain, ftrl = SparseLearner(("user",), bits=12), learner(PLAIN)
    with pytest.raises(ValueError, match=r"weights without FTRL's z do not fit ftrl=Ftrl\(alpha=0\.5"):
        ftrl.load(plain.export(plain.init()))
    with pytest.raises(ValueError, match="weights with FTRL's z do not fit ftrl=None; load them with"):
        plain.load(ftrl.export(ftrl.init()))


@pytest.mark.parametrize(
    ("setting", "text"),
    [
        ({"alpha": 0.0}, "alpha is 0.0; give a finite number above 0"),
        ({"beta": math.nan}, "beta is nan; give a finite number above 0"),
        ({"l1": -1.0}, "l1 is -1.0; give a finite number, 0 or more"),
        ({"l2": math.inf}, "l2 is inf; give a finite number, 0 or more"),
    ],
)
def test_a_setting_outside_its_range_is_refused(setting: dict[str, float], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        Ftrl(**setting)
