"""A handler whose calls a test lets go one by one, and engines with it."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence
from typing import Any

from apache_beam.ml.inference.base import ModelHandler

from contbatch.transforms.batching import BatchPolicy
from contbatch.transforms.engine.batches import BatchDevice
from contbatch.transforms.engine.dispatch import Delivery, Work
from contbatch.transforms.engine.engine import Engine
from contbatch.transforms.engine.slot import ModelSlot

PATIENCE = 30.0
"""Seconds after which a test that waits has failed."""


def double(batch: Sequence[Any]) -> list[Any]:
    return [2 * one for one in batch]


class Gate(ModelHandler):
    """Shows the batch that it is called with, and answers when it is told what to do with it."""

    def __init__(self) -> None:
        super().__init__()
        self.called: queue.Queue[list[Any]] = queue.Queue()
        self.answers: queue.Queue[Callable[[Sequence[Any]], Any]] = queue.Queue()

    def load_model(self) -> Any:
        return object()  # cannot be referred to weakly

    def run_inference(self, batch: Sequence[Any], model: Any, inference_args: Any = None) -> Any:
        self.called.put(list(batch))
        return self.answers.get(timeout=PATIENCE)(batch)

    def batch(self) -> list[Any]:
        """Wait for a call, and return its batch."""
        return self.called.get(timeout=PATIENCE)

    def let(self, answer: Callable[[Sequence[Any]], Any] = double) -> None:
        """Answer a call."""
        self.answers.put(answer)


class Plain(ModelHandler):
    """Runs a function."""

    def __init__(self, function: Callable[[Sequence[Any]], Any] = double) -> None:
        super().__init__()
        self._function = function

    def load_model(self) -> Any:
        return object()

    def run_inference(self, batch: Sequence[Any], model: Any, inference_args: Any = None) -> Any:
        return self._function(batch)


def engine_of(handler: ModelHandler, policy: BatchPolicy | None = None, **options: Any) -> Engine:
    slot = ModelSlot(handler)
    slot.load()
    return Engine(slot, BatchDevice(), policy or BatchPolicy(8), **options)


def give(engine: Engine, work: Work, *elements: Any, **asked: Any) -> None:
    engine.submit(work, [(element, work, None) for element in elements], **asked)


def pairs(deliveries: list[Delivery]) -> list[tuple[Any, Any]]:
    return [(task[0], outcome) for one in deliveries for task, outcome in zip(one.tasks, one.outcomes, strict=True)]


def aside(function: Callable[[], Any]) -> Callable[[], Any]:
    """Run a function on another thread; returns what waits for its result, and raises what it raised."""
    done: queue.Queue[tuple[bool, Any]] = queue.Queue()

    def run() -> None:
        try:
            done.put((True, function()))
        except BaseException as error:
            done.put((False, error))

    threading.Thread(target=run, daemon=True).start()

    def result() -> Any:
        fine, value = done.get(timeout=PATIENCE)
        if not fine:
            raise value
        return value

    return result
