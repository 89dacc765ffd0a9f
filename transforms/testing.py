"""Helpers for tests of pipelines that use this package: a clock to advance, a scripted source, a conservation check."""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Iterable
from typing import Any
from weakref import WeakValueDictionary

import apache_beam as beam
from apache_beam.testing.test_stream import TestStream
from apache_beam.transforms.window import TimestampedValue
from apache_beam.utils.timestamp import Timestamp

from contbatch.transforms.coders import EventCoder
from contbatch.transforms.events import MICROS, Event
from contbatch.transforms.ledger import name_in, name_out, violations


class ManualClock:
    """A clock that moves only when it is told to; call it for the time in seconds.

    Pickled and unpickled in one process, as a runner does with what holds it, it stays the same clock.
    """

    def __init__(self, now: float = 0.0) -> None:
        self._now = now
        self._key = uuid.uuid4().hex
        _CLOCKS[self._key] = self

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return _clock, (self._key,)

    def __call__(self) -> float:
        """Return the time."""
        return self._now

    def advance(self, seconds: float) -> None:
        """Move the clock.

        Raises:
            ValueError: ``seconds`` is negative.
        """
        if seconds < 0:
            raise ValueError(f"cannot advance by {seconds} s; give 0 or more")
        self._now += seconds


_CLOCKS: WeakValueDictionary[str, ManualClock] = WeakValueDictionary()


def _clock(key: str) -> ManualClock:
    return _CLOCKS[key]


def stepwise(events: Iterable[Event], step: float) -> TestStream:
    """Return an unbounded source whose watermark moves on every ``step`` seconds of event time.

    Each step brings the events before the next watermark, in the order given, then the watermark. Beam's
    ``TestStream`` takes about 10 ms a step.

    Args:
        events: what the source brings; inside a step their order is kept.
        step: seconds of event time between watermarks, above 0.

    Raises:
        ValueError: ``step`` is not above 0.
    """
    width = round(step * MICROS)
    if width <= 0:
        raise ValueError(f"step is {step} s; give at least a microsecond")
    steps: dict[int, list[Event]] = {}
    for event in events:
        steps.setdefault(event.time // width, []).append(event)
    stream = TestStream(coder=EventCoder())
    for number, arrived in sorted(steps.items()):
        stream.add_elements([TimestampedValue(event, Timestamp(micros=event.time)) for event in arrived])
        stream.advance_watermark_to(Timestamp(micros=(number + 1) * width))
    return stream.advance_watermark_to_infinity()


class _Elements(list[Any]):
    """A list that can be referred to weakly."""


class Sink(beam.PTransform):
    """Gathers what reaches it in :attr:`elements`. For runners whose workers are threads of this process."""

    def __init__(self) -> None:
        super().__init__()
        self._key = uuid.uuid4().hex
        self.elements: list[Any] = _SINKS.setdefault(self._key, _Elements())
        """Elements in the order of arrival."""

    def expand(self, elements: beam.PCollection[Any]) -> beam.PCollection[None]:
        """Keep every element."""
        return elements | beam.Map(_keep, self._key).with_output_types(None)


_SINKS: WeakValueDictionary[str, _Elements] = WeakValueDictionary()


def _keep(element: Any, key: str) -> None:
    _SINKS[key].append(element)


def assert_conserved(events: Iterable[Event], outputs: Iterable[Any]) -> None:
    """Check the laws of conservation between what went in and all that came out, of every output.

    Raises:
        AssertionError: a law is broken; the text has the counts.
    """
    broken = violations(Counter([*map(name_in, events), *map(name_out, outputs)]))
    if broken:
        raise AssertionError("; ".join(broken))
