"""Elements join and leave between steps. An element is the number of steps that it takes, or what goes wrong."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import pytest
from apache_beam.ml.inference.base import KeyedModelHandler, ModelHandler
from hypothesis import given, settings
from hypothesis import strategies as st

from contbatch.transforms.batching import BatchPolicy
from contbatch.transforms.engine.engine import Engine
from contbatch.transforms.engine.faults import Failure
from contbatch.transforms.engine.iterative import iterative
from contbatch.transforms.engine.slot import Loaded, ModelSlot
from contbatch.transforms.engine.steps import StepDevice
from contbatch.transforms.engine.versions import Version
from contbatch.transforms.testing import ManualClock
from tests.transforms.engine.gates import PATIENCE, aside, give, pairs


class Counting(ModelHandler):
    """Counts down: element n takes n steps. 10 and 11 fail at the start, 20 and 21 in a step, 30 at the end."""

    def __init__(self, memory: int = 10**9, cost: float = 0.0) -> None:
        super().__init__()
        self.memory = memory
        self.held = 0
        self.most = 0
        self.steps: list[list[int]] = []
        self.may_step = threading.Semaphore(10**9)
        self.stepped: threading.Semaphore = threading.Semaphore(0)

    def load_model(self) -> Any:
        return object()

    def start(self, elements: Sequence[int], model: Any) -> list[list[int]]:
        for one in elements:
            if one in {10, 11}:
                raise ValueError(f"{one} cannot start")
        self.held += len(elements)
        self.most = max(self.most, self.held)
        return [[one, one] for one in elements]

    def step(self, states: Sequence[list[int]], model: Any) -> list[bool]:
        self.may_step.acquire(timeout=PATIENCE)
        self.steps.append([state[0] for state in states])
        self.stepped.release()
        if len(states) > self.memory:
            raise MemoryError
        for state in states:
            if state[0] in {20, 21} and state[1] < state[0] - 2:
                raise ValueError(f"{state[0]} cannot go on")
            state[1] -= 1
        return [state[1] <= 0 for state in states]

    def finish(self, state: list[int], model: Any) -> int:
        self.held -= 1
        if state[0] == 30:
            raise ValueError("30 cannot end")
        return 2 * state[0]

    def abandon(self, state: list[int], model: Any) -> None:
        self.held -= 1


def engine_of(handler: ModelHandler, **policy: Any) -> tuple[Engine, ModelSlot]:
    slot, device = ModelSlot(handler), StepDevice(ManualClock())  # starts cost nothing: who comes joins at once
    slot.load()
    return Engine(slot, device, BatchPolicy(**policy)), slot


def ran(engine: Engine, *elements: Any) -> list[tuple[Any, Any]]:
    work = engine.begin()
    give(engine, work, *elements)
    outcomes = pairs(engine.wait(work))
    engine.end(work)
    engine.stop()
    return sorted(outcomes)


@given(st.lists(st.sampled_from([1, 2, 3, 5, 10, 11, 20, 21, 30]), min_size=1, max_size=20), st.integers(1, 6))
def test_every_element_comes_to_its_end_or_fails_alone(elements: list[int], most: int) -> None:
    handler = Counting()
    engine, _ = engine_of(handler, max_size=most)
    where = dict.fromkeys((10, 11), "cannot start") | dict.fromkeys((20, 21), "cannot go on") | {30: "cannot end"}
    expected = [
        (one, Failure(f"ValueError: {one} {where[one]}") if one in where else 2 * one) for one in sorted(elements)
    ]
    assert ran(engine, *elements) == expected
    assert (handler.held, max(map(len, handler.steps), default=0) <= most) == (0, True)
    now = engine.statistics()
    assert now.submitted == now.predicted + now.failed == len(elements)


def test_a_short_element_leaves_and_another_takes_its_place() -> None:
    handler = Counting()
    engine, _ = engine_of(handler, max_size=2)
    assert len(ran(engine, 9, 1, 1, 1)) == 4
    assert len(handler.steps) <= 9 + 1  # whole batches take 9 and then 1 at least; one place each would take 12
    assert all(len(states) <= 2 for states in handler.steps)


def test_what_comes_while_others_run_joins_them() -> None:
    handler = Counting()
    handler.may_step = threading.Semaphore(0)
    engine, _ = engine_of(handler, max_size=4)
    first, second = engine.begin(), engine.begin()
    give(engine, first, 8)
    wait = aside(lambda: pairs(engine.wait(first)))
    handler.may_step.release()
    assert handler.stepped.acquire(timeout=PATIENCE)
    give(engine, second, 3)
    handler.may_step.release(100)
    assert pairs(engine.wait(second)) == [(3, 6)]
    assert wait() == [(8, 16)]
    assert [8, 3] in handler.steps
    engine.stop()


def test_the_weight_of_what_runs_stays_within_the_budget() -> None:
    handler = Counting()
    engine, _ = engine_of(handler, max_size=8, weight_fn=float, max_weight=6.0)
    work = engine.begin()
    elements = [3, 2, 5, 1, 9, 4, 2]
    give(engine, work, *elements, weights=[float(one) for one in elements])
    assert sorted(pairs(engine.wait(work))) == [(one, 2 * one) for one in sorted(elements)]
    assert all(sum(states) <= 6 or len(states) == 1 for states in handler.steps)
    engine.stop()


def test_a_step_that_runs_out_of_memory_is_taken_in_halves_and_remembered() -> None:
    handler = Counting(memory=3)
    engine, _ = engine_of(handler, max_size=8)
    elements = [2, 3, 4, 5, 6, 7, 8, 9, 2, 3, 4, 5]
    assert ran(engine, *elements) == [(one, 2 * one) for one in sorted(elements)]
    sizes = [len(states) for states in handler.steps]
    assert sizes[0] == 8
    assert max(sizes[3:]) <= 4
    assert engine._dispatch.policy.max_size <= 4


class Growing(Counting):
    """What an element holds grows by one in each step, as a decoder's cache does; element n needs n in the end."""

    def start(self, elements: Sequence[int], model: Any) -> list[list[int]]:
        self._hold(len(elements))
        return [[one, 1] for one in elements]

    def step(self, states: Sequence[list[int]], model: Any) -> list[bool]:
        growing = [state for state in states if state[1] < state[0]]
        self._hold(len(growing))
        for state in growing:
            state[1] += 1
        return [state[1] == state[0] for state in states]

    def _hold(self, more: int) -> None:
        if self.held + more > self.memory:
            raise MemoryError
        self.held += more

    def finish(self, state: list[int], model: Any) -> int:
        self.held -= state[1]
        return 2 * state[0]

    def abandon(self, state: list[int], model: Any) -> None:
        self.held -= state[1]


@settings(max_examples=15)  # each time that memory lacks, all garbage is collected
@given(st.lists(st.integers(1, 10), min_size=1, max_size=12), st.integers(1, 6))
def test_what_fits_alone_comes_to_its_end_however_much_others_hold(elements: list[int], most: int) -> None:
    handler = Growing(memory=8)
    engine, _ = engine_of(handler, max_size=most)
    outcomes = ran(engine, *elements)
    assert outcomes == [
        (one, 2 * one if one <= 8 else Failure("MemoryError: ", memory=True)) for one in sorted(elements)
    ]
    assert handler.held == 0


def test_those_that_run_go_on_with_their_model() -> None:
    old, new = Counting(), Counting()
    old.may_step = threading.Semaphore(0)
    engine, slot = engine_of(old, max_size=4)
    first, second = engine.begin(), engine.begin()
    give(engine, first, 4)
    wait = aside(lambda: engine.wait(first))
    old.may_step.release()
    assert old.stepped.acquire(timeout=PATIENCE)
    slot._current = Loaded(new, new.load_model(), Version("v2", 2, "", ""))
    give(engine, second, 3)
    old.may_step.release(100)
    deliveries = engine.wait(second), wait()
    assert [[one.version for one in each] for each in deliveries] == [["v2"], [None]]
    assert (old.steps, new.steps) == ([[4]] * 4, [[3]] * 3)
    engine.stop()


def test_what_nobody_wants_any_more_leaves_its_place() -> None:
    handler = Counting()
    handler.may_step = threading.Semaphore(0)
    engine, _ = engine_of(handler, max_size=2)
    first, second = engine.begin(), engine.begin()
    give(engine, first, 1000, 1000)
    handler.may_step.release()
    assert handler.stepped.acquire(timeout=PATIENCE)
    engine.end(first)
    give(engine, second, 1)
    handler.may_step.release(20)
    assert pairs(engine.wait(second)) == [(1, 2)]
    assert (handler.held, engine.statistics().abandoned) == (0, 2)
    engine.stop()


def test_when_the_engine_stops_nothing_is_held() -> None:
    handler = Counting()
    engine, _ = engine_of(handler, max_size=2)
    work = engine.begin()
    give(engine, work, 10**9)
    assert handler.stepped.acquire(timeout=PATIENCE)
    engine.stop(PATIENCE)
    assert handler.held == 0
    assert not engine._thread.is_alive()


def test_an_element_without_a_key_fails_alone() -> None:
    engine, _ = engine_of(KeyedModelHandler(Counting()), max_size=4)
    work = engine.begin()
    give(engine, work, ("a", 2), 5, ("b", 3))
    outcomes = [outcome for _, outcome in pairs(engine.wait(work))]
    assert [one for one in outcomes if type(one) is not Failure] == [("a", 4), ("b", 6)]
    assert sum(type(one) is Failure for one in outcomes) == 1
    engine.stop()


def test_a_new_model_is_tried_on_what_was_started_last() -> None:
    handler, device = Counting(), StepDevice()
    device.warm_up(Loaded(handler, None, None))
    assert handler.steps == []
    device._last = [3, 2]
    device.warm_up(Loaded(handler, None, None))
    assert (handler.steps, handler.held) == ([[3, 2]], 0)
    device._last = [10]
    with pytest.raises(ValueError, match="cannot start"):
        device.warm_up(Loaded(handler, None, None))


def test_a_handler_that_answers_for_too_few_fails_alone() -> None:
    class Short(Counting):
        def step(self, states: Sequence[list[int]], model: Any) -> list[bool]:
            return super().step(states, model)[:-1]

    engine, _ = engine_of(Short(), max_size=2)
    outcomes = ran(engine, 1, 2)
    assert [type(outcome) for _, outcome in outcomes] == [Failure, Failure]
    assert "gave 0 results for 1 elements" in outcomes[0][1].error


def test_keys_are_kept() -> None:
    engine, _ = engine_of(KeyedModelHandler(Counting()), max_size=2)
    assert ran(engine, ("a", 2), ("b", 3)) == [(("a", 2), ("a", 4)), (("b", 3), ("b", 6))]


def test_what_is_taken_for_an_iterative_handler() -> None:
    handler = Counting()
    assert iterative(handler) is handler
    assert iterative(KeyedModelHandler(handler).with_preprocess_fn(int)) is handler
    assert iterative(ModelHandler()) is None
