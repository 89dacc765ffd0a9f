"""Events cross the runner's boundaries in chunks, and values leave with explicit times."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import apache_beam as beam
from apache_beam.options.pipeline_options import PortableOptions
from apache_beam.runners.portability.portable_runner import PortableRunner
from apache_beam.runners.portability.prism_runner import PrismRunner
from apache_beam.transforms.util import ReshufflePerKey
from apache_beam.transforms.window import GlobalWindow, GlobalWindows, TimestampCombiner
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


def apart(chunks: beam.PCollection[Any]) -> beam.PCollection[Any]:
    """Return the chunks of bounded input for a stateful step that is a stage of its own.

    FnApiRunner, which DirectRunner picks for bounded input, knows the timers of a stage by their name alone: of two
    stateful steps in one stage, as on one source, the second one's timers go to the first, and what it holds is lost.
    A key's chunks stay in their order. Runners behind a job server have no need of it, and Flink does not know the
    windows in between.
    """
    if not chunks.is_bounded or _is_remote(chunks.pipeline) or _is_prism(chunks.pipeline):
        return chunks
    return chunks | "Chunks apart" >> ReshufflePerKey()


def gathered(chunks: beam.PCollection[tuple[Any, bytes]]) -> beam.PCollection[tuple[Any, bytes]]:
    """Return the chunks of bounded input, none before all of its key are there, for a stateful step as :func:`apart`.

    A timer at the earliest element says only that nothing earlier is to come: where input has timestamps, as that of
    two sources, a runner may fire it before the rest is there. Each chunk gets the earliest timestamp of its key. A
    job server's runner fires no timer of bounded input so early, and Flink cannot hold a large group.
    """
    if not chunks.is_bounded or _is_remote(chunks.pipeline):
        return chunks
    earliest = beam.WindowInto(GlobalWindows(), timestamp_combiner=TimestampCombiner.OUTPUT_AT_EARLIEST)
    parts = beam.FlatMapTuple(lambda key, group: ((key, chunk) for chunk in group))
    return (
        chunks
        | "Earliest" >> earliest
        | "Gather" >> beam.GroupByKey()
        | "Part" >> parts.with_output_types(chunks.element_type)
        | "Global window again" >> beam.WindowInto(GlobalWindows())
    )


def _is_remote(pipeline: beam.Pipeline) -> bool:
    """Return whether a job server elsewhere runs a pipeline, as Flink's does."""
    is_embedded = pipeline.options.view_as(PortableOptions).job_endpoint == "embed"
    return isinstance(pipeline.runner, PortableRunner) and not is_embedded and not _is_prism(pipeline)


def _is_prism(pipeline: beam.Pipeline) -> bool:
    return isinstance(pipeline.runner, PrismRunner)


@lru_cache(maxsize=1024)  # what is released together leaves together
def timestamp_of(micros: int) -> Timestamp:
    """Return a timestamp inside the global window, whatever a record claims."""
    return Timestamp(micros=min(max(micros, MIN_TIMESTAMP.micros), END.micros))
