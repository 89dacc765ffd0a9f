"""When a micro-batch is released."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any


class Reason(StrEnum):
    """Why a micro-batch was released."""

    SIZE = "size"
    """It held ``max_size`` elements, or as many as are worth waiting for; with ``length_fn``, the pool was full."""
    WEIGHT = "weight"
    """One element more would have exceeded ``max_weight``."""
    DELAY = "delay"
    """Its first element had waited ``max_delay``."""
    DEADLINE = "deadline"
    """More elements, or more waiting, would have missed the deadline of the most urgent one."""
    IDLE_DEVICE = "idle_device"
    """The device was free, and no more elements were there."""
    CAPACITY = "capacity"
    """The buffer was full, and ``overflow`` is to block."""
    WINDOW_END = "window_end"
    """The window was complete."""
    DRAIN = "drain"
    """The input was complete."""


class Overflow(StrEnum):
    """What happens when more would wait than the policy's capacity."""

    BLOCK = "block"
    """Nothing more is taken before something has run."""
    SHED = "shed"
    """What comes on top is given up, with its reason."""


class TimeDomain(StrEnum):
    """The clock of ``max_delay``."""

    REAL_TIME = "real_time"
    """The worker's clock, from an element's arrival."""
    EVENT_TIME = "event_time"
    """The elements' own timestamps: batches are the same in every run, live or replayed."""


_REAL_TIME_ONLY = (
    "latency_slo",
    "deadline_fn",
    "priority_fn",
    "length_fn",
    "allowed_sizes",
    "target_overhead",
    "max_seconds",
    "capacity_seconds",
)


@dataclass(frozen=True)
class BatchPolicy:
    """Bounds of a micro-batch; the first bound that is reached releases it.

    Without ``latency_slo``, ``deadline_fn``, ``priority_fn`` and ``length_fn`` elements leave in the order in which
    they came (in event time: in the order of their timestamps).

    Attributes:
        max_size: most elements in a batch, at least 1.
        max_delay: longest wait of a batch's first element, in seconds, at least 0; ``math.inf`` to wait until the
            batch is full or the window ends. With 0, the elements of one instant still share a batch.
        latency_slo: seconds from an element's arrival to its answer, above 0, or ``None`` for no such goal. The
            deadline of elements that have none of their own.
        deadline_fn: element to its deadline, in seconds on the worker's clock (since the epoch).
        priority_fn: element to the seconds by which it is treated as more urgent than its deadline says, or without
            one than its arrival says; negative for less urgent. So nothing waits for ever.
        max_weight: most weight in a batch, above 0. An element that is heavier runs alone.
        weight_fn: element to its weight, at least 0: bytes, tokens, candidates. A batch weighs their sum.
        length_fn: element to its length, at least 0, in units of work. A batch takes the elements of similar length,
            and weighs its size times its longest, as in a padded tensor.
        pool_size: with ``length_fn``: elements among which a batch is chosen; ``None`` for eight batches, but
            not above 2,048 or one batch: all of its batches are looked at.
        allowed_sizes: the only sizes that the device runs, as where shapes are compiled: a batch is padded up to one
            of them, or leaves a remainder, whichever costs less per element. The largest replaces ``max_size``.
        min_size: fewest elements to which a goal of time cuts a batch.
        target_overhead: share of a batch's time, above 0 and below 1, that its fixed part may take: a batch of that
            size is not made to wait for more. ``None`` to fill batches.
        max_seconds: most seconds that a batch may run, by what batches have cost so far; ``None`` for any.
        capacity: most elements waiting, at least ``max_size`` and ``pool_size``. ``None`` for 100,000 or what those
            need, whichever is more.
        capacity_seconds: most seconds of work waiting, by what batches have cost so far; ``None`` for no such bound.
        overflow: what happens beyond them.
        time_domain: the clock of ``max_delay``. Event time knows only sizes, weights and ``max_delay``.

    Raises:
        ValueError: a bound is outside its range, or two of them exclude each other.
    """

    max_size: int = 256
    max_delay: float = 1.0
    latency_slo: float | None = None
    deadline_fn: Callable[[Any], float] | None = None
    priority_fn: Callable[[Any], float] | None = None
    max_weight: float | None = None
    weight_fn: Callable[[Any], float] | None = None
    length_fn: Callable[[Any], float] | None = None
    pool_size: int | None = None
    allowed_sizes: tuple[int, ...] = ()
    min_size: int = 1
    target_overhead: float | None = None
    max_seconds: float | None = None
    capacity: int | None = None
    capacity_seconds: float | None = None
    overflow: Overflow = Overflow.BLOCK
    time_domain: TimeDomain = TimeDomain.REAL_TIME

    def __post_init__(self) -> None:
        if self.allowed_sizes:
            sizes = tuple(sorted(self.allowed_sizes))
            object.__setattr__(self, "allowed_sizes", sizes)
            object.__setattr__(self, "max_size", sizes[-1])
            _whole("allowed_sizes", *sizes)
        _whole("max_size", self.max_size)
        _whole("min_size", self.min_size)
        if self.min_size > self.max_size:
            raise ValueError(f"min_size is {self.min_size}; give at most max_size, {self.max_size}")
        if not self.max_delay >= 0:
            raise ValueError(f"max_delay is {self.max_delay!r}; give seconds, 0 or more, or math.inf")
        for name in ("latency_slo", "max_weight", "max_seconds", "capacity_seconds"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value > 0):
                raise ValueError(f"{name} is {value!r}; give a finite number above 0, or None")
        if self.target_overhead is not None and not 0 < self.target_overhead < 1:
            raise ValueError(f"target_overhead is {self.target_overhead!r}; give a share above 0 and below 1, or None")
        object.__setattr__(self, "overflow", _member("overflow", Overflow, self.overflow))
        object.__setattr__(self, "time_domain", _member("time_domain", TimeDomain, self.time_domain))
        self._check_together()

    def _check_together(self) -> None:
        if self.weight_fn and self.length_fn:
            raise ValueError("both weight_fn and length_fn are given; with length_fn a batch weighs its padded length")
        if self.max_weight is not None and not (self.weight_fn or self.length_fn):
            raise ValueError("max_weight needs the weight of an element: give weight_fn or length_fn")
        if self.pool_size is not None and (self.length_fn is None or self.pool_size < self.max_size):
            raise ValueError(f"pool_size is {self.pool_size!r}; give it with length_fn, and at least {self.max_size}")
        needed = max(self.max_size, self.pool)
        if self.capacity is not None and self.capacity < needed:
            raise ValueError(f"capacity is {self.capacity!r}; give at least what a batch is taken from, {needed}")
        if self.time_domain is TimeDomain.EVENT_TIME:
            given = [name for name in _REAL_TIME_ONLY if getattr(self, name)]
            if given:
                raise ValueError(f"{given[0]} is given with time_domain event_time, which knows no costs; drop one")

    def unhurried(self) -> BatchPolicy:
        """Return the policy for input on which nobody waits: a goal of latency bounds what a batch takes instead."""
        seconds = min((value for value in (self.max_seconds, self.latency_slo) if value is not None), default=None)
        calm = replace(
            self,
            latency_slo=None,
            deadline_fn=None,
            max_seconds=seconds,
            capacity_seconds=None,
            overflow=Overflow.BLOCK,
        )
        return calm if self.time_domain is TimeDomain.EVENT_TIME else replace(calm, max_delay=math.inf)

    def deadline_of(self, element: Any, arrival: float) -> float:
        """Return the deadline of an element: its own, else ``latency_slo`` from its arrival, else infinity.

        Args:
            element: which one.
            arrival: when it came, in seconds since the epoch, as the deadline is.

        Raises:
            ValueError: that is not a number.
        """
        own = _number("deadline_fn", self.deadline_fn(element)) if self.deadline_fn else math.inf
        return own if own < math.inf else arrival + (self.latency_slo or math.inf)

    def weight_of(self, element: Any) -> float:
        """Return the weight or length of an element, or 0 if it has none.

        Raises:
            ValueError: it is not a number from 0 up.
        """
        if self.weight_fn:
            return _number("weight_fn", self.weight_fn(element), 0.0, _MOST)
        return _number("length_fn", self.length_fn(element), 0.0, _MOST) if self.length_fn else 0.0

    def priority_of(self, element: Any) -> float:
        """Return the priority of an element, in seconds, or 0 if it has none.

        Raises:
            ValueError: it is not a finite number.
        """
        return _number("priority_fn", self.priority_fn(element), -_MOST, _MOST) if self.priority_fn else 0.0

    @property
    def asks_costs(self) -> bool:
        """Whether any bound depends on what batches cost."""
        asking = ("latency_slo", "deadline_fn", "length_fn", "allowed_sizes", "target_overhead", "max_seconds")
        return any(getattr(self, name) for name in (*asking, "capacity_seconds"))

    @property
    def pool(self) -> int:
        """Elements among which a batch is chosen by length; 0 without ``length_fn``."""
        return (self.pool_size or max(self.max_size, min(8 * self.max_size, 2_048))) if self.length_fn else 0

    @property
    def most_waiting(self) -> int:
        """The capacity in elements."""
        return self.capacity or max(100_000, self.max_size, self.pool)


_MOST = sys.float_info.max


def _number(name: str, value: float, least: float = -math.inf, most: float = math.inf) -> float:
    value = float(value)
    if not least <= value <= most:  # nor a NaN
        raise ValueError(f"{name} returned {value}; it has to return a number from {least:g} to {most:g}")
    return value


def _whole(name: str, *values: int) -> None:
    for value in values:
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} is {value!r}; give a whole number of elements, 1 or more")


def _member(name: str, kind: type[StrEnum], value: str) -> StrEnum:
    try:
        return kind(value)
    except ValueError:
        raise ValueError(f"{name} is {value!r}; give {' or '.join(kind)}") from None
