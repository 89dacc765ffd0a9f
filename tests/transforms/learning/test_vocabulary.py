from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from contbatch.transforms.learning.id_table import key_of
from contbatch.transforms.learning.learner import Arrays, Columns
from contbatch.transforms.learning.sparse import SparseLearner
from contbatch.transforms.learning.vocabulary import BoundedIds, BoundedState

Counts = dict[tuple[str, int], float]


class Counter:
    """Counts the labels per field and value; a prediction is the sum of its row's counts."""

    fields = ("user", "tags", "price")

    def __init__(self) -> None:
        self.calls: list[Any] = []

    def init(self) -> Counts:
        return {}

    def predict(self, state: Counts, columns: Columns) -> np.ndarray[Any, np.dtype[np.float64]]:
        self.calls.append(("predict", columns["user"], columns["tags"]))
        return np.array([state.get(("user", user), 0.0) for user in columns["user"]])

    def step(self, state: Counts, columns: Columns, labels: Any, weights: Any) -> Counts:
        self.calls.append(("step", columns["user"], columns["tags"]))
        for user, tags, label in zip(columns["user"], columns["tags"], labels.tolist(), strict=True):
            for value in [("user", user), *(("tags", tag) for tag in tags)]:
                state[value] = state.get(value, 0.0) + label
        return state

    def export(self, state: Counts) -> Arrays:
        flat = [(field == "tags", value, count) for (field, value), count in state.items()]
        return {"counts": np.array(flat, np.float64).reshape(-1, 3)}

    def load(self, arrays: Arrays) -> Counts:
        return {("tags" if tags else "user", int(value)): count for tags, value, count in arrays["counts"].tolist()}

    def forget(self, state: Counts, field: str, values: Sequence[int]) -> None:
        self.calls.append(("forget", field, values))
        for value in values:
            state.pop((field, value), None)


class Preparing(Counter):
    prepared = ("served",)

    def prepare(self, state: Counts, columns: Columns) -> Columns:
        return {"served": list(columns["user"])}


class Stubborn:
    fields = ("user",)


def bounded(capacity: int = 2, admit_after: int = 1, ttl: float = math.inf, **settings: Any) -> BoundedIds[Counts]:
    return BoundedIds(Counter(), **{"ids": ("user",), **settings}, capacity=capacity, admit_after=admit_after, ttl=ttl)


def columns(users: list[Any], times: list[Any] | None = None, tags: list[list[str]] | None = None) -> dict[str, Any]:
    return {
        "user": users,
        "tags": [[] for _ in users] if tags is None else tags,
        "price": [1.0] * len(users),
        "event_time": [0.0] * len(users) if times is None else times,
    }


def learn(wrapper: BoundedIds[Counts], state: BoundedState[Counts], *args: Any) -> BoundedState[Counts]:
    batch = columns(*args)
    return wrapper.step(state, batch, np.ones(len(batch["user"])), np.ones(len(batch["user"])))


def calls(wrapper: BoundedIds[Counts]) -> list[Any]:
    return wrapper.learner.calls  # type: ignore[attr-defined]


def same(left: Arrays, right: Arrays) -> bool:
    return left.keys() == right.keys() and all(np.array_equal(left[name], right[name]) for name in left)


settings = st.tuples(st.integers(1, 4), st.integers(1, 3), st.sampled_from([5.0, 30.0, math.inf]))


def test_the_inner_learner_sees_row_numbers() -> None:
    wrapper = bounded(admit_after=2, ids=("user", "tags"))
    state = wrapper.init()
    for _ in range(2):
        state = learn(wrapper, state, ["ann", 7, 7], [0.0] * 3, [["k"], [], ["k", "l"]])
    assert calls(wrapper) == [("step", [0, 1, 1], [[1], [], [1, 0]]), ("step", [2, 1, 1], [[1], [], [1, 2]])]
    wrapper.predict(state, columns(["ann", "7", "bob"], tags=[["l"], ["m"], []]))
    assert calls(wrapper)[-1] == ("predict", [2, 1, 0], [[2], [0], []])


def test_the_default_row_is_learned() -> None:
    wrapper = bounded(admit_after=5)
    state = learn(wrapper, wrapper.init(), ["ann", "bob"])
    assert wrapper.predict(state, columns(["cid"])).tolist() == [2.0]


def test_a_row_that_passes_on_is_forgotten_before_it_is_learned() -> None:
    wrapper = bounded(capacity=1)
    state = learn(wrapper, wrapper.init(), ["ann", "ann", "ann"])
    assert wrapper.predict(state, columns(["ann", "bob"])).tolist() == [3.0, 0.0]
    state = learn(wrapper, state, ["bob"])
    assert calls(wrapper)[-2:] == [("forget", "user", [1]), ("step", [1], [[]])]
    assert wrapper.predict(state, columns(["ann", "bob"])).tolist() == [0.0, 1.0]


def test_within_one_step_a_row_has_one_owner() -> None:
    """bob takes ann's row in the same step: ann's example goes to the default row, not to bob."""
    wrapper = bounded(capacity=1)
    state = learn(wrapper, wrapper.init(), ["ann", "bob"])
    assert calls(wrapper) == [("forget", "user", [1]), ("step", [0, 1], [[], []])]
    assert wrapper.predict(state, columns(["ann", "bob"])).tolist() == [1.0, 1.0]


def test_an_expired_row_is_forgotten() -> None:
    wrapper = bounded(ttl=10.0)
    state = learn(wrapper, wrapper.init(), ["ann"])
    state = learn(wrapper, state, ["bob"], [10.5])
    assert ("forget", "user", [1]) in calls(wrapper)
    assert wrapper.predict(state, columns(["ann"])).tolist() == [0.0]


def test_predicting_changes_nothing() -> None:
    wrapper = bounded(capacity=2, admit_after=2, ttl=10.0)
    state = learn(wrapper, wrapper.init(), ["ann", "ann", "bob"])
    before = wrapper.export(state)
    for _ in range(3):
        wrapper.predict(state, columns(["ann", "bob", "cid"], [1e6, 1e6, 1e6]))
    assert same(wrapper.export(state), before)


def test_a_server_that_loads_a_version_knows_what_was_evicted() -> None:
    """A server keeps rows by id. The version tells it whom to drop, and gives the default row to them."""
    wrapper, server = bounded(capacity=2), bounded(capacity=2)
    state = learn(wrapper, wrapper.init(), ["ann", "bob"])
    held = server.load(wrapper.export(state))
    cache = {key_of(user): held.tables["user"].row(key_of(user)) for user in ("ann", "bob")}
    number = held.tables["user"].evictions
    held = server.load(wrapper.export(learn(wrapper, state, ["cid", "bob"])))
    for eviction in held.tables["user"].evicted_since(number) or []:
        assert cache.pop(eviction.key) == eviction.row
    assert list(cache) == [key_of("bob")]
    server.predict(held, columns(["ann", "bob", "cid"]))
    assert calls(server)[-1] == ("predict", [0, 2, 1], [[], [], []])


@given(st.lists(st.lists(st.tuples(st.sampled_from("abcde"), st.floats(0.0, 100.0)), max_size=5), max_size=6), settings)
def test_a_restored_wrapper_goes_on_exactly(
    batches: list[list[tuple[str, float]]], setting: tuple[int, int, float]
) -> None:
    wrapper = bounded(*setting, ids=("user", "tags"))
    state = restored = wrapper.init()
    for batch in batches:
        restored = wrapper.load({name: array.copy() for name, array in wrapper.export(state).items()})
        args = [user for user, _ in batch], [time for _, time in batch], [[user, "k"] for user, _ in batch]
        state, restored = learn(wrapper, state, *args), learn(wrapper, restored, *args)
        assert same(wrapper.export(state), wrapper.export(restored))


def test_a_version_shares_nothing_with_the_state() -> None:
    wrapper = bounded(capacity=1)
    state = learn(wrapper, wrapper.init(), ["ann"])
    arrays = wrapper.export(state)
    before = {name: array.copy() for name, array in arrays.items()}
    restored = wrapper.load(arrays)
    learn(wrapper, state, ["bob"])
    assert same(arrays, before)
    assert restored.tables["user"].row(key_of("ann")) == 1


def test_around_a_sparse_learner() -> None:
    """ann's row passes to bob, who starts from nothing but the bias."""
    inner = SparseLearner(("user",), bits=10, l2=0.0)
    wrapper = BoundedIds(inner, ("user",), capacity=1, admit_after=1, ttl=math.inf)
    state = wrapper.step(wrapper.init(), {"user": ["ann"] * 9, "event_time": [0.0] * 9}, np.ones(9), np.ones(9))
    ann, nobody = wrapper.predict(state, {"user": ["ann", "bob"]})
    assert ann > nobody > 0.5
    state = wrapper.step(state, {"user": ["bob"], "event_time": [1.0]}, np.zeros(1), np.zeros(1))
    assert wrapper.predict(state, {"user": ["bob"]}) == pytest.approx([nobody])


def both(users: int, tags: int) -> BoundedIds[BoundedState[Counts]]:
    """Return a wrapper for tags around one for users."""
    inner = bounded(users)
    return BoundedIds(inner, ("tags",), capacity=tags, admit_after=1, ttl=math.inf)


def test_columns_with_limits_of_their_own_get_a_wrapper_each() -> None:
    """One row for users, two for tags: bob takes ann's, and m takes that of k, the first of the two tags."""
    wrapper = both(users=1, tags=2)
    state = wrapper.init()
    for user, tags in (("ann", ["k", "l"]), ("bob", ["m"])):
        state = wrapper.step(state, columns([user], tags=[tags]), np.ones(1), np.ones(1))
    assert wrapper.learner.learner.calls == [  # type: ignore[attr-defined]
        ("step", [1], [[1, 2]]),
        ("forget", "tags", [1]),
        ("forget", "user", [1]),
        ("step", [1], [[1]]),
    ]
    restored = both(users=1, tags=2)
    assert same(restored.export(restored.load(wrapper.export(state))), wrapper.export(state))


def test_what_the_inner_learner_prepares_is_passed_on() -> None:
    wrapper = BoundedIds(Preparing(), ("user",), capacity=1, admit_after=1, ttl=math.inf)
    state = learn(wrapper, wrapper.init(), ["ann"])
    assert wrapper.prepared == ("served",)
    assert wrapper.prepare(state, columns(["ann", "bob"])) == {"served": [1, 0]}


def test_no_rows_change_nothing() -> None:
    wrapper = bounded()
    state = learn(wrapper, wrapper.init(), ["ann"])
    before = wrapper.export(state)
    assert same(wrapper.export(learn(wrapper, state, [])), before)


def test_arrays_without_a_table_are_refused() -> None:
    arrays = bounded().export(bounded().init())
    with pytest.raises(ValueError, match="the arrays have no table of 'tags'; load them with the ids of their export"):
        bounded(ids=("user", "tags")).load(arrays)


def test_columns_read_are_those_of_the_learner_and_the_time() -> None:
    assert bounded().fields == ("user", "tags", "price", "event_time")
    assert bounded(time_field="price").fields == ("user", "tags", "price")


@pytest.mark.parametrize(
    ("setting", "text"),
    [
        ({"ids": ()}, r"ids is \(\); name one column or more, each once"),
        ({"ids": ("user", "user")}, "each once"),
        ({"ids": ("item",)}, "ids names 'item', which is not one of the learner's"),
        ({"capacity": 0}, "capacity is 0; give 1 or more"),
        ({"admit_after": 0}, "admit_after is 0; give 1 or more"),
        ({"ttl": math.nan}, "ttl is nan s; give seconds above 0, or infinity"),
        ({"learner": Stubborn()}, "has no method forget; put this around one that has"),
        ({"learner": bounded()}, r"ids names \['user'\], which the inner wrapper has; name each in one of the two"),
    ],
)
def test_a_setting_outside_its_range_is_refused(setting: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        BoundedIds(**{"learner": Counter(), "ids": ("user",), "capacity": 1, "admit_after": 1, "ttl": 1.0, **setting})
