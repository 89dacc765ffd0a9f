"""One key and window of a stateful DoFn, on a runner that does what real ones have been seen to do.

It counts timers in milliseconds, holds the output watermark at a WATERMARK timer's time and at the timestamp of the
element that set a REAL_TIME timer, and fires a timer twice or after it was cleared if a test says so.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import apache_beam as beam
from apache_beam import coders
from apache_beam.transforms.timeutil import TimeDomain
from apache_beam.transforms.window import GlobalWindow
from apache_beam.utils.shared import Shared
from apache_beam.utils.timestamp import Timestamp

from contbatch.transforms import BatchPolicy
from contbatch.transforms.buffer import BufferFn, Head, Settings
from contbatch.transforms.events import END_OF_TIME, MICROS
from contbatch.transforms.microbatch import ElementsCoder, MicroBatch
from contbatch.transforms.rows import Rows, pack
from contbatch.transforms.testing import ManualClock

CODER = coders.VarIntCoder()


class Bag(list[bytes]):
    """State of many values."""

    def read(self) -> list[bytes]:
        return list(self)

    def add(self, value: bytes) -> None:
        self.append(value)


class Cell:
    """State of one value."""

    def __init__(self) -> None:
        self.value: bytes | None = None

    def read(self) -> bytes | None:
        return self.value

    def write(self, value: bytes) -> None:
        self.value = value

    def clear(self) -> None:
        self.value = None


class Timer:
    """A timer: where it stands and where it holds the watermark, in microseconds, or nowhere."""

    def __init__(self, real_time: bool, element: Callable[[], int]) -> None:
        self.real_time = real_time
        self.time, self.hold = END_OF_TIME, END_OF_TIME
        self._element = element
        self.sets: list[int] = []

    def set(self, time: Timestamp) -> None:
        self.time = time.micros // 1_000 * 1_000
        self.hold = self._element() if self.real_time else self.time
        self.sets.append(self.time)

    def clear(self) -> None:
        self.time, self.hold = END_OF_TIME, END_OF_TIME


class Place:
    """The runner's view of one key and window.

    Args:
        make: from settings to the DoFn.
        policy: of the batches.
        window: the window.
        idle_timer: as on Prism.
    """

    def __init__(
        self,
        make: Callable[[Settings], BufferFn],
        policy: BatchPolicy,
        window: Any = None,
        idle_timer: bool = False,
    ) -> None:
        self.policy = policy
        self.clock = ManualClock(1_000.0)
        self.window = window or GlobalWindow()
        self.batches: list[MicroBatch[int]] = []
        self.shed: list[MicroBatch[int]] = []
        self.left_at: list[float] = []
        self.seconds: Callable[[int], float] = lambda _: 0.0  # what runs a batch
        self.pushed: list[int] = []
        self.watermark = self.output = -(10**12)
        self.firings = 0
        self._settings = Settings(
            policy, False, coders.BytesCoder(), CODER, Shared(), None, self.clock, self.clock, idle_timer
        )
        self._make = make
        self._element = 0
        self.bag, self.cell = Bag(), Cell()
        self.restart()
        self.timers = {
            name: Timer(spec.time_domain == TimeDomain.REAL_TIME, lambda: self._element)
            for name, spec in (("due", getattr(self.fn, "DUE", None)), ("last", getattr(self.fn, "LAST", None)))
            if spec
        }

    def restart(self) -> None:
        """Go on with a new worker and what is in state."""
        self.fn = self._make(self._settings)
        self.fn.setup()
        self.fn.start_bundle()

    def change(self, policy: BatchPolicy) -> None:
        """Go on under another policy, as an update of the job does."""
        self.policy = policy
        self._settings = Settings(
            policy, False, coders.BytesCoder(), CODER, Shared(), None, self.clock, self.clock, False
        )
        self.restart()

    def new_bundle(self) -> None:
        """End the bundle and begin another."""
        self.fn.finish_bundle()
        self.fn.start_bundle()

    @property
    def waiting(self) -> int:
        """Elements in state."""
        return Head.of(self.bag).backlog.size

    def push(
        self,
        times: Iterable[float],
        deadlines: Iterable[float] = (),
        weights: Iterable[float] = (),
        priorities: Iterable[float] = (),
    ) -> None:
        """Bring a chunk of elements of these event times (seconds), which are numbered."""
        micros = [round(time * MICROS) for time in times]
        numbers = list(range(len(self.pushed), len(self.pushed) + len(micros)))
        self.pushed += numbers
        rows = Rows(numbers, micros, [self.clock()] * len(micros), list(deadlines), list(weights), list(priorities))
        self._element = min(micros)
        self._call(
            self.fn.process,
            element=(b"", pack(rows, ElementsCoder(CODER))),
            timestamp=Timestamp(micros=self._element),
        )
        self._move()

    def advance(self, seconds: float) -> None:
        """Let real time pass, and what is due by it fire."""
        self.clock.advance(seconds)
        timer = self.timers.get("due")
        if timer and timer.real_time and timer.time <= self.clock() * MICROS:
            self.fire("due", timer.time)

    def advance_watermark(self, seconds: float) -> None:
        """Move the watermark, and fire what it passes, in order."""
        self.watermark = max(self.watermark, round(seconds * MICROS))
        while True:
            ready = [
                (timer.time, name)
                for name, timer in self.timers.items()
                if not timer.real_time and timer.time <= self.watermark and timer.time < END_OF_TIME
            ]
            if not ready:
                break
            time, name = min(ready)
            self._move(time)
            self.fire(name, time)
        self._move()

    def finish(self) -> None:
        """End the input."""
        self.advance_watermark(END_OF_TIME / MICROS)

    def fire(self, name: str, time: int) -> None:
        """Fire a timer, whether or not it stands there."""
        self.firings += 1
        assert self.firings < 1_000, "a timer fires for ever"
        timer = self.timers[name]
        self._element = timer.hold if timer.real_time else time
        if timer.time == time:
            timer.clear()
        self._call(getattr(self.fn, f"on_{name}"), timestamp=Timestamp(micros=time))
        self._move()

    def _move(self, most: int = END_OF_TIME) -> None:
        """Move the output watermark on to where nothing holds it."""
        self.output = max(self.output, min(self.watermark, most, *(timer.hold for timer in self.timers.values())))

    def _call(self, method: Callable[..., Any], **given: Any) -> None:
        """Call a method with those parameters that it has, and keep and check what it yields."""
        offered = {"key": b"", "window": self.window, "bag": self.bag, "cell": self.cell, **self.timers, **given}
        names = method.__code__.co_varnames[1 : method.__code__.co_argcount]
        for out in method(**{name: offered[name] for name in names}):
            is_shed = isinstance(out, beam.pvalue.TaggedOutput)
            value = out.value if is_shed else out
            batch, time = value.value, value.timestamp.micros
            assert value.windows == (self.window,)
            assert time <= self.window.max_timestamp().micros
            assert time >= min(self.output, self._element), "a batch is behind the watermark"
            assert len(batch) > 0
            self.left_at.append(time / MICROS)
            if not is_shed:
                self.clock.advance(self.seconds(len(batch)))
            (self.shed if is_shed else self.batches).append(batch)

    def out(self) -> Counter[int]:
        """Return how often each element came out."""
        return Counter(number for batch in self.batches + self.shed for number in batch)
