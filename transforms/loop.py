"""The DoFns behind ``PredictThenLearn`` and ``OnlineUpdate``: events in state, and the loop of their model.

They only translate. State per model: ``buffer`` holds chunks not yet processed, ``log`` belongs to the loop's journal,
``head`` says what the two mean; all are read once per bundle or firing.

Timers: only WATERMARK ones (a REAL_TIME timer in the class would force DirectRunner onto its slowest runner). On
bounded input one stands at the oldest buffered event, so that nothing leaves before its hold, and its firing drains
everything; another one, at the end of time, could fire first and stamp every output with the end of time. Live, it
stands where the oldest buffered event's batch can be closed, rounded up to ``stride``; what happens at a firing leaves
with the firing's timestamp and carries its event time in the value.
"""

from __future__ import annotations

import json
import logging
import math
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import apache_beam as beam
from apache_beam.coders import BytesCoder
from apache_beam.metrics import Metrics
from apache_beam.transforms.timeutil import TimeDomain
from apache_beam.transforms.userstate import BagStateSpec, ReadModifyWriteStateSpec, TimerSpec, on_timer
from apache_beam.utils.timestamp import Timestamp

from contbatch.transforms import progress
from contbatch.transforms.chunks import END, at, timestamp_of
from contbatch.transforms.events import END_OF_TIME, MICROS, Event, extent, pack, unpack
from contbatch.transforms.learning import ModelStore, Order, PrequentialConfig, Version
from contbatch.transforms.learning.journal import Journal, Position
from contbatch.transforms.learning.prequential import PrequentialLoop, Restored, Skewed
from contbatch.transforms.records import Failed, Learned, Prediction, Published

_LOG = logging.getLogger(__name__)


_THIN_EVERY = 32
"""Versions after which old ones are thinned out."""


@dataclass(frozen=True)
class LoopSettings:
    """What the DoFns have to know.

    Attributes:
        config: of every loop.
        store: root of the model store.
        stride: microseconds to which firings are rounded up.
        max_buffer: most events buffered per model.
        max_wait: seconds for which a watermark may stand.
        snapshot_every: events in a log.
        poll: seconds between two looks for a restore that an operator asks for.
        transform: names the transform.
        clock: seconds.
    """

    config: PrequentialConfig[Any]
    store: str
    stride: int
    max_buffer: int
    max_wait: float | None
    snapshot_every: int
    poll: float
    transform: str
    clock: Callable[[], float]


@dataclass
class _Head:
    """The state cell that says what the other state means.

    Attributes:
        position: where the model's loop stands in its journal.
        next_time: event time after which the loop has something to do even if no event comes.
        buffered: events in the buffer.
        oldest: event time of the oldest of them.
        since: when (real time) the buffer last became non-empty.
    """

    position: Position = field(default_factory=Position)
    next_time: int | None = None
    buffered: int = 0
    oldest: int = END_OF_TIME
    since: float = 0.0

    @classmethod
    def load(cls, content: bytes | None) -> _Head:
        if not content:
            return cls()
        values = json.loads(content)
        return cls(Position(**values.pop("position")), **values)

    def dump(self) -> bytes:
        return json.dumps(asdict(self)).encode()


class EventTimeFn(beam.DoFn):
    """Events in the order of their time, as the watermark releases them."""

    BUFFER = BagStateSpec("buffer", BytesCoder())
    LOG = BagStateSpec("log", BytesCoder())
    HEAD = ReadModifyWriteStateSpec("head", BytesCoder())
    DUE = TimerSpec("due", TimeDomain.WATERMARK)
    LAST = TimerSpec("last", TimeDomain.WATERMARK)

    def __init__(self, settings: LoopSettings, bounded: bool) -> None:
        self._settings = settings
        self._bounded = bounded
        self._forced = Metrics.counter("contbatch", "forced")
        self._rebuilt = Metrics.counter("contbatch", "rebuilt")
        self._restored = Metrics.counter("contbatch", "restored")
        self._waiting = Metrics.gauge("contbatch", "waiting")

    def setup(self) -> None:
        """Open the store."""
        settings = self._settings
        self._store = ModelStore(settings.store)
        self._journal = Journal(settings.config, self._store, settings.snapshot_every, settings.transform)
        self._looked: dict[str, float] = {}
        self._published = 0

    def start_bundle(self) -> None:
        """Start with no state read."""
        self._heads: dict[str, _Head] = {}

    def process(
        self,
        element: tuple[str, bytes],
        timestamp: Timestamp = beam.DoFn.TimestampParam,
        buffer: Any = beam.DoFn.StateParam(BUFFER),
        log: Any = beam.DoFn.StateParam(LOG),
        head_cell: Any = beam.DoFn.StateParam(HEAD),
        due: Any = beam.DoFn.TimerParam(DUE),
        last: Any = beam.DoFn.TimerParam(LAST),
    ) -> Iterator[Any]:
        """Keep a chunk, and set the timer."""
        model, chunk = element
        settings = self._settings
        head = self._head(model, head_cell)
        now = settings.clock()
        if head.buffered == 0:
            head.since = now
        count, oldest = extent(chunk)
        buffer.add(chunk)
        head.buffered += count
        head.oldest = min(head.oldest, oldest)
        stuck = not self._bounded and settings.max_wait is not None and now - head.since > settings.max_wait
        if head.buffered > settings.max_buffer or stuck:
            upto = self._force(model, buffer, "max_wait" if stuck else "max_buffer")
            yield from self._run(model, head, upto, timestamp, buffer, log, due)
            head.since = now
        else:
            self._arm(head, due)
        if not self._bounded:
            last.set(END)
        head_cell.write(head.dump())

    @on_timer(DUE)
    def on_due(
        self,
        model: str = beam.DoFn.KeyParam,
        timestamp: Timestamp = beam.DoFn.TimestampParam,
        buffer: Any = beam.DoFn.StateParam(BUFFER),
        log: Any = beam.DoFn.StateParam(LOG),
        head_cell: Any = beam.DoFn.StateParam(HEAD),
        due: Any = beam.DoFn.TimerParam(DUE),
    ) -> Iterator[Any]:
        """Process what is complete."""
        upto = END_OF_TIME if self._bounded else timestamp.micros
        yield from self._fire(model, upto, timestamp, buffer, log, head_cell, due)

    @on_timer(LAST)
    def on_last(
        self,
        model: str = beam.DoFn.KeyParam,
        timestamp: Timestamp = beam.DoFn.TimestampParam,
        buffer: Any = beam.DoFn.StateParam(BUFFER),
        log: Any = beam.DoFn.StateParam(LOG),
        head_cell: Any = beam.DoFn.StateParam(HEAD),
        due: Any = beam.DoFn.TimerParam(DUE),
    ) -> Iterator[Any]:
        """End of input: whatever is left has its turn, and the last weights are published."""
        yield from self._fire(model, END_OF_TIME, timestamp, buffer, log, head_cell, due)

    def _fire(
        self, model: str, upto: int, timestamp: Timestamp, buffer: Any, log: Any, head_cell: Any, due: Any
    ) -> Iterator[Any]:
        head = self._head(model, head_cell)
        yield from self._run(model, head, upto, timestamp, buffer, log, due)
        head_cell.write(head.dump())

    def _run(
        self, model: str, head: _Head, upto: int, timestamp: Timestamp, buffer: Any, log: Any, due: Any
    ) -> Iterator[Any]:
        """Process the stretch of event time before ``upto`` and record that it is done."""
        events = sorted(_events(buffer))
        stretch = [event for event in events if event.time < upto]
        rest = events[len(stretch) :]
        buffer.clear()
        if rest:
            buffer.add(pack(rest))
        head.buffered, head.oldest = len(rest), min((event.time for event in rest), default=END_OF_TIME)
        yield from self._advance(model, head, stretch, upto, timestamp.micros, log)
        self._arm(head, due)

    def _advance(
        self,
        model: str,
        head: _Head,
        events: Sequence[Event],
        upto: int,
        hold: int,
        log: Any,
        is_complete: bool = True,
    ) -> Iterator[Any]:
        """Let the model's loop process sorted events, and record that it has."""
        rebuilt = self._journal.rebuilt
        loop = self._journal.open(model, head.position, (entry for entry in log.read()))
        rebuilt = self._journal.rebuilt - rebuilt
        self._rebuilt.inc(rebuilt)
        if rebuilt or not head.position.chain:
            self._supersede(model, head, loop, log)
        yield from self._restore(model, head, loop, hold, log)
        for output in loop.advance(events, upto, is_complete):
            yield from self._emit(model, output, hold)
        self._waiting.set(loop.waiting)
        head.next_time = loop.next_time
        head.position, entry = self._journal.record(model, head.position, loop, events, upto, is_complete)
        if entry is None:
            log.clear()
        else:
            log.add(entry)

    def _supersede(self, model: str, head: _Head, loop: PrequentialLoop[Any], log: Any) -> None:
        """Begin another epoch where the store has versions of a line that was lost, with what it learned, in a failure.

        In the order of arrival another cut of the same events comes to fewer versions or more, and the lost ones would
        go on serving. In the order of event time the same versions come again.
        """
        if self._settings.config.order is Order.ARRIVAL:
            newest = next(self._store.newest(model), None)
            if newest is not None and loop.is_behind(newest.version):
                head.position, entry = self._journal.branch(model, head.position, loop, newest.version)
                log.add(entry)

    def _restore(self, model: str, head: _Head, loop: PrequentialLoop[Any], hold: int, log: Any) -> Iterator[Any]:
        """Do what an operator has asked for since: the last restore counts."""
        now = self._settings.clock()
        if now - self._looked.get(model, -math.inf) < self._settings.poll:
            return
        self._looked[model] = now
        asked = [restore for restore in self._store.restores(model) if restore.ended >= loop.epoch]
        if asked:
            head.position, entry, version = self._journal.restore(model, head.position, loop, asked[-1])
            log.add(entry)
            self._restored.inc()
            yield from self._emit(model, version, hold)

    def _force(self, model: str, buffer: Any, why: str) -> int:
        """Return the event time up to which the older half of the buffer lies, and say what forcing it means."""
        times = sorted(event.time for event in _events(buffer))
        upto = max(times[len(times) // 2], times[0] + 1)
        forced = bisect_left(times, upto)
        self._forced.inc(forced)
        _LOG.warning(
            "model %r: %d events processed before the watermark reached them (%s); what is older and still to come "
            "will be late, so the outputs now depend on the order of arrival",
            model,
            forced,
            why,
        )
        return upto

    def _arm(self, head: _Head, due: Any) -> None:
        """Set the timer for the buffer and, live, for what the loop itself waits for."""
        if self._bounded:
            if head.buffered:
                due.set(timestamp_of(head.oldest))
            return
        delay = round(self._settings.config.policy.max_delay * MICROS)
        times = [head.oldest + delay] if head.buffered else []
        if head.next_time is not None:
            times.append(head.next_time)
        if times:
            # One microsecond past: a watermark of T promises that nothing before T is missing.
            stride = self._settings.stride
            due.set(timestamp_of(-(-(min(times) + 1) // stride) * stride))

    def _emit(self, model: str, output: Any, hold: int) -> Iterator[Any]:
        if isinstance(output, Prediction):
            progress.add(1)
            yield at(output, max(output.time, hold))
        elif isinstance(output, Learned | Failed):
            tag = "learned" if isinstance(output, Learned) else "failed"
            yield beam.pvalue.TaggedOutput(tag, at(output, max(output.time, hold)))
        elif isinstance(output, Restored):
            _LOG.warning("model %r: version %s serves again: %s", model, output.restore.target, output.why)
            self._restored.inc()
            self._store.restore(output.restore.target, output.why, model, output.restore.ended)
        elif isinstance(output, Skewed):
            _LOG.error(
                "model %r: features are not learned as they were served (%d of %d rows); was a codec or the learner "
                "changed while requests were waiting for feedback?",
                model,
                output.skewed,
                output.rows,
            )
        else:
            published = self._publish(model, output)
            yield beam.pvalue.TaggedOutput("published", at(published, max(published.time, hold)))

    def _publish(self, model: str, version: Version) -> Published:
        config = self._settings.config
        words = {"learner": repr(config.learner), "policy": repr(config.policy), "gate": repr(config.gate)}
        manifest = self._store.publish(version.arrays, model=model, config=words, **version.about)
        self._published += 1
        if self._published % _THIN_EVERY == 0:
            self._store.thin(model)
        return Published(manifest.version, manifest.digest, manifest.examples, manifest.time, model)

    def _head(self, model: str, cell: Any) -> _Head:
        """Return the state cell's content, read once per bundle."""
        if model not in self._heads:
            self._heads[model] = _Head.load(cell.read())
        return self._heads[model]


class ArrivalFn(EventTimeFn):
    """Events as they come."""

    def process(  # type: ignore[override]
        self,
        element: tuple[str, bytes],
        timestamp: Timestamp = beam.DoFn.TimestampParam,
        log: Any = beam.DoFn.StateParam(EventTimeFn.LOG),
        head_cell: Any = beam.DoFn.StateParam(EventTimeFn.HEAD),
        due: Any = beam.DoFn.TimerParam(EventTimeFn.DUE),
        last: Any = beam.DoFn.TimerParam(EventTimeFn.LAST),
    ) -> Iterator[Any]:
        """Process a chunk; what it leaves of a micro-batch does not wait for more."""
        model, chunk = element
        events, head = sorted(unpack(chunk)), self._head(model, head_cell)
        upto = events[-1].time + round(self._settings.config.policy.max_delay * MICROS) + 1
        yield from self._advance(model, head, events, upto, timestamp.micros, log, is_complete=False)
        self._arm(head, due)
        last.set(END)
        head_cell.write(head.dump())


def _events(buffer: Any) -> Iterable[Event]:
    return (event for chunk in buffer.read() for event in unpack(chunk))
