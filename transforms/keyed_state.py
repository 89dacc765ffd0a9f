"""State and timers of one key, held in memory: to drive a stateful DoFn without a runner, bundle by bundle."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Bag:
    """A bag state; see Beam's ``BagRuntimeState``."""

    values: list[Any] = field(default_factory=list)

    def add(self, value: Any) -> None:
        """Add a value."""
        self.values.append(value)

    def read(self) -> list[Any]:
        """Return the values."""
        return list(self.values)

    def clear(self) -> None:
        """Remove all values."""
        self.values.clear()


@dataclass
class Cell:
    """A read-modify-write state."""

    value: Any = None

    def read(self) -> Any:
        """Return the value, or ``None``."""
        return self.value

    def write(self, value: Any) -> None:
        """Replace the value."""
        self.value = value


@dataclass
class Timer:
    """A timer; the driver fires it."""

    time: Any = None

    def set(self, time: Any) -> None:
        """Set the time."""
        self.time = time

    def clear(self) -> None:
        """Unset it."""
        self.time = None


class KeyedState:
    """What a runner keeps of one key: changes count when the bundle that made them has come to its end.

    Args:
        **parts: each a :class:`Bag`, a :class:`Cell` or a :class:`Timer`, by the name of the DoFn's parameter.
    """

    def __init__(self, **parts: Any) -> None:
        self.parts = parts

    def bundle(
        self, fn: Any, *calls: Callable[..., Iterable[Any] | None], committing: Callable[[Any], None] = lambda _: None
    ) -> list[Any]:
        """Run a bundle and return its outputs; when a call raises, nothing has changed.

        Args:
            fn: a DoFn that has been set up.
            *calls: each of its methods, with what is not state bound.
            committing: is given the parts before they count.
        """
        parts = copy.deepcopy(self.parts)
        outputs: list[Any] = []
        fn.start_bundle()
        for call in calls:
            outputs += call(**parts) or ()
        outputs += fn.finish_bundle() or ()
        committing(parts)
        self.parts = parts
        return outputs
