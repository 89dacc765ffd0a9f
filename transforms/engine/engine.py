"""``Engine``: one device in a process, fed from all bundles that are open in it.

Three kinds of threads meet here. A bundle's thread submits tasks, goes on, and waits for the last outcomes. The
device thread takes a batch when the device is free, and not before, so that it grows until then; it sleeps while there
is nothing to run. The slot's thread looks for new versions of the model. One lock guards the queue and the outcomes,
and is never held while a handler runs.

A device thread cannot be stopped in the middle of a call. One that has not come back after the time limit is
disowned: its batch fails, another thread takes its place, and what it may bring later is dropped. Whoever waits for
outcomes looks after this, so there is no thread that only watches.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from contbatch.transforms.batching import BatchPolicy, CostModel, Released
from contbatch.transforms.batching.queue import Room
from contbatch.transforms.engine.device import Device
from contbatch.transforms.engine.dispatch import BatchFacts, Delivery, Dispatch, Task, Work
from contbatch.transforms.engine.faults import Failure
from contbatch.transforms.engine.slot import Loaded, ModelSlot
from contbatch.transforms.engine.statistics import EngineStatistics

_LOG = logging.getLogger(__name__)

_LOOK = 5.0
"""Seconds after which one who waits looks whether the device thread still lives."""
_PATIENCE = 60.0
"""Seconds that a bundle waits without a log line where the policy bounds no wait."""


class EngineStopped(RuntimeError):
    """The engine was stopped while somebody waited for outcomes."""


class Disowned(BaseException):
    """The thread that runs the device is to end: it was given up as hanging, or the engine was stopped."""


class Engine:
    """Runs tasks of any number of bundles on one device.

    Args:
        slot: has the model.
        device: runs batches on it.
        policy: when batches are released; its functions are the caller's to call.
        cost: learns what they cost.
        time_limit: seconds that a call of the handler may take before its batch fails; ``None`` for any.
        clock: seconds, never going back.
    """

    def __init__(
        self,
        slot: ModelSlot,
        device: Device,
        policy: BatchPolicy,
        cost: CostModel | None = None,
        time_limit: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.clock = clock
        self._slot = slot
        self._device = device
        self._dispatch = Dispatch(policy, cost or CostModel())
        self._time_limit = math.inf if time_limit is None else time_limit
        self._patience = policy.latency_slo or (policy.max_delay if 0 < policy.max_delay < math.inf else _PATIENCE)
        self._lock = threading.Lock()
        self._work = threading.Condition(self._lock)
        self._room = threading.Condition(self._lock)
        self._turn = _Turn(self)
        self._thread: threading.Thread | None = None
        self._stopped = False
        self._batches = self._hung = self._restarts = 0
        self._device_seconds = 0.0

    def begin(self) -> Work:
        """Return the work of a new bundle; :meth:`end` it."""
        with self._lock:
            return self._dispatch.begin()

    def end(self, work: Work) -> None:
        """Forget a bundle; what of it has no outcome yet is not run, or not delivered."""
        with self._lock:
            self._dispatch.end(work)
            self._work.notify()
            self._room.notify_all()

    def submit(self, work: Work, tasks: Sequence[Task], **asked: Sequence[float]) -> None:
        """Give tasks to the device; returns when there was room for them, by the policy's capacity.

        Args:
            work: the bundle's.
            tasks: what is to be run.
            asked: ``deadlines``, ``weights`` and ``priorities``, as in :meth:`Dispatch.submit`.

        Raises:
            EngineStopped: the engine has been stopped.
        """
        with self._lock:
            self._check_thread()
            since = self.clock()

            def put() -> bool:
                nonlocal tasks, asked
                taken = self._dispatch.submit(work, tasks, self.clock(), since, **asked)
                self._work.notify()
                tasks, asked = tasks[taken:], {name: values[taken:] for name, values in asked.items()}
                return not tasks

            self._wait_until(put, self._room, work)

    def fetch(self, work: Work) -> list[Delivery]:
        """Return the outcomes since the last call."""
        with self._lock:
            return work.fetch()

    def wait(self, work: Work) -> list[Delivery]:
        """Return the outcomes since the last call when there is one for every task.

        Raises:
            EngineStopped: the engine has been stopped.
        """
        with self._lock:
            if work.outstanding:
                work.signal = threading.Condition(self._lock)
                self._dispatch.wait(work)
                self._work.notify()
                self._wait_until(lambda: not work.outstanding, work.signal, work)
            return work.fetch()

    def stop(self, timeout: float = 5.0) -> None:
        """End the threads and forget the model; who waits gets :class:`EngineStopped`."""
        with self._lock:
            self._stopped = True
            self._wake()
        self._slot.stop()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(timeout)

    def statistics(self) -> EngineStatistics:
        """Return the counts so far."""
        with self._lock:
            dispatch, slot = self._dispatch, self._slot.statistics()
            return EngineStatistics(
                **dispatch.count,
                waiting=len(dispatch),
                waiting_seconds=dispatch.seconds,
                running=sum(not task[1].abandoned for task in self._turn.tasks),
                bundles=len(dispatch.bundles),
                batches=self._batches,
                device_seconds=self._device_seconds,
                hung=self._hung,
                restarts=self._restarts,
                version=slot.version,
                swaps=slot.swaps,
                refused=slot.refused,
            )

    def _wake(self) -> None:
        """Wake the bundles that are complete, and those that wait for room; all if the engine was stopped."""
        for work in self._dispatch.bundles if self._stopped else self._dispatch.complete:
            if work.signal is not None:
                work.signal.notify()
        self._dispatch.complete.clear()
        self._room.notify_all()
        if self._stopped:
            self._work.notify_all()

    def _wait_until(self, done: Callable[[], bool], condition: threading.Condition, work: Work) -> None:
        """Wait on a condition; look after the device thread meanwhile, and say why it takes longer than it should."""
        started, patience = self.clock(), self._patience
        while not done():
            self._check_thread()
            if done():  # what hung has failed
                return
            now, turn = self.clock(), self._turn
            if now - started >= patience:
                self._say_why(work, now - started)
                patience *= 2
            limit = self._time_limit + (turn.since - now if turn.tasks else 0.0)
            condition.wait(max(0.0, min(_LOOK, limit, started + patience - now)))

    def _say_why(self, work: Work, seconds: float) -> None:
        running, now = self._turn.tasks, self.clock()
        busy = f"has been busy with {len(running)} elements for {now - self._turn.since:.3g} s"
        _LOG.warning(
            "a bundle has waited %.3g s for %d of its elements: the device %s, and %d elements, about %.3g s, wait",
            *(seconds, work.outstanding, busy if running else "is idle", len(self._dispatch), self._dispatch.seconds),
        )

    def _check_thread(self) -> None:
        """Start the device thread if there is none, or if it has died or hangs."""
        if self._stopped:
            raise EngineStopped("the engine was stopped with work outstanding; the runner may try the bundle again")
        turn, now = self._turn, self.clock()
        if turn.tasks and now - turn.since >= self._time_limit:
            self._hung += 1
            text = f"no answer to a call for {len(turn.tasks)} elements within {self._time_limit:g} s"
            _LOG.error("%s: its thread is given up, and another one goes on", text)
            self._replace(f"TimeoutError: {text}")
        elif self._thread is None:
            self._start()
        elif not self._thread.is_alive():
            self._restarts += 1
            self._replace("RuntimeError: the device thread died")

    def _replace(self, error: str) -> None:
        """Give up the running batch, and let another thread go on."""
        turn = self._turn
        tasks, turn.tasks, turn.disowned = turn.tasks, [], True
        self._dispatch.deliver(tasks, [Failure(error)] * len(tasks), self.clock())
        self._turn = _Turn(self)
        self._start()
        self._wake()

    def _start(self) -> None:
        self._thread = threading.Thread(target=self._turn.main, name="contbatch-device", daemon=True)
        self._thread.start()


class _Turn:
    """The engine as one device thread sees it; see :class:`~contbatch.transforms.engine.device.Turn`."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._dispatch = engine._dispatch
        self.clock = engine.clock
        self.tasks: list[Task] = []
        """What runs now."""
        self.since = 0.0
        """When its last call began."""
        self.disowned = False

    def main(self) -> None:
        """Run batches for as long as the engine wants this thread to."""
        engine = self._engine
        try:
            while (released := self._next()) is not None:
                engine._device.execute(released, self)
                if self.tasks:
                    raise RuntimeError(f"the device left {len(self.tasks)} of its elements without an outcome")
        except Disowned:
            pass
        except BaseException as error:
            with engine._lock:
                if not self.disowned:
                    _LOG.exception("the device thread died; another one goes on")
                    engine._restarts += 1
                    engine._replace(f"{type(error).__name__}: {error}")

    def _next(self) -> Released[Task] | None:
        """Wait for the next batch; ``None`` if there is to be none."""
        engine, dispatch = self._engine, self._dispatch
        with engine._lock:
            while not (engine._stopped or self.disowned):
                now = self.clock()
                when = dispatch.next_time(now)
                if when > now:
                    engine._work.wait(None if when == math.inf else when - now)
                    continue
                released = dispatch.release(now)
                engine._wake()
                if released.batch:
                    self.tasks, self.since = released.batch, now
                    return released
        return None

    @property
    def loaded(self) -> Loaded:
        return self._engine._slot.current

    @property
    def policy(self) -> BatchPolicy:
        return self._dispatch.policy

    @property
    def waiting(self) -> int:
        return len(self._dispatch)

    def padded(self, size: int) -> int:
        return self._dispatch.padded(size)

    def calling(self) -> None:
        self._check()
        self.since = self.clock()

    def more(self, room: Room) -> Released[Task] | None:
        if not len(self._dispatch):
            return None
        with self._engine._lock:
            self._check()
            released = self._dispatch.release(self.clock(), room)
            self.tasks = self.tasks + released.batch
            self._engine._wake()
            return released

    def deliver(
        self, tasks: Sequence[Task], outcomes: Sequence[Any], facts: BatchFacts | None, version: str | None
    ) -> None:
        engine = self._engine
        with engine._lock:
            self._check()
            gone = {id(task) for task in tasks} if len(tasks) < len(self.tasks) else ()
            self.tasks = [task for task in self.tasks if id(task) not in gone] if gone else []
            if facts is not None:
                engine._batches += 1
                engine._device_seconds += facts.seconds
            self._dispatch.deliver(tasks, outcomes, self.clock(), facts, version)
            engine._wake()

    def learn(self, size: int, seconds: float, weight: float) -> None:
        with self._engine._lock:
            self._check()
            self._dispatch.learn(size, seconds, weight)

    def shrink(self, size: int, weight: float) -> None:
        with self._engine._lock:
            self._check()
            self._dispatch.shrink(size, weight)
            policy = self._dispatch.policy
        _LOG.warning("a batch of %d ran out of memory; from now on at most %s", size, _bound(policy))

    def _check(self) -> None:
        if self.disowned or self._engine._stopped:
            raise Disowned


def _bound(policy: BatchPolicy) -> str:
    weighs = policy.weight_fn or policy.length_fn
    return f"a weight of {policy.max_weight:g}" if weighs else f"{policy.max_size} elements"
