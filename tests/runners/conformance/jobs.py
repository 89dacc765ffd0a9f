"""How a pipeline is built and run in a cell of the matrix."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.runner import PipelineResult
from apache_beam.transforms.timeutil import TimeDomain
from apache_beam.transforms.userstate import TimerSpec, on_timer
from apache_beam.transforms.window import FixedWindows, GlobalWindow, GlobalWindows, TimestampedValue

from tests.runners.conformance.places import Fixture, Input, Place
from tests.runners.conformance.source import Paced, Scripted, Step, steps_of
from tests.runners.processes import wait_for
from tests.runners.sink import FileSink

Timed = Sequence[tuple[float, Any]]
"""Pairs of event time, in seconds, and element."""

PATIENCE = 120
"""Seconds after which a job that has not ended never will."""


@dataclass
class Job:
    """A pipeline that is being built.

    Attributes:
        place: where it runs.
        input: what it reads.
        pipeline: the pipeline.
        folder: for what it leaves behind.
        sinks: by name.
    """

    place: Place
    input: Input
    pipeline: beam.Pipeline
    folder: Path
    sinks: dict[str, FileSink] = field(default_factory=dict)
    _sources: int = 0
    _kept: list[beam.PCollection[Any]] = field(default_factory=list)

    def source(self, timed: Timed, element_type: type = int, step: float = 1.0) -> beam.PCollection[Any]:
        """Return the elements; live, the watermark follows them in steps of so many seconds of event time."""
        if self.input != "bounded":
            return self.live(steps_of(timed, step), element_type)
        self._sources += 1
        stamp = beam.MapTuple(lambda seconds, value: TimestampedValue(value, seconds))
        listed = self.pipeline | f"Create {self._sources}" >> beam.Create(list(timed))
        return listed | f"Stamp {self._sources}" >> stamp.with_output_types(element_type)

    def live(self, steps: Sequence[Step], element_type: type = int, stop: str = "") -> beam.PCollection[Any]:
        """Return a live source that follows a script; it ends early once a file named ``stop`` is there."""
        self._sources += 1
        source = Scripted(steps, element_type) if self.place.is_scripted else Paced(steps, element_type, stop)
        return self.pipeline | f"Live {self._sources}" >> source

    def keep(self, name: str, elements: beam.PCollection[Any], form: Callable[[Any], Any] = list) -> None:
        """Write elements in a form that JSON knows."""
        self.sinks[name] = FileSink(self.folder / "sinks", name)
        formed = elements | f"Form {name}" >> beam.Map(form)
        self._kept.append(formed)
        _ = formed | f"Keep {name}" >> self.sinks[name]

    def count(self, name: str, elements: beam.PCollection[Any], size: Callable[[Any], int] = lambda _: 1) -> None:
        """Count elements by windows of a second, into which no element may come late."""
        sizes = elements | f"Size {name}" >> beam.Map(size).with_output_types(int)
        narrow = sizes | f"Window {name}" >> beam.WindowInto(FixedWindows(1))
        self.keep(f"{name} behind", narrow | f"Sum {name}" >> beam.CombineGlobally(sum).without_defaults(), int)

    def mark_end(self) -> FileSink:
        """Return a sink that gets one element when everything has been kept."""
        sink, keyed = FileSink(self.folder / "sinks", "end"), []
        for number, kept in enumerate([*self._kept, self.pipeline | "Begin" >> beam.Create([0])]):
            pairs = kept | f"Pair {number}" >> beam.Map(lambda _: ("", 0)).with_output_types(tuple[str, int])
            keyed.append(pairs | f"Global {number}" >> beam.WindowInto(GlobalWindows()))
        _ = keyed | "All" >> beam.Flatten() | "End" >> beam.ParDo(_EndFn()) | "Keep end" >> sink
        return sink


class _EndFn(beam.DoFn):
    """Gives an element at the end of time."""

    END = TimerSpec("end", TimeDomain.WATERMARK)

    def process(self, element: tuple[str, int], end: Any = beam.DoFn.TimerParam(END)) -> None:
        end.set(GlobalWindow().max_timestamp())

    @on_timer(END)
    def on_end(self) -> Iterator[str]:
        yield "end"


@dataclass(frozen=True)
class Done:
    """A job that has ended.

    Attributes:
        outputs: what was kept, by name.
        counters: their totals, by name.
        seconds: that it ran.
    """

    outputs: dict[str, list[Any]]
    counters: dict[str, int]
    seconds: float


@dataclass(frozen=True)
class Cell:
    """Where a case runs.

    Attributes:
        place: on which runner.
        input: on what.
        folder: an empty one.
        fixture: returns a pytest fixture.
        holds: whether the runner holds the watermark for what waits in state: see the limits.
    """

    place: Place
    input: Input
    folder: Path
    fixture: Fixture
    holds: bool = True

    def run(self, build: Callable[[Job], None], *more: str) -> Done:
        """Run a pipeline to its end.

        Raises:
            TimeoutError: it did not end.
        """
        with self.started(build, *more) as (job, result):
            began = time.monotonic()
            if self.place.ends:
                self._wait(result)
            else:
                wait_for(f"the end of {self.place.name}'s outputs", job.sinks["end"].read, self.folder, PATIENCE)
            seconds = time.monotonic() - began
        return Done({name: sink.read() for name, sink in job.sinks.items()}, totals(result), seconds)

    @contextmanager
    def started(self, build: Callable[[Job], None], *more: str) -> Iterator[tuple[Job, PipelineResult]]:
        """Give a job that runs, or has run.

        Args:
            build: builds it.
            *more: flags beside those of the place.
        """
        live = [] if self.input == "bounded" else ["--streaming"]
        with self.place.flags(self.fixture) as flags:
            options = PipelineOptions([*flags, *live, f"--job_name={self.job_name}", *more])
            job = Job(self.place, self.input, beam.Pipeline(options=options), self.folder)
            build(job)
            if not self.place.ends:
                job.sinks["end"] = job.mark_end()
            try:
                yield job, job.pipeline.run()
            finally:
                if self.place.is_flink:
                    self._cancel_on_flink()

    @property
    def job_name(self) -> str:
        """The job's name on the runner."""
        return f"matrix-{hashlib.sha256(str(self.folder).encode()).hexdigest()[:8]}"

    def within(self, name: str, **changes: Any) -> Cell:
        """Return the cell of another job, in a folder of its own."""
        return replace(self, folder=self.folder / name, **changes)

    def _cancel_on_flink(self) -> None:
        """Cancel the job, if it still runs: ``PipelineResult.cancel`` would not."""
        flink = self.fixture("flink")
        try:
            flink.cancel(flink.job(self.job_name))
        except LookupError:
            return

    def _wait(self, result: PipelineResult) -> None:
        state = result.wait_until_finish(*([PATIENCE * 1_000] if self.place.has_limit else []))
        if state not in {"DONE", None}:
            raise TimeoutError(f"{self.place.name}: the job is {state}, not done, after {PATIENCE} s")


def totals(result: PipelineResult) -> dict[str, int]:
    """Return the counters of a job."""
    out: dict[str, int] = {}
    for counter in result.metrics().query()["counters"]:
        name = counter.key.metric.name
        value = counter.committed if counter.committed is not None else counter.attempted
        out[name] = out.get(name, 0) + value
    return out
