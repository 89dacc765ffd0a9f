"""A device that runs whole batches."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from contbatch.transforms.batching import Released
from contbatch.transforms.engine.call import Call, caller
from contbatch.transforms.engine.device import Turn
from contbatch.transforms.engine.dispatch import BatchFacts, Task
from contbatch.transforms.engine.faults import run
from contbatch.transforms.engine.slot import Loaded


class BatchDevice:
    """Calls ``run_inference`` of the handler that is loaded.

    Args:
        inference_args: what a Beam handler takes beside the batch.
        stopwatch: seconds, for what a batch takes.
    """

    def __init__(self, inference_args: dict[str, Any] | None = None, stopwatch: Any = time.perf_counter) -> None:
        self._args = inference_args
        self._stopwatch = stopwatch
        self._call: tuple[Loaded, Call] | None = None
        self._ran: dict[int, list[Any]] = {}

    def execute(self, released: Released[Task], turn: Turn) -> None:
        """See :class:`Device`."""
        tasks, loaded = released.batch, turn.loaded
        elements = [task[0] for task in tasks]
        started, since = self._stopwatch(), turn.clock()
        done = run(self._timed(self._caller(loaded), turn), elements, turn.padded)
        seconds = self._stopwatch() - started
        if done.too_large:
            turn.shrink(done.too_large, released.weight * done.too_large / len(tasks))
        if done.calls == 1:
            turn.learn(released.size, seconds, released.weight)
            if released.size not in self._ran and not turn.policy.allowed_sizes:
                self._ran.clear()
            self._ran[released.size] = elements
        version, number = (loaded.version.name, loaded.version.number) if loaded.version else (None, 0)
        wait = since - released.arrival
        facts = BatchFacts(len(tasks), released.size, released.reason, wait, seconds, number)
        turn.deliver(tasks, done.outcomes, facts, version)

    def warm_up(self, loaded: Loaded) -> None:
        """See :class:`Device`: with static shapes, a batch of each."""
        call = caller(loaded.handler, loaded.model, self._args)
        for size, elements in sorted(self._ran.copy().items()):
            call(elements + elements[-1:] * (size - len(elements)))

    def _caller(self, loaded: Loaded) -> Call:
        if self._call is None or self._call[0] is not loaded:
            self._call = loaded, caller(loaded.handler, loaded.model, self._args)
        return self._call[1]

    def _timed(self, call: Call, turn: Turn) -> Call:
        def timed(batch: Sequence[Any]) -> list[Any]:
            turn.calling()
            return call(batch)

        return timed
