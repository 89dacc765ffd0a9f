"""A job that is stopped before its input ends: 200 elements in two seconds, and the stop after a tenth of them."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import apache_beam as beam
from apache_beam.runners.runner import PipelineResult

from contbatch.transforms import BatchPolicy, ContinuousBatch
from tests.runners.conformance.batching import COUNT, TIMED, form_keyed, keyed
from tests.runners.conformance.jobs import Cell, Job
from tests.runners.conformance.source import steps_of
from tests.runners.processes import wait_for

PACE = 0.05
"""Seconds for five elements."""


class SlowFn(beam.DoFn):
    """Lets elements through no faster than live ones come, and touches a file when a tenth has come."""

    def __init__(self, mark: Path, seconds: float) -> None:
        self._mark, self._seconds = mark, seconds

    def process(self, number: int) -> Iterator[int]:
        time.sleep(self._seconds)
        if number == COUNT // 10:
            self._mark.touch()
        yield number


def stop(cell: Cell) -> None:
    """Cancelled and run again, or gone on with from a savepoint, every element is there, once by its number.

    A source that is told to stop is a drain: what it has given comes out, and nobody waits for a full batch.
    """
    cancelled = cell.within("cancelled")
    with cancelled.started(builder(cancelled)) as (first, result):
        wait_for("a tenth of the elements", mark(cancelled).exists, cell.folder)
        more = cancel(cancelled, result)
    before = first.sinks["batches"].read()
    assert len(first.sinks["taken"].read()) < COUNT

    again = cell.within("again")
    after = again.run(builder(again), *more).outputs
    assert Counter(numbers(before)).keys() | Counter(numbers(after["batches"])).keys() == set(range(COUNT))
    assert max(Counter(numbers(before)).values(), default=1) == 1
    if more:
        assert len(after["taken"]) < COUNT
    else:
        assert Counter(numbers(after["batches"])) == Counter(range(COUNT))

    if cell.input == "live" and not cell.place.is_scripted:
        drained = cell.within("drained")
        source_stop = drained.folder / "stop"
        with drained.started(builder(drained, str(source_stop))) as (job, result):
            wait_for("a tenth of the elements", mark(drained).exists, cell.folder)
            source_stop.touch()
            if cell.place.ends:
                result.wait_until_finish(60_000)
            else:
                wait_for("the end", job.sinks["end"].read, cell.folder)
        taken = job.sinks["taken"].read()
        assert COUNT // 10 < len(taken) < COUNT
        assert Counter(numbers(job.sinks["batches"].read())) == Counter(taken)


def builder(cell: Cell, source_stop: str = "") -> object:
    cell.folder.mkdir()
    is_paced = cell.input == "live" and not cell.place.is_scripted

    def build(job: Job) -> None:
        source = job.live(steps_of(TIMED, 0.5, PACE), stop=source_stop) if is_paced else job.source(TIMED, step=0.5)
        slow = beam.ParDo(SlowFn(mark(cell), 0.0 if is_paced else PACE / 5)).with_output_types(int)
        taken = source | "Slow" >> slow
        job.keep("taken", taken, int)
        pairs = taken | beam.Map(keyed).with_output_types(tuple[str, int])
        job.keep("batches", pairs | ContinuousBatch(BatchPolicy(16, 3_600.0), keyed=True), form_keyed)

    return build


def mark(cell: Cell) -> Path:
    return cell.folder / "mark"


def cancel(cell: Cell, result: PipelineResult) -> list[str]:
    """Cancel a job as its runner does it; returns the flags with which the next one goes on."""
    if not cell.place.is_flink:
        result.cancel()
        return []
    flink = cell.fixture("flink")
    if cell.input == "live":
        return [f"--savepoint_path={flink.savepoint(flink.job(cell.job_name))}"]
    flink.cancel(flink.job(cell.job_name))
    return []


def numbers(batches: list[list[object]]) -> Iterator[int]:
    return (number for batch in batches for number in batch[0])
