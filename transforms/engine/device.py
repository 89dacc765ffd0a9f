"""What an engine asks of a device, and what the device may ask of the engine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from contbatch.transforms.batching import BatchPolicy, Released
from contbatch.transforms.batching.queue import Room
from contbatch.transforms.engine.dispatch import BatchFacts, Task
from contbatch.transforms.engine.slot import Loaded


class Turn(Protocol):
    """The engine, as the thread sees it that runs the device. Every call raises when the thread has been disowned."""

    clock: Callable[[], float]

    @property
    def loaded(self) -> Loaded:
        """The model that serves now."""

    @property
    def policy(self) -> BatchPolicy:
        """The policy, with what is known of batches that were too large."""

    @property
    def waiting(self) -> int:
        """How many elements wait."""

    def calling(self) -> None:
        """Start the time limit of a call of the handler."""

    def padded(self, size: int) -> int:
        """Return how many elements the device runs for so many."""

    def more(self, room: Room) -> Released[Task] | None:
        """Return what may join what runs, and shed what is too late; ``None`` if nothing waits."""

    def deliver(
        self, tasks: Sequence[Task], outcomes: Sequence[Any], facts: BatchFacts | None, version: str | None
    ) -> None:
        """Give outcomes to those who wait for them."""

    def learn(self, size: int, seconds: float, weight: float) -> None:
        """Learn what a batch took."""

    def shrink(self, size: int, weight: float) -> None:
        """Learn that a batch was too large for the memory."""


class Device(Protocol):
    """Runs batches."""

    def execute(self, released: Released[Task], turn: Turn) -> None:
        """Run a batch and deliver an outcome for each of its tasks, and of those that join it."""

    def warm_up(self, loaded: Loaded) -> None:
        """Run another model on what ran last, so that its first batch is not slow; raises if it cannot run it."""
