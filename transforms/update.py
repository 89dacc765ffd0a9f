"""``PredictThenLearn``: the Beam shell of the serial loop.

The DoFn only translates. It buffers chunks of events in state, and when the watermark says that a stretch of
event time is complete, hands that stretch, sorted, to the loop of its model.

State per model: ``buffer`` holds chunks not yet processed, ``log`` belongs to the loop's journal, ``head`` says
what the two mean; all are read once per bundle or firing.

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
import time
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import apache_beam as beam
from apache_beam.coders import BytesCoder
from apache_beam.metrics import Metrics
from apache_beam.options.pipeline_options import DebugOptions
from apache_beam.transforms.timeutil import TimeDomain
from apache_beam.transforms.userstate import BagStateSpec, ReadModifyWriteStateSpec, TimerSpec, on_timer
from apache_beam.transforms.window import GlobalWindows
from apache_beam.utils.timestamp import Timestamp

import contbatch.transforms.coders  # noqa: F401  registers the coders
from contbatch.transforms import progress
from contbatch.transforms.batching import BatchPolicy
from contbatch.transforms.chunks import END, MILLI, PackFn, at, timestamp_of
from contbatch.transforms.codecs import Codec
from contbatch.transforms.events import END_OF_TIME, MICROS, Event, extent, pack, unpack
from contbatch.transforms.learning import Learner, ModelStore, PrequentialConfig, Version
from contbatch.transforms.learning.journal import Journal, Position
from contbatch.transforms.records import Failed, Learned, Prediction, Published

_LOG = logging.getLogger(__name__)


class PredictThenLearn(beam.PTransform):
    """Predicts requests in micro-batches and learns their feedback, in event-time order, one model per key.

    Takes a PCollection of :class:`~contbatch.transforms.Event` and returns four: ``predictions`` (the main
    output), ``learned``, ``failed`` and ``published``, of the records of those names. Every request comes out as a
    prediction or failed; every feedback as learned or failed. The outputs do not depend on the order of arrival,
    on bundles or on how the watermark moves, as long as nothing is late or forced.

    Args:
        learner: the model.
        policy: bounds of the micro-batches, in event time.
        store: folder for model versions and snapshots, on any Beam filesystem.
        requests: codec of the request payloads: ``request_id`` and the learner's fields.
        feedback: codec of the feedback payloads: ``request_id``, ``label`` in [0, 1] and optionally ``weight``.
        ttl: seconds of event time that a request waits for its label, or a label for its request.
        publish_every: examples between published versions.
        stride: live only: seconds of event time to which firings are rounded up, at least 0.001. Less latency against
            more firings, each of which reads the buffer once.
        max_buffer: most events buffered per model. Beyond it the older half is processed early, counted as
            ``forced``: events from before that point are late afterwards, so determinism is lost.
        max_wait: live only: seconds of real time after which new input forces the older half of a buffer whose
            watermark does not move; ``None`` to wait for ever.
        snapshot_every: events after which the log in state is replaced by a snapshot in the store.
        clock: seconds; for ``max_wait`` only.

    Raises:
        ValueError: an argument is outside its range, or a codec lacks a field.
    """

    def __init__(
        self,
        learner: Learner[Any],
        policy: BatchPolicy,
        store: str,
        *,
        requests: Codec,
        feedback: Codec,
        ttl: float = 86_400.0,
        publish_every: int = 10_000,
        stride: float = 1.0,
        max_buffer: int = 2_000_000,
        max_wait: float | None = None,
        snapshot_every: int = 50_000,
        clock: Callable[[], float] = time.time,
    ) -> None:
        super().__init__()
        for name, value, least in (
            ("stride", stride, MILLI / MICROS),
            ("max_buffer", max_buffer, 1),
            ("snapshot_every", snapshot_every, 1),
        ):
            if not (math.isfinite(value) and value >= least):
                raise ValueError(f"{name} is {value!r}; give a finite number of {least:g} or more")
        config = PrequentialConfig(learner, policy, requests, feedback, ttl, publish_every)
        whole = round(stride * MICROS / MILLI) * MILLI
        self._settings = _Settings(config, store, whole, max_buffer, max_wait, snapshot_every, clock)

    def expand(self, events: beam.PCollection[Event]) -> beam.pvalue.DoOutputsTuple:
        """Chunk the events, group them by model, run the loops."""
        # Without it Prism runs one key in two bundles at once and loses state.
        events.pipeline.options.view_as(DebugOptions).add_experiment("prism_disable_sdf_split")
        run = beam.ParDo(_PredictThenLearnFn(self._settings, events.is_bounded)).with_output_types(
            Prediction, learned=Learned, failed=Failed, published=Published
        )
        if not isinstance(events.windowing.windowfn, GlobalWindows):
            events |= "Window" >> beam.WindowInto(GlobalWindows())
        return (
            events
            | "Chunk" >> beam.ParDo(PackFn()).with_output_types(tuple[str, bytes])
            | "Run" >> run.with_outputs("learned", "failed", "published", main="predictions")
        )


@dataclass(frozen=True)
class _Settings:
    config: PrequentialConfig[Any]
    store: str
    stride: int
    max_buffer: int
    max_wait: float | None
    snapshot_every: int
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


class _PredictThenLearnFn(beam.DoFn):
    BUFFER = BagStateSpec("buffer", BytesCoder())
    LOG = BagStateSpec("log", BytesCoder())
    HEAD = ReadModifyWriteStateSpec("head", BytesCoder())
    DUE = TimerSpec("due", TimeDomain.WATERMARK)
    LAST = TimerSpec("last", TimeDomain.WATERMARK)

    def __init__(self, settings: _Settings, bounded: bool) -> None:
        self._settings = settings
        self._bounded = bounded
        self._forced = Metrics.counter("contbatch", "forced")
        self._rebuilt = Metrics.counter("contbatch", "rebuilt")

    def setup(self) -> None:
        settings = self._settings
        self._store = ModelStore(settings.store)
        self._journal = Journal(settings.config, self._store, settings.snapshot_every)

    def start_bundle(self) -> None:
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
        head = self._head(model, head_cell)
        upto = END_OF_TIME if self._bounded else timestamp.micros
        yield from self._run(model, head, upto, timestamp, buffer, log, due)
        head_cell.write(head.dump())

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
        head = self._head(model, head_cell)
        yield from self._run(model, head, END_OF_TIME, timestamp, buffer, log, due)
        head_cell.write(head.dump())

    def _run(
        self, model: str, head: _Head, upto: int, timestamp: Timestamp, buffer: Any, log: Any, due: Any
    ) -> Iterator[Any]:
        """Process the stretch of event time before ``upto`` and record that it is done."""
        events = sorted(_events(buffer))
        stretch = [event for event in events if event.time < upto]
        rest = events[len(stretch) :]
        rebuilt = self._journal.rebuilt
        loop = self._journal.open(model, head.position, log.read())
        self._rebuilt.inc(self._journal.rebuilt - rebuilt)
        for output in loop.advance(stretch, upto):
            yield from self._emit(model, output, timestamp.micros)
        buffer.clear()
        if rest:
            buffer.add(pack(rest))
        head.buffered, head.oldest = len(rest), min((event.time for event in rest), default=END_OF_TIME)
        head.next_time = loop.next_time
        head.position, entry = self._journal.record(model, head.position, loop, stretch, upto)
        if entry is None:
            log.clear()
        else:
            log.add(entry)
        self._arm(head, due)

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
        else:
            published = self._publish(model, output)
            yield beam.pvalue.TaggedOutput("published", at(published, max(published.time, hold)))

    def _publish(self, model: str, version: Version) -> Published:
        config = self._settings.config
        manifest = self._store.publish(
            version.arrays,
            model=model,
            epoch=version.epoch,
            step=version.step,
            parent=version.parent,
            examples=version.examples,
            loss=version.loss,
            time=version.time,
            config={"learner": repr(config.learner), "policy": repr(config.policy)},
        )
        return Published(manifest.version, manifest.digest, manifest.examples, manifest.time, model)

    def _head(self, model: str, cell: Any) -> _Head:
        """Return the state cell's content, read once per bundle."""
        if model not in self._heads:
            self._heads[model] = _Head.load(cell.read())
        return self._heads[model]


def _events(buffer: Any) -> Iterable[Event]:
    return (event for chunk in buffer.read() for event in unpack(chunk))
