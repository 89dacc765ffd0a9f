"""Features of ``ContinuousBatch``: 200 elements, ten in a second of event time, each its own number."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import apache_beam as beam
from apache_beam.transforms.window import FixedWindows

from contbatch.transforms import BatchPolicy, ContinuousBatch, MicroBatch
from contbatch.transforms.testing import ManualClock
from tests.runners.conformance.jobs import Cell, Done, Job
from tests.runners.conformance.source import Step

COUNT = 200
TIMED = [(number / 10, number) for number in range(COUNT)]


def keyed(number: int) -> tuple[str, int]:
    return f"k{number % 3}", number


def form(batch: MicroBatch[int]) -> list[Any]:
    return [list(batch), str(batch.reason)]


def form_keyed(pair: tuple[str, MicroBatch[int]]) -> list[Any]:
    return [*form(pair[1]), pair[0]]


def size_keyed(pair: tuple[str, MicroBatch[int]]) -> int:
    return len(pair[1])


def keep(job: Job, batches: Any, is_keyed: bool = False, name: str = "batches") -> None:
    """Keep batches and shed ones, and count what is in the batches behind them."""
    job.keep(name, batches, form_keyed if is_keyed else form)
    job.keep(f"{name} shed", batches.shed, form_keyed if is_keyed else form)
    job.count(name, batches, size_keyed if is_keyed else len)


def conserved(cell: Cell, done: Done, expected: Sequence[int], name: str = "batches") -> list[Any]:
    """Check that every element is there once, and counted behind; returns the batches."""
    batches, shed = done.outputs[name], done.outputs[f"{name} shed"]
    assert Counter(number for batch in batches + shed for number in batch[0]) == Counter(expected)
    behind = sum(done.outputs[f"{name} behind"])
    if cell.holds:
        assert behind == sum(len(batch[0]) for batch in batches)
    return batches


def size(cell: Cell) -> None:
    """Keys of 67, 67 and 66 elements: four full batches each, and the rest."""

    def build(job: Job) -> None:
        pairs = job.source(TIMED) | beam.Map(keyed).with_output_types(tuple[str, int])
        keep(job, pairs | ContinuousBatch(BatchPolicy(16, math.inf), keyed=True), is_keyed=True)

    batches = conserved(cell, cell.run(build), range(COUNT))
    assert Counter((len(batch), reason) for batch, reason, _ in batches) == {
        (16, "size"): 12,
        (3, "drain"): 2,
        (2, "drain"): 1,
    }


def delay(cell: Cell) -> None:
    """0 to 4 come within 0.15 s, 5 to 7 after 2 s, and the input ends after 3.5 s: two delays of 0.6 s run out."""
    steps = [
        Step(0.0, [(0, 0), (0, 1), (0, 2)], 0),
        Step(0.15, [(0, 3), (0, 4)], 0.5),
        Step(2.0, [(1, 5), (1, 6), (1, 7)], 1),
        Step(3.5, [], 2),
    ]
    clock = {"clock": ManualClock()} if cell.place.is_scripted else {}

    def build(job: Job) -> None:
        keep(job, job.live(steps) | ContinuousBatch(BatchPolicy(100, 0.6), shards=1, **clock))

    batches = conserved(cell, cell.run(build), range(8))
    assert [(sorted(batch), reason) for batch, reason in batches] == [
        ([0, 1, 2, 3, 4], "delay"),
        ([5, 6, 7], "delay"),
    ]


def event_time_delay(cell: Cell) -> None:
    """Two seconds hold 21 elements, as both ends count; of 200 that makes nine batches and 11 elements."""

    def build(job: Job) -> None:
        policy = BatchPolicy(100, 2.0, time_domain="event_time")
        keep(job, job.source(TIMED) | ContinuousBatch(policy))

    batches = conserved(cell, cell.run(build), range(COUNT))
    expected = [list(range(start, min(start + 21, COUNT))) for start in range(0, COUNT, 21)]
    assert sorted(batch for batch, _ in batches) == expected


def weight(cell: Cell) -> None:
    """Elements weigh 1 to 7, one of them 50; a batch at most 20, and the next element would have been too much."""

    def build(job: Job) -> None:
        policy = BatchPolicy(100, math.inf, max_weight=20, weight_fn=weighed)
        keep(job, job.source(TIMED) | ContinuousBatch(policy, shards=1))

    batches = sorted(batch for batch, _ in conserved(cell, cell.run(build), range(COUNT)))
    assert [100] in batches
    for batch, following in pairwise(batches):
        assert sum(map(weighed, batch)) <= 20 or batch == [100]
        assert sum(map(weighed, [*batch, following[0]])) > 20


def weighed(number: int) -> float:
    return 50.0 if number == 100 else number % 7 + 1.0


def window_boundary(cell: Cell) -> None:
    """Four windows of 5 s hold 50 elements each: three full batches of 16, and two elements at the window's end."""

    def build(job: Job) -> None:
        windowed = job.source(TIMED) | beam.WindowInto(FixedWindows(5))
        keep(job, windowed | ContinuousBatch(BatchPolicy(16, math.inf), shards=1))

    batches = conserved(cell, cell.run(build), range(COUNT))
    assert all(len({number // 50 for number in batch}) == 1 for batch, _ in batches)
    assert Counter((len(batch), reason) for batch, reason in batches) == {(16, "size"): 12, (2, "window_end"): 4}


def end_of_input(cell: Cell) -> None:
    """Nobody waits for an hour that has no end to wait for: the job is over in a minute, and all is there."""

    def build(job: Job) -> None:
        keep(job, job.source(TIMED) | ContinuousBatch(BatchPolicy(64, 3_600.0, latency_slo=3_600.0), shards=1))

    done = cell.run(build)
    conserved(cell, done, range(COUNT))
    assert done.seconds < 60


def keys(cell: Cell) -> None:
    """No batch mixes keys, and the elements of a key stay in their order."""

    def build(job: Job) -> None:
        pairs = job.source(TIMED) | beam.Map(keyed).with_output_types(tuple[str, int])
        policy = BatchPolicy(7, 3.0, time_domain="event_time")
        keep(job, pairs | ContinuousBatch(policy, keyed=True), is_keyed=True)

    batches = conserved(cell, cell.run(build), range(COUNT))
    for key in range(3):
        mine = sorted(batch for batch, _, name in batches if name == f"k{key}")
        assert [number for batch in mine for number in batch] == list(range(key, COUNT, 3))
        assert {len(batch) for batch in mine[:-1]} == {7}


def shed(cell: Cell) -> None:
    """Every fourth element had to be answered long ago."""

    def build(job: Job) -> None:
        policy = BatchPolicy(16, 0.2, deadline_fn=deadline)
        keep(job, job.source(TIMED) | ContinuousBatch(policy, shards=1))

    done = cell.run(build)
    conserved(cell, done, range(COUNT))
    given_up = done.outputs["batches shed"]
    assert {reason for _, reason in given_up} == {"deadline"}
    assert sorted(number for batch, _ in given_up for number in batch) == list(range(0, COUNT, 4))


def deadline(number: int) -> float:
    """Return 1970, or 2100."""
    return 4.1e9 if number % 4 else 1.0
