"""Events cross the runner's boundaries in chunks, and values leave with explicit times."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import apache_beam as beam
from apache_beam.transforms.window import GlobalWindow, GlobalWindows
from apache_beam.utils.timestamp import MIN_TIMESTAMP, Timestamp
from apache_beam.utils.windowed_value import WindowedValue

from contbatch.transforms.events import Event, pack

END = GlobalWindow().max_timestamp()
"""The last instant of the global window."""

MILLI = 1_000
"""Microseconds to which runners cut the time of a timer: one that has to be late enough stands at a multiple."""

_MOST = 512
"""Events in a chunk."""


class PackFn(beam.DoFn):
    """Packs a bundle's events per model, so that state and shuffle see a chunk where they would see an event."""

    def start_bundle(self) -> None:
        """Start empty."""
        self._events: dict[str, list[Event]] = {}

    def process(self, event: Event) -> Iterator[WindowedValue]:
        """Keep an event, and let a full chunk go."""
        events = self._events.setdefault(event.model, [])
        events.append(event)
        if len(events) >= _MOST:
            yield self._chunk(event.model)

    def finish_bundle(self) -> Iterator[WindowedValue]:
        """Let the rest go."""
        for model in list(self._events):
            yield self._chunk(model)

    def _chunk(self, model: str) -> WindowedValue:
        events = self._events.pop(model)
        return at((model, pack(events)), min(event.time for event in events))


def at(value: Any, micros: int) -> WindowedValue:
    """Return a value in the global window with an event time."""
    return GlobalWindows.windowed_value(value, timestamp_of(micros))


@lru_cache(maxsize=1024)  # what is released together leaves together
def timestamp_of(micros: int) -> Timestamp:
    """Return a timestamp inside the global window, whatever a record claims."""
    return Timestamp(micros=min(max(micros, MIN_TIMESTAMP.micros), END.micros))
