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


@dataclass(frozen=True)
class BatchPolicy:
    """Bounds of a micro-batch; the first bound that is reached releases it.

    Attributes:
        max_size: most elements in a batch, at least 1.
        max_delay: longest wait of a batch's first element, in seconds, at least 0. With 0, the elements of
            one instant still share a batch.

    Raises:
        ValueError: a bound is outside its range.
    """

    max_size: int = 256
    max_delay: float = 1.0

    def __post_init__(self) -> None:
        if not isinstance(self.max_size, int) or self.max_size < 1:
            raise ValueError(f"max_size is {self.max_size!r}; give a whole number of elements, 1 or more")
        if not (math.isfinite(self.max_delay) and self.max_delay >= 0):
            raise ValueError(f"max_delay is {self.max_delay!r}; give a finite number of seconds, 0 or more")
