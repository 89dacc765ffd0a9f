"""The applier of asynchronous training, judged by a learner that keeps its own count of versions and rows."""

from __future__ import annotations

from collections import Counter
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from contbatch.transforms.learning import SparseLearner
from contbatch.transforms.learning.batches import Batch
from contbatch.transforms.learning.staleness import Applier, Fate, GradientLearner, Outcome

SPARSE = SparseLearner(("user", "tags"), ((("user",), ("tags",)),), factors=2, bits=8)


class SpyState(NamedTuple):
    steps: int
    seen: tuple[tuple[int, tuple[int, ...]], ...]
    """Per step: how old its gradient was, and the rows it was of."""


class Spy:
    """Learns nothing, and knows on which of its own states a gradient was computed."""

    fields = ("row",)

    def init(self) -> SpyState:
        return SpyState(0, ())

    def predict(self, state: SpyState, columns: Any) -> Any:
        return np.zeros(len(columns["row"]))

    def gradient(self, state: SpyState, columns: Any, labels: Any, weights: Any) -> Any:
        return {"steps": np.array(state.steps), "rows": np.array(columns["row"], np.int64)}

    def apply(self, state: SpyState, gradient: Any) -> SpyState:
        entry = state.steps - int(gradient["steps"]), tuple(gradient["rows"].tolist())
        return SpyState(state.steps + 1, (*state.seen, entry))

    def step(self, state: SpyState, columns: Any, labels: Any, weights: Any) -> SpyState:
        return self.apply(state, self.gradient(state, columns, labels, weights))

    def export(self, state: SpyState) -> Any:
        raise NotImplementedError

    def load(self, arrays: Any) -> SpyState:
        raise NotImplementedError


def rows(*numbers: int) -> Batch:
    return Batch({"row": list(numbers)}, np.zeros(len(numbers)), np.ones(len(numbers)))


def people(*pairs: tuple[str, list[str]]) -> Batch:
    labels = np.array([float(user < "c") for user, _ in pairs])
    return Batch(
        {"user": [user for user, _ in pairs], "tags": [tags for _, tags in pairs]}, labels, np.ones(len(pairs))
    )


def late(
    applier: Applier[Any], learner: GradientLearner[Any], delays: list[int], batches: list[Batch]
) -> list[Outcome]:
    """Submit each batch with a gradient of the state that was current ``delay`` versions before."""
    states, outcomes = [applier.state], []
    for delay, batch in zip(delays, batches, strict=True):
        version = max(applier.version - delay, 0)
        outcomes.append(applier.submit(version, learner.gradient(states[version], *batch), batch))
        if applier.version == len(states):
            states.append(applier.state)
    return outcomes


delays = st.lists(st.integers(0, 12), max_size=40)
person = st.tuples(st.sampled_from("abcdef"), st.lists(st.sampled_from("klm"), max_size=3))
batches_of_people = st.lists(st.lists(person, min_size=1, max_size=5).map(lambda pairs: people(*pairs)), max_size=12)


def test_a_gradient_within_the_bound_is_applied_and_one_beyond_it_computed_again() -> None:
    """Bound 1. Three gradients of version 0 come in turn: 0, 1 and 2 versions behind."""
    spy = Spy()
    applier = Applier(spy, bound=1)
    first = spy.init()
    outcomes = [applier.submit(0, spy.gradient(first, *rows(number)), rows(number)) for number in range(3)]
    assert outcomes == [(1, Fate.APPLIED, 0), (2, Fate.APPLIED, 1), (3, Fate.RECOMPUTED, 2)]
    assert applier.state.seen == ((0, (0,)), (1, (1,)), (0, (2,)))


def test_dropping_makes_no_version_and_is_counted() -> None:
    """Bound 0, three gradients of version 0, of 1, 2 and 3 rows: one is applied, 5 rows are lost."""
    spy = Spy()
    applier = Applier(spy, bound=0, on_stale="drop")
    for batch in (rows(0), rows(1, 2), rows(3, 4, 5)):
        outcome = applier.submit(0, spy.gradient(spy.init(), *batch), batch)
    assert outcome == (1, Fate.DROPPED, 1)
    statistics = applier.statistics()
    assert (statistics.applied, statistics.recomputed, statistics.dropped) == (1, 0, 2)
    assert (statistics.learned_examples, statistics.dropped_examples) == (1, 5)
    assert statistics.staleness == {0: 1, 1: 2}


@given(delays, st.integers(0, 9), st.sampled_from(["recompute", "drop"]))
def test_nothing_applied_is_staler_than_the_bound_and_every_row_has_one_fate(
    behind: list[int], bound: int, on_stale: Any
) -> None:
    applier = Applier(Spy(), bound, on_stale)
    batches = [rows(*range(number * 3, number * 3 + 1 + number % 3)) for number in range(len(behind))]
    outcomes = late(applier, Spy(), behind, batches)
    assert all(age <= bound for age, _ in applier.state.seen)
    learned = [row for _, numbers in applier.state.seen for row in numbers]
    dropped = [
        row
        for outcome, batch in zip(outcomes, batches, strict=True)
        if outcome.fate is Fate.DROPPED
        for row in batch.columns["row"]
    ]
    assert sorted(learned + dropped) == [row for batch in batches for row in batch.columns["row"]]
    statistics = applier.statistics()
    assert (statistics.learned_examples, statistics.dropped_examples) == (len(learned), len(dropped))
    fates = Counter(outcome.fate for outcome in outcomes)
    assert (statistics.applied, statistics.recomputed, statistics.dropped) == tuple(fates[fate] for fate in Fate)
    assert applier.version == applier.state.steps
    assert sum(statistics.staleness.values()) == len(batches)


@given(delays, batches_of_people)
def test_with_bound_0_it_is_serial_training_to_the_bit(behind: list[int], batches: list[Batch]) -> None:
    behind = (behind + [3] * len(batches))[: len(batches)]
    applier = Applier(SPARSE, bound=0)
    history = [SPARSE.init()]
    for delay, batch in zip(behind, batches, strict=True):
        version = max(applier.version - delay, 0)
        applier.submit(version, SPARSE.gradient(history[version], *batch), batch)
        history.append(SPARSE.load(SPARSE.export(applier.state)))
    serial = SPARSE.init()
    for batch in batches:
        serial = SPARSE.step(serial, *batch)
    assert all(map(np.array_equal, applier.state, serial))


def test_a_stalled_worker_stops_no_other() -> None:
    """One worker reads version 0 and stalls; another makes 100 versions meanwhile. The first one's rows still count."""
    spy = Spy()
    applier = Applier(spy, bound=2)
    stalled = spy.gradient(applier.state, *rows(999))
    for number in range(100):
        assert applier.submit(number, spy.gradient(applier.state, *rows(number)), rows(number)).fate is Fate.APPLIED
    assert applier.submit(0, stalled, rows(999)) == (101, Fate.RECOMPUTED, 100)
    assert applier.state.seen[-1] == (0, (999,))


@pytest.mark.parametrize("on_stale", ["recompute", "drop"])
def test_a_gradient_of_unknown_weights_is_computed_again(on_stale: Any) -> None:
    spy = Spy()
    applier = Applier(spy, 5, on_stale)
    foreign = {"steps": np.array(-1_000), "rows": np.array([7])}
    assert applier.submit(None, foreign, rows(7)) == (1, Fate.RECOMPUTED, None)
    assert applier.state.seen == ((0, (7,)),)
    assert applier.statistics().staleness == {6: 1}


def test_a_gradient_from_the_future_is_refused() -> None:
    with pytest.raises(ValueError, match=r"a gradient of version 1 came when the weights were at 0; give the version"):
        Applier(Spy(), 5).submit(1, {}, rows(0))


@given(delays, st.integers(0, 3), st.integers(0, 12), batches_of_people)
def test_an_exported_applier_goes_on_exactly(behind: list[int], bound: int, cut: int, batches: list[Batch]) -> None:
    def run(applier: Applier[Any], numbers: range) -> None:
        for number in numbers:
            version = max(applier.version - (behind[number] if number < len(behind) else 0), 0)
            gradient = {
                "slots": np.array([number]),
                "gradient": np.full((1, 3), 0.1 * number),
                "rows": np.array([batches[number].size]),
            }
            applier.submit(version, gradient, batches[number])

    cut = min(cut, len(batches))
    straight, before, after = (Applier(SPARSE, bound) for _ in range(3))
    run(straight, range(len(batches)))
    run(before, range(cut))
    after.load(before.export())
    run(after, range(cut, len(batches)))
    assert after.version == straight.version
    assert after.statistics() == straight.statistics()
    ours, theirs = after.export(), straight.export()
    assert all(np.array_equal(ours[name], theirs[name]) for name in ours.keys() | theirs.keys())


@pytest.mark.parametrize("bound", [-1, 1.5, None])
def test_a_bound_outside_its_range_is_refused(bound: Any) -> None:
    with pytest.raises(ValueError, match=f"bound is {bound!r}; give a whole number of versions, 0 or more"):
        Applier(Spy(), bound)


def test_an_unknown_reaction_is_refused() -> None:
    with pytest.raises(ValueError, match="on_stale is 'wait'; give one of 'recompute', 'drop'"):
        Applier(Spy(), 1, "wait")  # type: ignore[arg-type]
