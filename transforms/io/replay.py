"""Recorded events as a live stream: each leaves when it is due by the clock, and with that time."""

from __future__ import annotations

import math
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import apache_beam as beam
from apache_beam.io.restriction_trackers import OffsetRange, OffsetRestrictionTracker
from apache_beam.io.watermark_estimators import ManualWatermarkEstimator
from apache_beam.options.pipeline_options import DebugOptions
from apache_beam.runners.sdf_utils import RestrictionTrackerView
from apache_beam.testing.test_stream import TestStream
from apache_beam.transforms.core import RestrictionProvider, WatermarkEstimatorProvider
from apache_beam.transforms.window import TimestampedValue
from apache_beam.utils.timestamp import MAX_TIMESTAMP, Duration, Timestamp

from contbatch.transforms.coders import EventCoder
from contbatch.transforms.events import MICROS, Event
from contbatch.transforms.io.stop import stopping

_MOST = 512
"""Events that leave in one bundle."""
_REST = 0.02
"""Seconds for which the source rests at the least when nothing is due."""

Read = Callable[[], Iterable[Event]]
"""Returns the events, in any order; called on the worker, so it must pickle."""

At = Callable[[int], Event]
"""Returns the event at a place."""


class _Paced(beam.PTransform):
    def __init__(self, opener: Callable[[], At], count: int, rate: float, rest: float) -> None:
        super().__init__()
        if not 0 < rest < math.inf:
            raise ValueError(f"rest is {rest} s; give seconds above 0")
        self._fn = _PacedFn(opener, _checked(rate), rest)
        self._count = count

    def expand(self, begin: beam.pvalue.PBegin) -> beam.PCollection[Event]:
        """Read, and let go what is due."""
        begin.pipeline.options.view_as(DebugOptions).add_experiment("prism_disable_sdf_split")
        return begin | beam.Create([self._count]) | "Replay" >> beam.ParDo(self._fn).with_output_types(Event)


class PacedReplay(_Paced):
    """Replays events at a given rate, in the order of their time, as an unbounded source that comes to an end.

    Event times become those of the replay: microseconds since the epoch at which each is due. For runners that let a
    splittable DoFn checkpoint itself: Prism, Flink, Dataflow. It ends early if the sources of its process are stopped
    (``transforms/io/stop.py``).

    Args:
        read: returns the events.
        count: how many there are.
        rate: events a second.
        rest: seconds for which it rests at the least when nothing is due; what is due then comes together, so much
            later. Beam's runner for Flink keeps some 2 KB for every rest as long as the job runs, and of a rest sees
            the whole seconds only (2.70): there, below 1.1, it rests for as long as a bundle takes.
    """

    def __init__(self, read: Read, count: int, rate: float, rest: float = _REST) -> None:
        super().__init__(partial(_in_order, read), count, rate, rest)


class PacedEvents(_Paced):
    """The same for events that are made when they are due, so that they never are in memory together.

    Args:
        make: returns the event at a place, from 0; called on the worker, so it must pickle.
        count: how many there are.
        rate: events a second.
        rest: see :class:`PacedReplay`.
    """

    def __init__(self, make: At, count: int, rate: float, rest: float = _REST) -> None:
        super().__init__(partial(_as_made, make), count, rate, rest)


class PacedScript(beam.PTransform):
    """The same for a runner of this process, where a scripted source alone is interleaved with what follows it.

    Args:
        events: what is replayed.
        rate: events a second.
        step: seconds of the replay that come together; the runner needs a tenth of one for each.
    """

    def __init__(self, events: Iterable[Event], rate: float, step: float = 0.25) -> None:
        super().__init__()
        self._events = sorted(events)
        self._rate = _checked(rate)
        self._size = max(1, round(rate * step))

    def expand(self, begin: beam.pvalue.PBegin) -> beam.PCollection[Event]:
        """Script the steps; each waits until it is due."""
        stream = TestStream(coder=EventCoder())
        for start in range(0, len(self._events), self._size):
            at = Timestamp(micros=_offset(start, self._rate))
            part = self._events[start : start + self._size]
            due = [event._replace(time=_offset(start + index, self._rate)) for index, event in enumerate(part)]
            stream.advance_watermark_to(at).add_elements([TimestampedValue(event, at) for event in due])
        paced = beam.ParDo(_WaitFn()).with_output_types(Event)
        return begin | stream.advance_watermark_to_infinity() | "Wait" >> paced


class _Whole(RestrictionProvider):
    """A place for each event, and one for the end, which has a bundle of its own.

    What a bundle gives that a checkpoint has closed leaves Flink when the next one begins.
    """

    def initial_restriction(self, element: int) -> OffsetRange:
        return OffsetRange(0, element + 1)

    def create_tracker(self, restriction: OffsetRange) -> OffsetRestrictionTracker:
        return OffsetRestrictionTracker(restriction)

    def restriction_size(self, element: int, restriction: OffsetRange) -> int:
        return restriction.size()


class _Due(WatermarkEstimatorProvider):
    """The watermark is when the next event is due, so it also says when the replay began."""

    def initial_estimator_state(self, element: int, restriction: OffsetRange) -> Timestamp:
        return Timestamp.now()

    def create_watermark_estimator(self, estimator_state: Timestamp) -> ManualWatermarkEstimator:
        return ManualWatermarkEstimator(estimator_state)


class _PacedFn(beam.DoFn):
    def __init__(self, opener: Callable[[], At], rate: float, rest: float) -> None:
        self._open = opener
        self._rate = rate
        self._rest = round(rest * MICROS)
        self._at: At | None = None

    @beam.DoFn.unbounded_per_element()
    def process(
        self,
        element: int,
        tracker: RestrictionTrackerView = beam.DoFn.RestrictionParam(_Whole()),  # noqa: B008
        watermark: Any = beam.DoFn.WatermarkEstimatorParam(_Due()),  # noqa: B008
    ) -> Iterator[TimestampedValue]:
        event_at = self._at = self._at or self._open()
        position = start = tracker.current_restriction().start
        stop = tracker.current_restriction().stop - 1
        now = time.time_ns() // 1_000
        # The replay begins when the events have been read.
        began = watermark.current_watermark().micros - _offset(position, self._rate) if position else now
        last = min(stop, position + _MOST)
        while position < last and (due := began + _offset(position, self._rate)) <= now and not stopping():
            if not tracker.try_claim(position):
                return
            yield TimestampedValue(event_at(position)._replace(time=due), Timestamp(micros=due))
            position += 1
        if start == stop or stopping():
            watermark.set_watermark(MAX_TIMESTAMP)
            tracker.try_claim(stop)
            return
        due = began + _offset(position, self._rate)
        watermark.set_watermark(Timestamp(micros=due))
        tracker.defer_remainder(Duration(micros=max(due - now, self._rest) if due > now else 0))


_BEGAN: dict[str, int] = {}
"""When the replays of this process began: the runner makes a DoFn for every bundle."""


class _WaitFn(beam.DoFn):
    def __init__(self) -> None:
        self._replay = uuid.uuid4().hex

    def process(self, event: Event) -> Iterator[Event]:
        now = time.time_ns() // 1_000
        due = _BEGAN.setdefault(self._replay, now - event.time) + event.time
        if due > now and not stopping():
            time.sleep((due - now) / MICROS)
        if not stopping():
            yield event._replace(time=due)


def _in_order(read: Read) -> At:
    return sorted(read()).__getitem__


def _as_made(make: At) -> At:
    return make


def _offset(position: int, rate: float) -> int:
    return round(position * MICROS / rate)


def _checked(rate: float) -> float:
    if not 0 < rate <= MICROS:
        raise ValueError(f"rate is {rate} events a second; give a number above 0, up to a million")
    return rate
