"""The engine among its threads. A handler answers when the test lets it; nothing sleeps."""

from __future__ import annotations

import gc
import logging
import random
import threading
from typing import Any

import pytest

from contbatch.transforms.batching import BatchPolicy
from contbatch.transforms.engine.dispatch import Shed, Work
from contbatch.transforms.engine.engine import Engine, EngineStopped
from contbatch.transforms.engine.faults import Failure
from contbatch.transforms.engine.leases import Lease, leased
from contbatch.transforms.engine.slot import Loaded
from contbatch.transforms.engine.versions import Version
from contbatch.transforms.testing import ManualClock
from tests.transforms.engine.gates import PATIENCE, Gate, Plain, aside, engine_of, give, pairs


@pytest.fixture
def gate() -> Gate:
    return Gate()


def conserved(engine: Engine) -> None:
    now = engine.statistics()
    fates = now.predicted + now.shed + now.failed + now.abandoned + now.waiting + now.running
    assert now.submitted == fates


def test_a_batch_grows_until_the_device_takes_it(gate: Gate) -> None:
    engine = engine_of(gate)
    works = [engine.begin() for _ in range(3)]
    give(engine, works[0], 1)
    waits = [aside(lambda: pairs(engine.wait(works[0])))]
    assert gate.batch() == [1]
    give(engine, works[1], 2, 3)
    give(engine, works[2], 4)
    for work in works:
        waits.append(aside(lambda work=work: pairs(engine.wait(work))))
    gate.let()
    assert gate.batch() == [2, 3, 4]
    gate.let()
    assert [wait() for wait in waits[2:]] == [[(2, 4), (3, 6)], [(4, 8)]]
    conserved(engine)
    engine.stop()


def test_outcomes_can_be_fetched_before_the_bundle_ends(gate: Gate) -> None:
    engine = engine_of(gate, BatchPolicy(1))
    work = engine.begin()
    give(engine, work, 1, 2)
    gate.let()
    assert (gate.batch(), gate.batch()) == ([1], [2])  # when the second is called, the first is delivered
    assert pairs(engine.fetch(work)) == [(1, 2)]
    assert engine.fetch(work) == []
    gate.let()
    assert pairs(engine.wait(work)) == [(2, 4)]
    engine.stop()


def test_a_bundle_that_is_given_up_is_not_run_and_gives_its_room_back(gate: Gate) -> None:
    engine = engine_of(gate, BatchPolicy(1, capacity=2))
    first, second = engine.begin(), engine.begin()
    give(engine, first, 1)
    assert gate.batch() == [1]
    give(engine, first, 2, 3)
    blocked = aside(lambda: give(engine, second, 4))
    engine.end(first)
    blocked()
    gate.let()
    assert gate.batch() == [4]
    gate.let()
    assert pairs(engine.wait(second)) == [(4, 8)]
    assert (first.delivered, engine.statistics().abandoned) == ([], 3)
    conserved(engine)
    engine.stop()


def test_who_gives_too_much_waits_for_room_and_nothing_is_lost() -> None:
    engine = engine_of(Plain(), BatchPolicy(2, capacity=2))
    work = engine.begin()
    give(engine, work, *range(50))
    assert sorted(pairs(engine.wait(work))) == [(one, 2 * one) for one in range(50)]
    engine.stop()


def test_what_does_not_come_back_in_time_fails_and_the_device_goes_on(gate: Gate, caplog: Any) -> None:
    clock = ManualClock()
    engine = engine_of(gate, BatchPolicy(2), time_limit=0.01, clock=clock)
    work = engine.begin()
    give(engine, work, 1, 2)
    assert gate.batch() == [1, 2]
    wait = aside(lambda: pairs(engine.wait(work)))
    clock.advance(0.01)
    failure = Failure("TimeoutError: no answer to a call for 2 elements within 0.01 s")
    hung = engine._thread
    assert wait() == [(1, failure), (2, failure)]
    assert "its thread is given up" in caplog.text
    give(engine, work, 3)
    assert gate.batch() == [3]
    gate.let(lambda batch: ["from the thread that hung" for _ in batch])  # it asked first
    hung.join(PATIENCE)
    gate.let()
    assert pairs(engine.wait(work)) == [(3, 6)]
    assert (engine.statistics().hung, engine.statistics().failed) == (1, 2)
    conserved(engine)
    engine.stop()


def test_what_hangs_is_found_out_without_anything_else_happening(gate: Gate, monkeypatch: Any) -> None:
    monkeypatch.setattr("contbatch.transforms.engine.engine._LOOK", 10 * PATIENCE)
    engine = engine_of(gate, BatchPolicy(2).unhurried(), time_limit=0.01)
    work = engine.begin()
    give(engine, work, 1)
    ((_, failure),) = aside(lambda: pairs(engine.wait(work)))()
    assert failure.error.startswith("TimeoutError")
    gate.let()
    engine.stop()


def test_a_newer_model_serves_from_the_next_batch_on(gate: Gate) -> None:
    engine = engine_of(gate, BatchPolicy(1))
    work = engine.begin()
    give(engine, work, 1)
    gate.batch()
    newer = Plain(lambda batch: [-one for one in batch])
    engine._slot._current = Loaded(newer, newer.load_model(), Version("v2", 2, "", ""))
    give(engine, work, 2)
    gate.let()
    deliveries = engine.wait(work)
    assert [(one.outcomes, one.version) for one in deliveries] == [([2], None), ([-2], "v2")]
    engine._device.warm_up(engine._slot.current)
    with pytest.raises(TypeError):
        engine._device.warm_up(Loaded(Plain(lambda batch: None), None, None))
    engine.stop()


def test_a_batch_that_was_too_large_is_remembered() -> None:
    sizes: list[int] = []

    def limited(batch: Any) -> Any:
        sizes.append(len(batch))
        if len(batch) > 4:
            raise MemoryError
        return batch

    engine = engine_of(Plain(limited), BatchPolicy(8))
    work = engine.begin()
    give(engine, work, *range(24))
    assert len(pairs(engine.wait(work))) == 24
    assert max(sizes[3:]) <= 4
    engine.stop()


def test_the_time_limit_is_that_of_a_call_and_not_of_a_batch(gate: Gate) -> None:
    clock = ManualClock()
    engine = engine_of(gate, BatchPolicy(2), time_limit=1.0, clock=clock)
    work = engine.begin()
    give(engine, work, 1, 2)
    wait = aside(lambda: pairs(engine.wait(work)))

    def fail(batch: Any) -> None:
        clock.advance(0.9)
        raise ValueError("together")

    def slow(batch: Any) -> list[int]:
        clock.advance(0.9)
        return [2 * one for one in batch]

    for answer in (fail, slow, slow):
        gate.batch()
        gate.let(answer)
    assert wait() == [(1, 2), (2, 4)]
    engine.stop()


@pytest.mark.parametrize("error", [SystemExit("bye"), KeyboardInterrupt()])
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_when_the_device_thread_dies_its_batch_fails_and_another_goes_on(gate: Gate, error: BaseException) -> None:
    engine = engine_of(gate, BatchPolicy(1))
    work = engine.begin()
    give(engine, work, 1, 2)
    gate.batch()

    def die(batch: Any) -> None:
        raise error

    gate.let(die)
    assert gate.batch() == [2]
    gate.let()
    (_, failure), rest = pairs(engine.wait(work))
    assert failure.error.startswith(type(error).__name__)
    assert (rest, engine.statistics().restarts) == ((2, 4), 1)
    conserved(engine)
    engine.stop()


def test_a_device_that_forgets_an_element_is_found_out() -> None:
    class Forgetful:
        def execute(self, released: Any, turn: Any) -> None:
            turn.deliver(released.batch[:1], [0], None, None)

        def warm_up(self, loaded: Any) -> None:
            pass

    engine = engine_of(Plain())
    engine._device = Forgetful()
    work = engine.begin()
    give(engine, work, 1, 2)
    assert [type(outcome) for _, outcome in pairs(engine.wait(work))] == [int, Failure]
    engine.stop()


def test_who_waits_when_the_engine_is_stopped_is_told(gate: Gate) -> None:
    engine = engine_of(gate, BatchPolicy(1, capacity=1))
    work, other = engine.begin(), engine.begin()
    give(engine, work, 1)
    gate.batch()
    give(engine, work, 2)
    waits = aside(lambda: engine.wait(work)), aside(lambda: give(engine, other, 3))
    stop = aside(lambda: engine.stop(PATIENCE))
    for wait in waits:
        with pytest.raises(EngineStopped, match="with work outstanding"):
            wait()
    gate.let()
    stop()
    assert not [thread for thread in threading.enumerate() if thread is engine._thread]
    with pytest.raises(EngineStopped):
        give(engine, other, 4)


def test_a_long_wait_says_why(gate: Gate) -> None:
    clock = ManualClock()
    engine = engine_of(gate, BatchPolicy(1, latency_slo=0.02), clock=clock)
    work = engine.begin()
    give(engine, work, 1)
    gate.batch()
    give(engine, work, 2, 3)
    wait = aside(lambda: engine.wait(work))
    said: list[str] = []
    spoken = threading.Event()

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            said.append(record.getMessage())
            spoken.set()

    handler = Handler()
    logging.getLogger("contbatch.transforms.engine.engine").addHandler(handler)
    while not spoken.wait(0.01):  # the clock must move after the wait began
        clock.advance(0.01)
    logging.getLogger("contbatch.transforms.engine.engine").removeHandler(handler)
    assert "for 3 of its elements: the device has been busy with 1 elements for" in said[0]
    assert "and 2 elements, about" in said[0]
    for _ in range(3):
        gate.let()
    wait()
    engine.stop()


def test_threads_that_give_up_at_random_leave_nothing_and_lose_nothing() -> None:
    engine = engine_of(Plain(), BatchPolicy(16, capacity=64))
    got: list[list[Any]] = [[] for _ in range(8)]
    wanted: list[list[Any]] = [[] for _ in range(8)]

    def drive(number: int) -> None:
        chance = random.Random(number)
        for bundle in range(60):
            work = engine.begin()
            elements = [(number, bundle, at) for at in range(chance.randrange(1, 40))]
            give(engine, work, *elements)
            if chance.random() < 0.3:
                engine.end(work)
                continue
            wanted[number] += elements
            got[number] += [element for element, outcome in pairs(engine.wait(work)) if outcome == 2 * element]
            engine.end(work)

    waits = [aside(lambda number=number: drive(number)) for number in range(8)]
    for wait in waits:
        wait()
    assert [sorted(one) for one in got] == wanted
    now = engine.statistics()
    assert (now.waiting, now.bundles, now.shed, now.failed) == (0, 0, 0, 0)
    conserved(engine)
    engine.stop()


def test_what_cannot_be_in_time_is_shed(gate: Gate) -> None:
    clock = ManualClock(100.0)
    engine = engine_of(gate, BatchPolicy(1), clock=clock)
    work = engine.begin()
    give(engine, work, 1, 2, deadlines=[200.0, 101.0])
    assert gate.batch() == [2]
    gate.let()
    assert gate.batch() == [1]
    gate.let()
    engine.wait(work)
    give(engine, work, 3, deadlines=[99.0])
    ((_, outcome),) = pairs(engine.wait(work))
    assert type(outcome) is Shed
    engine.stop()


def test_a_lease_keeps_the_engine_and_the_last_one_ends_it() -> None:
    made: list[Engine] = []

    def make() -> Engine:
        made.append(engine_of(Plain()))
        return made[-1]

    first, second = Lease("a", make), Lease("a", make)
    other = Lease("b", make)
    assert (first.engine is second.engine, first.engine is other.engine) == (True, False)
    assert leased() == {"a": 2, "b": 1}
    first.release()
    first.release()
    assert leased() == {"a": 1, "b": 1}
    work = second.engine.begin()
    give(second.engine, work, 1)
    assert pairs(second.engine.wait(work)) == [(1, 2)]
    engine = second.engine
    del second
    gc.collect()
    engine._thread.join(PATIENCE)  # it is stopped aside
    assert leased() == {"b": 1}
    with pytest.raises(EngineStopped):
        give(made[0], made[0].begin(), 1)
    other.release()
    assert leased() == {}
    assert Lease("a", make).engine is made[2]


def test_a_lease_that_could_not_be_made_is_none() -> None:
    def fail() -> Engine:
        raise RuntimeError("no model")

    with pytest.raises(RuntimeError, match="no model"):
        Lease("a", fail)
    assert leased() == {}


def test_many_users_at_once_make_one_engine() -> None:
    together = threading.Barrier(8)
    made: list[Engine] = []

    def make() -> Engine:
        made.append(engine_of(Plain()))
        return made[-1]

    def use() -> Lease:
        together.wait(PATIENCE)
        return Lease("a", make)

    leases = [result() for result in [aside(use) for _ in range(8)]]
    assert len(made) == 1
    for lease in leases:
        lease.release()
    assert leased() == {}


def test_work_that_was_never_begun_can_be_ended() -> None:
    engine = engine_of(Plain())
    engine.end(Work())
    assert engine.statistics().abandoned == 0
    engine.stop()


def test_what_had_to_wait_for_room_keeps_its_own_weight() -> None:
    batches: list[list[float]] = []

    def seen(batch: Any) -> Any:
        batches.append(list(batch))
        return batch

    engine = engine_of(Plain(seen), BatchPolicy(4, weight_fn=float, max_weight=3.0, capacity=4))
    work = engine.begin()
    weights = [1.0] * 6 + [3.0] * 6
    give(engine, work, *weights, weights=weights)
    assert len(pairs(engine.wait(work))) == 12
    assert all(sum(batch) <= 3.0 for batch in batches)
    engine.stop()
