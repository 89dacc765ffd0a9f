"""The stateful DoFns behind ``ContinuousBatch``: chunks of rows wait in state, and leave it as micro-batches.

State per key and window: ``rows`` holds packed chunks; ``head`` sums them up, so that they are read only to be
released. State is read once per bundle.

Timers. Bounded input and event time use a WATERMARK timer alone (a REAL_TIME timer in the class forces DirectRunner
onto its slowest runner). Bounded, it stands at the earliest row, which holds the watermark there, and its firing
empties the buffer. In event time (``event_time.py``) it stands where the first batch can be closed. In real time a
REAL_TIME timer stands at the next decision, and a WATERMARK timer at the window's end takes what is left then.

Timestamps. A batch leaves at its earliest row's time, or later where the watermark was not held so far back: a value
behind the watermark would be lost in the next aggregation. Its rows' times are in it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import apache_beam as beam
from apache_beam.transforms.timeutil import TimeDomain
from apache_beam.transforms.userstate import TimerSpec, on_timer
from apache_beam.utils.timestamp import Timestamp

from contbatch.transforms.batching import Reason
from contbatch.transforms.buffer import HEAD, ROWS, BufferFn, Head, end_of
from contbatch.transforms.chunks import timestamp_of
from contbatch.transforms.events import END_OF_TIME, MICROS
from contbatch.transforms.rows import Rows, summary

_SKEW = 1e-3
"""Seconds by which a runner's clock may be ahead of the worker's: runners count in milliseconds."""
_IDLE = 0.3
"""Seconds from now at which an idle timer stands at the earliest."""


class BoundedBatchFn(BufferFn):
    """Input that ends: batches are full, and the last one takes what is left.

    Bundles are large here, so the rows themselves are read once per bundle: a second state cell would cost more.
    """

    LAST = TimerSpec("last", TimeDomain.WATERMARK)

    def process(
        self,
        element: tuple[bytes, bytes],
        window: Any = beam.DoFn.WindowParam,
        bag: Any = beam.DoFn.StateParam(ROWS),
        last: Any = beam.DoFn.TimerParam(LAST),
    ) -> Iterator[Any]:
        """Keep a chunk, and release full batches."""
        key, chunk = element
        head = self._head(key, window, bag)
        bag.add(chunk)
        head.add(summary(chunk))
        last.set(timestamp_of(head.time))
        if self._why(head.backlog):
            self._write(head, bag, (yield from self._release(key, window, self._read(bag), head.time)))

    @on_timer(LAST)
    def on_last(
        self,
        key: bytes = beam.DoFn.KeyParam,
        window: Any = beam.DoFn.WindowParam,
        bag: Any = beam.DoFn.StateParam(ROWS),
    ) -> Iterator[Any]:
        """Release what is left."""
        rows = self._read(bag)
        if rows.times:
            yield from self._release(key, window, rows, min(rows.times), drain=end_of(window))
            bag.clear()
        self._forget(key, window)

    def _load(self, bag: Any) -> Head:
        return Head.of(bag.read())


class RealTimeBatchFn(BufferFn):
    """Live input on the worker's clock."""

    DUE = TimerSpec("due", TimeDomain.REAL_TIME)
    LAST = TimerSpec("last", TimeDomain.WATERMARK)

    def start_bundle(self) -> None:
        """Start with no timer moved."""
        super().start_bundle()
        self._moved: set[Any] = set()

    def process(
        self,
        element: tuple[bytes, bytes],
        timestamp: Timestamp = beam.DoFn.TimestampParam,
        window: Any = beam.DoFn.WindowParam,
        bag: Any = beam.DoFn.StateParam(ROWS),
        cell: Any = beam.DoFn.StateParam(HEAD),
        due: Any = beam.DoFn.TimerParam(DUE),
        last: Any = beam.DoFn.TimerParam(LAST),
    ) -> Iterator[Any]:
        """Keep a chunk, release what is due, and set the timer for the next decision."""
        key, chunk = element
        head = self._head(key, window, cell)
        hold = min(head.hold, timestamp.micros)
        if not head.backlog.size:
            last.set(window.max_timestamp())
        yield from self._add(key, window, head, bag, chunk, hold)
        if self._why(head.backlog):
            rows = self._read(bag)
            self._write(head, bag, (yield from self._release(key, window, rows, hold)))
        self._arm(head, timestamp.micros, due, (key, window))
        self._leave(head, cell, last)

    @on_timer(DUE)
    def on_due(
        self,
        key: bytes = beam.DoFn.KeyParam,
        window: Any = beam.DoFn.WindowParam,
        timestamp: Timestamp = beam.DoFn.TimestampParam,
        bag: Any = beam.DoFn.StateParam(ROWS),
        cell: Any = beam.DoFn.StateParam(HEAD),
        last: Any = beam.DoFn.TimerParam(LAST),
    ) -> Iterator[Any]:
        """Release all that waits; a firing that has been overtaken (Prism has such) does nothing.

        All, since a timer that is set here would hold the watermark at the wall clock.
        """
        head = self._head(key, window, cell)
        # The firing's own timestamp is where the timer stood, whatever the worker's clock says (on Prism it is not).
        now = max(self._settings.clock(), timestamp.micros / MICROS) + _SKEW
        if now < head.armed:
            return
        reason = self._rule.due(head.backlog, now) or Reason.DELAY
        yield from self._empty(key, window, head, bag, reason)
        self._leave(head, cell, last)

    @on_timer(LAST)
    def on_last(
        self,
        key: bytes = beam.DoFn.KeyParam,
        window: Any = beam.DoFn.WindowParam,
        bag: Any = beam.DoFn.StateParam(ROWS),
        cell: Any = beam.DoFn.StateParam(HEAD),
        due: Any = beam.DoFn.TimerParam(DUE),
    ) -> Iterator[Any]:
        """Release all that waits, as the window is complete, and disarm the other timer: it would spin on Flink."""
        head = self._head(key, window, cell)
        due.clear()
        if head.backlog.size:
            yield from self._empty(key, window, head, bag, end_of(window))
        self._keep(head, cell)

    def _empty(self, key: bytes, window: Any, head: Head, bag: Any, reason: Reason) -> Iterator[Any]:
        yield from self._release(key, window, self._read(bag), head.hold, drain=reason)
        self._write(head, bag, Rows())
        head.armed, head.hold = math.inf, END_OF_TIME

    def _leave(self, head: Head, cell: Any, last: Any) -> None:
        """Keep the summary, and of an empty buffer not even the window's timer.

        On Prism that one stays: a timer that is cleared there fires at once.
        """
        self._keep(head, cell)
        if not head.backlog.size and not self._settings.idle_timer:
            last.clear()

    def _arm(self, head: Head, time: int, due: Any, place: Any) -> None:
        """Set the timer where the next decision is, if that has changed, or if an older row needs its hold."""
        now = self._settings.clock()
        if not head.backlog.size:
            if head.armed < math.inf:
                due.clear()
            head.armed, head.hold = math.inf, END_OF_TIME
            self._moved.discard(place)
            return
        target = self._rule.next_time(head.backlog, now)
        if self._settings.idle_timer:
            if place in self._moved and head.armed < math.inf:
                return
            target = max(target, now + _IDLE)
        if target == head.armed and time >= head.hold:
            return
        if target < math.inf:
            self._moved.add(place)
            due.set(Timestamp(micros=math.ceil(target * MICROS)))
            head.armed, head.hold = target, time
        elif head.armed < math.inf:
            due.clear()
            head.armed, head.hold = math.inf, END_OF_TIME
