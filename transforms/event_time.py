"""The stateful DoFn of event time behind ``ContinuousBatch``: state as in ``stateful.py``, and one WATERMARK timer."""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator
from typing import Any

import apache_beam as beam
from apache_beam.transforms.timeutil import TimeDomain
from apache_beam.transforms.userstate import TimerSpec, on_timer
from apache_beam.utils.timestamp import Timestamp

from contbatch.transforms.batching import BatchFormer, Reason
from contbatch.transforms.buffer import HEAD, ROWS, BufferFn, Head, Settings, end_of
from contbatch.transforms.chunks import MILLI, timestamp_of
from contbatch.transforms.events import END_OF_TIME, MICROS
from contbatch.transforms.rows import Rows


class EventTimeBatchFn(BufferFn):
    """Batches that are a function of the elements and their timestamps alone, live or bounded.

    Args:
        settings: the policy, coders and clocks.
        bounded: whether one firing at the end takes all.
    """

    DUE = TimerSpec("due", TimeDomain.WATERMARK)

    def __init__(self, settings: Settings, bounded: bool) -> None:
        super().__init__(settings)
        self._bounded = bounded

    def process(
        self,
        element: tuple[bytes, bytes],
        timestamp: Timestamp = beam.DoFn.TimestampParam,
        window: Any = beam.DoFn.WindowParam,
        bag: Any = beam.DoFn.StateParam(ROWS),
        cell: Any = beam.DoFn.StateParam(HEAD),
        due: Any = beam.DoFn.TimerParam(DUE),
    ) -> Iterator[Any]:
        """Keep a chunk until the watermark says that its stretch of time is complete."""
        key, chunk = element
        head = self._head(key, window, cell)
        hold = min(head.hold, timestamp.micros)
        was_full, rows = self._is_full(head), None
        yield from self._add(key, window, head, bag, chunk, hold)
        if (room := self._room(head.backlog)) < 0:
            rows = self._read(bag)
            upto = sorted(rows.times)[max(len(rows.times) // 2, -room)] + 1
            rows = yield from self._form(key, window, rows, hold, upto, Reason.CAPACITY)
            self._write(head, bag, rows)
        elif not self._bounded and self._is_full(head) and not was_full:
            rows = self._read(bag)
        self._arm(head, window, due, rows)
        self._keep(head, cell)

    @on_timer(DUE)
    def on_due(
        self,
        key: bytes = beam.DoFn.KeyParam,
        window: Any = beam.DoFn.WindowParam,
        timestamp: Timestamp = beam.DoFn.TimestampParam,
        bag: Any = beam.DoFn.StateParam(ROWS),
        cell: Any = beam.DoFn.StateParam(HEAD),
        due: Any = beam.DoFn.TimerParam(DUE),
    ) -> Iterator[Any]:
        """Release the batches that are complete."""
        head = self._head(key, window, cell)
        last = self._bounded or timestamp.micros // MILLI >= window.max_timestamp().micros // MILLI
        upto, reason = (END_OF_TIME, end_of(window)) if last else (timestamp.micros, None)
        rows = yield from self._form(key, window, self._read(bag), head.hold, upto, reason)
        self._write(head, bag, rows)
        head.hold = END_OF_TIME
        self._arm(head, window, due, rows)
        self._keep(head, cell)

    def _form(
        self, key: bytes, window: Any, rows: Rows, hold: int, upto: int, last: Reason | None
    ) -> Generator[Any, None, Rows]:
        """Yield the batches that are complete before an event time, for ``last`` the open one too; returns the rest."""
        former: BatchFormer[int] = BatchFormer(self._settings.policy)
        order = self._in_order(rows)
        stretch = [at for at in order if rows.times[at] < upto]
        for at in stretch:
            weight = rows.weights[at] if rows.weights else 0.0
            if reason := former.reason_before(rows.times[at], weight):
                yield self._batch(key, window, rows.pick(former.take()), reason, hold)
            former.add(at, rows.times[at], weight)
        reason = former.reason_before(min(upto, window.max_timestamp().micros)) or last
        if former.elements and reason:
            yield self._batch(key, window, rows.pick(former.take()), reason, hold)
        return rows.pick(former.elements + order[len(stretch) :])

    def _in_order(self, rows: Rows) -> list[int]:
        """Return the indices by time, and by content where times are equal, so that the order of arrival is none."""
        if len(set(rows.times)) == len(rows.times):
            return sorted(range(len(rows.times)), key=rows.times.__getitem__)
        return sorted(range(len(rows.times)), key=lambda at: (rows.times[at], self._coder.encode([rows.elements[at]])))

    def _is_full(self, head: Head) -> bool:
        policy, backlog = self._settings.policy, head.backlog
        return backlog.size >= policy.max_size or backlog.weight >= (policy.max_weight or math.inf)

    def _arm(self, head: Head, window: Any, due: Any, rows: Rows | None) -> None:
        """Set the timer where a batch can be closed, rounded up so that a far step of the watermark is few firings.

        Args:
            head: the summary.
            window: the window.
            due: the timer.
            rows: what waits, if a batch may be full before its delay.
        """
        if not head.backlog.size:
            return
        time, delay, end = head.time, self._settings.policy.max_delay, window.max_timestamp().micros
        if not self._bounded:
            step = max(round(min(delay, 8.0) * MICROS / 8 / MILLI), 1) * MILLI
            time = end if delay == math.inf else time + round(delay * MICROS)
            if rows is not None:
                time = min(time, self._full_at(rows))
            # One microsecond past: a watermark of T promises that nothing before T is missing.
            time = -(-(time + 1) // step) * step
        time = min(time, end)
        if time < head.hold:
            head.hold = time
            due.set(timestamp_of(time))

    def _full_at(self, rows: Rows) -> int:
        """Return the event time by which the first batch is full, microseconds."""
        former: BatchFormer[int] = BatchFormer(self._settings.policy)
        for at in self._in_order(rows):
            weight = rows.weights[at] if rows.weights else 0.0
            if not former.reason_before(rows.times[at], weight):
                former.add(at, rows.times[at], weight)
                if not former.is_full:
                    continue
            return rows.times[at]
        return END_OF_TIME
