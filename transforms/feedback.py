"""``JoinFeedback``: feedback beside the features that were served, whenever it comes."""

from __future__ import annotations

import math
import uuid
from collections.abc import Iterator
from typing import Any
from zlib import crc32

import apache_beam as beam
from apache_beam.coders import BytesCoder
from apache_beam.metrics import Metrics
from apache_beam.options.pipeline_options import DebugOptions
from apache_beam.pvalue import TaggedOutput
from apache_beam.transforms.timeutil import TimeDomain
from apache_beam.transforms.userstate import BagStateSpec, ReadModifyWriteStateSpec, TimerSpec, on_timer
from apache_beam.transforms.window import GlobalWindows
from apache_beam.utils.timestamp import Timestamp

import contbatch.transforms.coders  # noqa: F401  registers the coders
from contbatch.transforms.chunks import END, MILLI, at, gathered, timestamp_of
from contbatch.transforms.codecs import Codec
from contbatch.transforms.events import END_OF_TIME, MICROS, Event, Kind
from contbatch.transforms.learning.join import WHY, Refusal, Terms, Unusable, read_labels
from contbatch.transforms.learning.rooms import Outcome, Rooms, entry_of, line_of
from contbatch.transforms.learning.wire import event_of, served_of
from contbatch.transforms.logged import Logged
from contbatch.transforms.records import Example, Failed, Served

_TOGETHER = 512
"""Elements of a bundle that are packed, or decoded, together, at most."""


class JoinFeedback(beam.PTransform):
    """Joins feedback to the requests that it answers, with the features as they were served.

    Takes a pair of PCollections, of :class:`~contbatch.transforms.Served` and of feedback
    (:class:`~contbatch.transforms.Event`), and returns that of :class:`~contbatch.transforms.Example`. Its attributes
    are ``late`` and ``failed``, of :class:`~contbatch.transforms.Failed`. Every feedback is in one of the three, once:
    feedback = examples + late + failed, where examples that are ``ASSUMED`` or ``SETTLED`` do not count.

    A label may come before its request, which is the rule where requests are answered slowly; a request may have
    several labels of different names; a second one of a name is a duplicate, and the first to arrive counts. All goes
    by event time: where ids are unique and a request has one label, what comes out is the same in any order of arrival.
    Elements carry the time of their event as their timestamp.

    State, in the runner's keyed state: per request, its features for one ``ttl`` and its id for another one. A key is a
    hash of the request id, and its state a log that grows by what is new: with a key for every request a runner spends
    milliseconds on each of its cells and timers. The distribution ``waiting_in_shard`` says how many requests a key
    holds.

    Args:
        feedback: codec of the feedback payloads: ``request_id``, ``label`` in [0, 1], optionally ``weight`` and
            ``name``.
        ttl: seconds of event time that requests and feedback wait for each other.
        wait_window: seconds after which a request without a label is an example with the label 0, ``ASSUMED``, until
            one comes, ``CORRECTED``; ``None`` for never.
        settles: whether a request without any label is an example again, ``SETTLED``, at the ttl.
        shards: keys; the state of one is read whole by a worker that is new to it.
        stride: live only: seconds of event time to which what falls due is rounded up, at least 0.001.

    Raises:
        ValueError: a number is outside its range, or the codec lacks a field.
    """

    def __init__(
        self,
        feedback: Codec,
        *,
        ttl: float = 86_400.0,
        wait_window: float | None = None,
        settles: bool = False,
        shards: int = 4,
        stride: float = 1.0,
    ) -> None:
        super().__init__()
        missing = [field for field in ("request_id", "label") if field not in feedback.fields]
        if missing:
            raise ValueError(f"the feedback codec has fields {feedback.fields}; it also needs {missing}")
        if shards < 1:
            raise ValueError(f"shards is {shards}; give 1 or more")
        if not (math.isfinite(stride) and stride >= MILLI / MICROS):
            raise ValueError(f"stride is {stride!r} s; give a finite number of {MILLI / MICROS:g} or more")
        self._feedback = feedback
        self._terms = Terms(ttl, wait_window, settles)
        self._shards = shards
        self._stride = round(stride * MICROS / MILLI) * MILLI

    def expand(self, inputs: tuple[beam.PCollection[Served], beam.PCollection[Event]]) -> beam.PCollection[Example]:
        """Key both by a hash of the request, in chunks, and let each key keep its requests."""
        served, feedback = inputs
        # Without it Prism runs one key in two bundles at once and loses state.
        served.pipeline.options.view_as(DebugOptions).add_experiment("prism_disable_sdf_split")
        requests = served | "As events" >> beam.Map(event_of).with_output_types(Event)
        # First one collection, then chunks: where two met at the stateful step itself, Prism fired timers of bounded
        # input while one of them was still to come.
        events = (requests, feedback) | "Both" >> beam.Flatten()
        shard = beam.ParDo(_ShardFn(self._shards, self._feedback)).with_output_types(tuple[int, bytes], refused=Failed)
        chunks = (
            events
            | "Global window" >> beam.WindowInto(GlobalWindows())
            | "Shard" >> shard.with_outputs("refused", main="chunks")
        )
        join = beam.ParDo(_JoinFn(self._terms, self._stride, events.is_bounded)).with_output_types(
            Example, late=Failed, failed=Failed
        )
        done = gathered(chunks.chunks) | "Join" >> join.with_outputs("late", "failed", main="examples")
        examples, late, failed, refused = done.examples, done.late, done.failed, chunks.refused
        if events.is_bounded:
            # Fused with another stateful step, FnApiRunner would fire that one's timers before these.
            examples = examples | "Apart" >> beam.Reshuffle()
            late, failed = late | "Late apart" >> beam.Reshuffle(), failed | "Failed apart" >> beam.Reshuffle()
            # Flattened once more behind this transform, Flink's batch runner would not know where it comes from.
            refused = refused | "Refused apart" >> beam.Reshuffle()
        examples.late = late
        examples.failed = (failed, refused) | "Failed" >> beam.Flatten()
        return examples


class _ShardFn(beam.DoFn):
    """A bundle's requests and feedback, decoded together, in chunks of lines, one for each shard."""

    def __init__(self, shards: int, codec: Codec) -> None:
        self._shards = shards
        self._codec = codec

    def start_bundle(self) -> None:
        self._events: list[Event] = []

    def process(self, event: Event) -> Iterator[Any]:
        self._events.append(event)
        if len(self._events) >= _TOGETHER:
            yield from self.finish_bundle()

    def finish_bundle(self) -> Iterator[Any]:
        events, self._events = self._events, []
        feedback = [event for event in events if event.kind is not Kind.SERVED]
        shards: dict[int, list[tuple[int, bytes]]] = {}
        for item in [served_of(event) for event in events if event.kind is Kind.SERVED]:
            shards.setdefault(self._shard(item.model, item.request_id), []).append((item.time, line_of(item)))
        columns, kept, errors = self._codec.decode([event.payload for event in feedback])
        for position, why in errors:
            yield _refused(feedback[position], "", why)
        for label in read_labels(columns, [feedback[position] for position in kept]):
            if isinstance(label, Unusable):
                yield _refused(label.event, label.request_id, label.why)
            else:
                shard = self._shard(label.event.model, label.request_id)
                shards.setdefault(shard, []).append((label.event.time, line_of(label)))
        for shard, lines in shards.items():
            yield at((shard, b"\n".join(line for _, line in lines)), min(time for time, _ in lines))

    def _shard(self, model: str, request_id: str) -> int:
        return crc32(f"{model}\n{request_id}".encode()) % self._shards


def _refused(event: Event, request_id: str, why: str) -> TaggedOutput:
    return TaggedOutput("refused", at(_failed(event, request_id, Refusal.REFUSED, why), event.time))


def _failed(event: Event, request_id: str, status: Refusal, why: str) -> Failed:
    return Failed("feedback", status, why, request_id, event.time, event.row, event.payload, event.model)


class _JoinFn(beam.DoFn):
    """The requests of a shard in state, and a timer where time next changes something.

    On bounded input the timer stands at an element, which holds the watermark there, and its firing empties the shard.
    """

    LOG = BagStateSpec("log", BytesCoder())
    HEAD = ReadModifyWriteStateSpec("head", BytesCoder())
    NEXT = TimerSpec("next", TimeDomain.WATERMARK)

    def __init__(self, terms: Terms, stride: int, is_bounded: bool) -> None:
        self._terms = terms
        self._stride = stride
        self._is_bounded = is_bounded
        self._name = uuid.uuid4().hex
        self._waiting = Metrics.distribution("contbatch", "waiting_in_shard")

    def setup(self) -> None:
        """Connect with the rooms of this process."""
        self._logged = Logged(self._name, lambda: Rooms(self._terms))

    def process(
        self,
        element: tuple[int, bytes],
        timestamp: Timestamp = beam.DoFn.TimestampParam,
        log: Any = beam.DoFn.StateParam(LOG),
        head: Any = beam.DoFn.StateParam(HEAD),
        timer: Any = beam.DoFn.TimerParam(NEXT),
    ) -> Iterator[Any]:
        """Note requests, and match labels."""
        shard, chunk = element
        rooms = self._logged.open(shard, log, head)
        yield from map(_output, rooms.see(chunk))
        self._keep(shard, rooms, entry_of(chunk), log, head)
        if self._is_bounded:
            timer.set(timestamp)
        else:
            self._arm(rooms, timer)

    @on_timer(NEXT)
    def on_next(
        self,
        shard: int = beam.DoFn.KeyParam,
        now: Timestamp = beam.DoFn.TimestampParam,
        log: Any = beam.DoFn.StateParam(LOG),
        head: Any = beam.DoFn.StateParam(HEAD),
        timer: Any = beam.DoFn.TimerParam(NEXT),
    ) -> Iterator[Any]:
        """Do what fell due; of bounded input, all has come."""
        is_over = self._is_bounded or now >= END
        rooms, upto = self._logged.open(shard, log, head), END_OF_TIME if is_over else now.micros
        rooms.armed = None
        yield from map(_output, rooms.expire(upto))
        self._keep(shard, rooms, entry_of(upto), log, head)
        if not is_over:
            self._arm(rooms, timer)

    def _keep(self, shard: int, rooms: Rooms, entry: bytes, log: Any, head: Any) -> None:
        self._waiting.update(rooms.waiting)
        self._logged.record(shard, rooms, entry, log, head)

    def _arm(self, rooms: Rooms, timer: Any) -> None:
        change = rooms.next_change
        if change is not None and change != rooms.armed:
            rooms.armed = change
            timer.set(timestamp_of(-(-(change + 1) // self._stride) * self._stride))


def _output(outcome: Outcome) -> Any:
    if isinstance(outcome, Example):
        return outcome
    label, status = outcome
    failed = _failed(label.event, label.request_id, status, WHY[status])
    return TaggedOutput("late" if status is Refusal.LATE else "failed", failed)
