"""When a micro-batch is released."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum


class Reason(StrEnum):
    """Why a micro-batch was released."""

    SIZE = "size"
    """It held ``max_size`` elements."""
    DELAY = "delay"
    """Its first element had waited ``max_delay``."""
    DEADLINE = "deadline"
    """More elements would have missed the deadline of the most urgent one."""
    IDLE_DEVICE = "idle_device"
    """The device was free, and no more elements were there."""


@dataclass(frozen=True)
class BatchPolicy:
    """Bounds of a micro-batch; the first bound that is reached releases it.

    Attributes:
        max_size: most elements in a batch, at least 1.
        max_delay: longest wait of a batch's first element, in seconds, at least 0. With 0, the elements of
            one instant still share a batch.
        latency_slo: seconds from an element's arrival to its answer, above 0, or ``None`` for no such goal. The
            deadline of elements that have none of their own.
        capacity: most elements waiting, at least ``max_size``; what comes on top is turned away. ``None`` for 100,000
            or ``max_size``, whichever is more.

    Raises:
        ValueError: a bound is outside its range.
    """

    max_size: int = 256
    max_delay: float = 1.0
    latency_slo: float | None = None
    capacity: int | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.max_size, int) or self.max_size < 1:
            raise ValueError(f"max_size is {self.max_size!r}; give a whole number of elements, 1 or more")
        if not (math.isfinite(self.max_delay) and self.max_delay >= 0):
            raise ValueError(f"max_delay is {self.max_delay!r}; give a finite number of seconds, 0 or more")
        if self.latency_slo is not None and not (math.isfinite(self.latency_slo) and self.latency_slo > 0):
            raise ValueError(f"latency_slo is {self.latency_slo!r}; give a finite number of seconds above 0, or None")
        if self.capacity is not None and self.capacity < self.max_size:
            raise ValueError(f"capacity is {self.capacity!r}; give at least max_size, {self.max_size}")
