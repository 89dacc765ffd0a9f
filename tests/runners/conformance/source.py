"""A live source that follows a script, for runners that have no ``TestStream`` and for those that have."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import apache_beam as beam
from apache_beam import coders
from apache_beam.io.restriction_trackers import OffsetRange, OffsetRestrictionTracker
from apache_beam.io.watermark_estimators import ManualWatermarkEstimator
from apache_beam.options.pipeline_options import DebugOptions
from apache_beam.runners.sdf_utils import RestrictionTrackerView
from apache_beam.testing.test_stream import TestStream
from apache_beam.transforms.core import RestrictionProvider
from apache_beam.transforms.window import TimestampedValue
from apache_beam.utils.timestamp import MAX_TIMESTAMP, Duration, Timestamp

_REST = 0.02
"""Seconds for which the source rests at the least."""


class Step(NamedTuple):
    """What the source does at once.

    Attributes:
        at: seconds after its start.
        elements: pairs of event time, in seconds, and what comes.
        watermark: event time, in seconds, to which the watermark moves afterwards.
    """

    at: float
    elements: Sequence[tuple[float, Any]]
    watermark: float


def steps_of(timed: Iterable[tuple[float, Any]], step: float, pace: float = 0.02) -> list[Step]:
    """Return a script in which the watermark moves every ``step`` seconds of event time.

    Args:
        timed: pairs of event time and element; those of one step come in the order given.
        step: seconds of event time.
        pace: seconds between two steps.
    """
    parts: dict[int, list[tuple[float, Any]]] = {}
    for seconds, element in timed:
        parts.setdefault(int(seconds // step), []).append((seconds, element))
    return [Step(order * pace, parts[number], (number + 1) * step) for order, number in enumerate(sorted(parts))]


class Scripted(beam.PTransform):
    """The script as a Beam ``TestStream``, whose clock stands at each step's second."""

    def __init__(self, steps: Sequence[Step], element_type: type = int) -> None:
        super().__init__()
        self._steps, self._type = steps, element_type

    def expand(self, begin: beam.pvalue.PBegin) -> beam.PCollection[Any]:
        """Script it."""
        stream, now = TestStream(coder=coders.registry.get_coder(self._type)), 0.0
        for step in self._steps:
            if step.at > now:
                stream.advance_processing_time(Duration(micros=round((step.at - now) * 1e3) * 1_000))
                now = step.at
            stream.add_elements([TimestampedValue(element, seconds) for seconds, element in step.elements])
            stream.advance_watermark_to(step.watermark)
        return begin | stream.advance_watermark_to_infinity()


class Paced(beam.PTransform):
    """The script as a splittable DoFn, by the clock.

    Args:
        steps: the script.
        element_type: of the elements.
        stop: a file; once it is there, the source ends in good order after the step at hand.
    """

    def __init__(self, steps: Sequence[Step], element_type: type = int, stop: str = "") -> None:
        super().__init__()
        self._fn, self._count, self._type = _PacedFn(steps, stop), len(steps), element_type

    def expand(self, begin: beam.pvalue.PBegin) -> beam.PCollection[Any]:
        """Read it."""
        begin.pipeline.options.view_as(DebugOptions).add_experiment("prism_disable_sdf_split")
        return begin | beam.Create([self._count]) | "Pace" >> beam.ParDo(self._fn).with_output_types(self._type)


class _Whole(RestrictionProvider):
    def initial_restriction(self, element: int) -> OffsetRange:
        return OffsetRange(0, element)

    def create_tracker(self, restriction: OffsetRange) -> OffsetRestrictionTracker:
        return OffsetRestrictionTracker(restriction)

    def restriction_size(self, element: int, restriction: OffsetRange) -> int:
        return restriction.size()


class _PacedFn(beam.DoFn):
    def __init__(self, steps: Sequence[Step], stop: str) -> None:
        self._steps, self._stop = steps, stop
        self._began: float | None = None

    @beam.DoFn.unbounded_per_element()
    def process(
        self,
        element: int,
        tracker: RestrictionTrackerView = beam.DoFn.RestrictionParam(_Whole()),  # noqa: B008
        watermark: Any = beam.DoFn.WatermarkEstimatorParam(ManualWatermarkEstimator.default_provider()),  # noqa: B008
    ) -> Iterator[TimestampedValue]:
        position, stop = tracker.current_restriction().start, tracker.current_restriction().stop
        now = time.time()
        if self._began is None or position == 0:
            self._began = now - (self._steps[position].at if position < len(self._steps) else 0.0)
        while position < stop and self._began + self._steps[position].at <= now:
            if not tracker.try_claim(position):
                return
            step = self._steps[position]
            for seconds, value in step.elements:
                yield TimestampedValue(value, Timestamp.of(seconds))
            watermark.set_watermark(Timestamp.of(step.watermark))
            position += 1
        if position == stop or (self._stop and os.path.exists(self._stop)):
            watermark.set_watermark(MAX_TIMESTAMP)
            tracker.try_claim(stop)
            return
        tracker.defer_remainder(Duration.of(max(self._began + self._steps[position].at - now, _REST)))
