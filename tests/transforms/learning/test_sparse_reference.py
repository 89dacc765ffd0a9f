"""The learner against plain loops over rows, and the laws of weights, refusal and forgetting."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass, replace
from typing import Any
from zlib import crc32

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from contbatch.transforms import SparseLearner
from contbatch.transforms.learning.coordinate import Ftrl
from contbatch.transforms.learning.hashing import _slots, hash_values
from contbatch.transforms.learning.sparse import SparseState

FIELDS = ("user", "item", "tags")
ADAGRAD = SparseLearner(FIELDS, ((("user",), ("item", "tags")), (("user", "tags"), ("user",))), 2, bits=5, chunk=3)
FTRL = replace(ADAGRAD, ftrl=Ftrl(alpha=0.3, beta=0.5, l1=0.05, l2=0.2))
LEARNERS = pytest.mark.parametrize("learner", [ADAGRAD, FTRL], ids=["adagrad", "ftrl"])


@dataclass
class Row:
    user: str
    item: int
    tags: list[str]
    label: float
    weight: float


rows = st.builds(
    Row,
    st.sampled_from("abcd"),
    st.integers(0, 3),
    st.lists(st.sampled_from("klm"), max_size=3),
    st.sampled_from([0.0, 0.25, 1.0]),
    st.sampled_from([0.0, 0.5, 1.0, 3.0]),
)
batches = st.lists(st.lists(rows, min_size=1, max_size=10), min_size=1, max_size=4)


def step(learner: SparseLearner, state: SparseState, batch: list[Row]) -> SparseState:
    columns = {field: [getattr(row, field) for row in batch] for field in FIELDS}
    labels, weights = np.array([row.label for row in batch]), np.array([row.weight for row in batch])
    return learner.step(state, columns, labels, weights)


class Reference:
    """The model as its docstring says it, slot by slot."""

    def __init__(self, learner: SparseLearner) -> None:
        initial = learner.init()
        self.learner = learner
        self.weights = initial.weights.tolist()
        self.squares = initial.squares.tolist()
        self.z = [0.0] * len(self.weights)

    def slot(self, field: str, value: object) -> int:
        return crc32(str(value).encode(), crc32(field.encode())) & ((1 << self.learner.bits) - 1)

    def shares(self, row: Row, field: str) -> list[tuple[int, float]]:
        """Slots of a field's values, each with its share of the mean."""
        given_value = getattr(row, field)
        values = given_value if isinstance(given_value, list) else [given_value]
        return [(self.slot(field, value), 1 / len(values)) for value in values]

    def vector(self, row: Row, side: tuple[str, ...]) -> list[float]:
        tokens = [token for field in side for token in self.shares(row, field)]
        return [
            sum(share * self.weights[slot][column] for slot, share in tokens)
            for column in range(1, 1 + self.learner.factors)
        ]

    def learn(self, batch: list[Row]) -> None:
        for start in range(0, len(batch), self.learner.chunk):
            gradient: defaultdict[int, list[float]] = defaultdict(lambda: [0.0] * (1 + self.learner.factors))
            for row in batch[start : start + self.learner.chunk]:
                self.add_gradient(gradient, row)
            for slot, values in gradient.items():
                self.update(slot, values)

    def add_gradient(self, gradient: defaultdict[int, list[float]], row: Row) -> None:
        learner = self.learner
        slots = [0, *(slot for field in FIELDS for slot, _ in self.shares(row, field))]
        logit = sum(self.weights[slot][0] for slot in slots)
        for left, right in learner.interactions:
            logit += sum(a * b for a, b in zip(self.vector(row, left), self.vector(row, right), strict=True))
        error = (1 / (1 + math.exp(-logit)) - row.label) * row.weight
        for slot in slots:
            gradient[slot][0] += error
            for column in range(1 if learner.ftrl else 0, 1 + learner.factors):
                gradient[slot][column] += row.weight * learner.l2 * self.weights[slot][column]
        for left, right in learner.interactions:
            for side, other in ((left, right), (right, left)):
                pull = self.vector(row, other)
                for slot, share in (token for field in side for token in self.shares(row, field)):
                    for column, value in enumerate(pull, 1):
                        gradient[slot][column] += error * share * value

    def update(self, slot: int, gradient: list[float]) -> None:
        learner, weights, squares = self.learner, self.weights[slot], self.squares[slot]
        for column, value in enumerate(gradient):
            before = squares[column]
            squares[column] += value * value
            if column == 0 and learner.ftrl:
                f, n = learner.ftrl, squares[0]
                self.z[slot] += value - (math.sqrt(n) - math.sqrt(before)) / f.alpha * weights[0]
                z = self.z[slot]
                scale = (f.beta + math.sqrt(n)) / f.alpha + f.l2
                weights[0] = 0.0 if abs(z) <= f.l1 else -(z - math.copysign(f.l1, z)) / scale
            else:
                rate = learner.factor_rate if column else learner.rate
                weights[column] -= rate * value / math.sqrt(squares[column])


@LEARNERS
@given(given_batches=batches)
def test_learning_is_what_plain_loops_do(learner: SparseLearner, given_batches: list[list[Row]]) -> None:
    reference, state = Reference(learner), learner.init()
    for batch in given_batches:
        reference.learn(batch)
        state = step(learner, state, batch)
    assert np.allclose(state.weights, reference.weights, rtol=0, atol=1e-9)
    assert np.allclose(state.squares, reference.squares, rtol=1e-9)
    if learner.ftrl:
        assert np.allclose(state.z, reference.z, rtol=0, atol=1e-9)


@pytest.mark.parametrize("chunk", [1, 7, 32, 256])
def test_a_batch_of_many_chunks_is_its_chunks_one_by_one(chunk: int) -> None:
    """2,500 rows are encoded in more than one piece; the state is bitwise that of chunks learned alone."""
    random = np.random.default_rng(0)
    batch = [
        Row("abcd"[u], int(i), list("klm")[:t], float(u < 2), 1.0)
        for u, i, t in zip(
            random.integers(0, 4, 2500), random.integers(0, 300, 2500), random.integers(0, 4, 2500), strict=True
        )
    ]
    learner = replace(ADAGRAD, chunk=chunk, bits=12)
    whole, alone = step(learner, learner.init(), batch), learner.init()
    for start in range(0, len(batch), chunk):
        step(learner, alone, batch[start : start + chunk])
    assert all(np.array_equal(a, b) for a, b in zip(whole, alone, strict=True))


@LEARNERS
@pytest.mark.parametrize("interactions", [(), ADAGRAD.interactions], ids=["linear", "factors"])
@given(before=batches, batch=st.lists(st.tuples(rows, st.integers(0, 4)), min_size=1, max_size=6))
def test_an_importance_weight_is_that_many_rows(
    learner: SparseLearner, interactions: Any, before: list[list[Row]], batch: list[tuple[Row, int]]
) -> None:
    learner = replace(learner, interactions=interactions, chunk=32)
    weighted, repeated = learner.init(), learner.init()
    for state in (weighted, repeated):
        for earlier in before:
            step(learner, state, earlier)
    step(learner, weighted, [replace(row, weight=float(times)) for row, times in batch])
    step(learner, repeated, [replace(row, weight=1.0) for row, times in batch for _ in range(times)])
    assert np.allclose(weighted.weights, repeated.weights, rtol=0, atol=1e-6)
    assert np.allclose(weighted.squares, repeated.squares, rtol=1e-6, atol=1e-6)


@LEARNERS
@pytest.mark.parametrize(
    "bad",
    [
        {"weight": math.nan},
        {"weight": math.inf},
        {"label": math.nan},
        {"weight": 1e200},  # finite, but its square is not
    ],
    ids=str,
)
def test_a_chunk_whose_gradient_is_not_finite_is_refused_and_counted(
    learner: SparseLearner, bad: dict[str, float]
) -> None:
    good = [Row("abcd"[n % 4], n % 3, ["k"], 1.0, 1.0) for n in range(8)]
    batch = [*good[:3], good[3], replace(good[4], **bad), good[5], *good[6:]]  # chunks of 3, 3 and 2
    state = step(learner, learner.init(), batch)
    clean = step(learner, step(learner, learner.init(), good[:3]), good[6:])
    assert int(state.refused) == 3
    assert np.array_equal(state.weights, clean.weights)
    assert np.array_equal(state.squares, clean.squares)
    assert np.array_equal(state.z, clean.z)
    assert int(learner.load(learner.export(state)).refused) == 3


def test_a_weight_that_is_not_finite_spoils_no_row_without_it() -> None:
    state = ADAGRAD.init()
    reference = Reference(ADAGRAD)
    state.weights[reference.slot("item", 3)] = math.nan
    batch = [Row("a", item, ["k"], 1.0, 1.0) for item in (0, 1, 2, 3)]
    columns = {field: [getattr(row, field) for row in batch] for field in FIELDS}
    assert np.isfinite(ADAGRAD.predict(state, columns)).tolist() == [True, True, True, False]
    step(ADAGRAD, state, batch)  # chunks of 3 and 1
    assert int(state.refused) == 1


def test_a_step_too_small_for_the_accumulator_is_exported() -> None:
    """0.1 + (1e-12)^2 is 0.1, but the weight has moved."""
    state = step(ADAGRAD, ADAGRAD.init(), [Row("a", 0, [], 1.0, 1e-12)])
    restored = ADAGRAD.load(ADAGRAD.export(state))
    assert state.squares[0, 0] == 0.1
    assert state.weights[0, 0] != 0
    assert np.array_equal(restored.weights, state.weights)


@LEARNERS
@given(given_batches=batches, users=st.sets(st.sampled_from("abcd"), min_size=1))
def test_forgotten_values_are_as_never_learned(
    learner: SparseLearner, given_batches: list[list[Row]], users: set[str]
) -> None:
    state = learner.init()
    for batch in given_batches:
        step(learner, state, batch)
    before, initial = learner.load(learner.export(state)), learner.init()
    learner.forget(state, "user", sorted(users))
    slots = {Reference(learner).slot("user", user) for user in users} - {0}
    forgotten = np.isin(np.arange(1 << learner.bits), sorted(slots))
    for ours, kept, fresh in zip(state[:3], before[:3], initial[:3], strict=True):
        if len(ours):
            assert np.array_equal(ours[forgotten], fresh[forgotten])
            assert np.array_equal(ours[~forgotten], kept[~forgotten])
    restored = learner.load(learner.export(state))
    assert all(np.array_equal(a, b) for a, b in zip(restored, state, strict=True))
    assert not slots & set(learner.export(state)["slots"].tolist())


def test_every_slot_of_a_large_table_can_be_forgotten() -> None:
    learner = SparseLearner(("user",), factors=3, bits=12, seed=7)
    state, initial = learner.init(), learner.init()
    state.weights[:] = 9.0
    learner.forget(state, "user", range(60_000))  # meets every one of 4,096 slots, which are four blocks
    assert (state.weights[0] == 9.0).all()  # the bias is nobody's
    assert np.array_equal(state.weights[1:], initial.weights[1:])


def test_a_field_that_is_not_read_cannot_be_forgotten() -> None:
    with pytest.raises(ValueError, match=r"field 'genre' is not one of fields \('user', 'item', 'tags'\)"):
        ADAGRAD.forget(ADAGRAD.init(), "genre", ["x"])


def test_equal_keys_of_different_text_are_different_values() -> None:
    """1, 1.0 and True are equal, and so are 0.0 and -0.0; their slots must not depend on which came first."""
    learner, reference = SparseLearner(("item",), bits=12), Reference(replace(ADAGRAD, bits=12))
    values = ["1", 1, 1.0, True, 0.0, -0.0]
    for order in (values, values[::-1]):
        slots = set(learner.export(learner.step(learner.init(), {"item": order}, np.ones(6), np.ones(6)))["slots"])
        assert slots == {0} | {reference.slot("item", value) for value in values}


def test_a_flood_of_ids_is_not_remembered() -> None:
    flood = [str(n) for n in range(70_000)]
    first = list(hash_values("flood", flood, 12))
    assert list(hash_values("flood", flood, 12)) == first
    assert len(_slots("flood", 12)) <= 1 << 16
