"""Features of ``PredictThenLearn``, ``OnlineUpdate`` and ``JoinFeedback``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import apache_beam as beam

from contbatch.transforms import BatchPolicy, ContinuousBatch, Event, Kind, ModelStore, Served
from contbatch.transforms.events import MICROS, is_feedback
from contbatch.transforms.learning.wire import event_of, served_of
from contbatch.transforms.ledger import name_out
from tests.runners.conformance.jobs import Cell, Job, Timed
from tests.runners.conformance.source import steps_of
from tests.small import Small
from tests.transforms.test_feedback import expected, fate, join, stream

SMALL = Small()
EVENTS = SMALL.events(100)
"""100 requests, each with a label 0.3 s later."""


def timed(events: Sequence[Any]) -> Timed:
    return [(event.time / MICROS, event) for event in events]


def form(output: Any) -> list[Any]:
    """Return what counts of an output: its fate and whose it is; of a prediction or label, also by which weights."""
    rest = [output.score, output.served_by if hasattr(output, "served_by") else output.version]
    return [name_out(output), output.request_id, *rest]


def form_failed(failed: Any) -> list[Any]:
    return [failed.status, failed.kind, failed.row]


def form_published(published: Any) -> list[Any]:
    return [published.version, published.digest, published.examples]


def online_update(cell: Cell) -> None:
    """The serial form and a trainer of the same events: every label once, and the same weights, bit by bit."""

    def build(job: Job) -> None:
        if job.input == "bounded":
            parts = [[event for event in EVENTS if event.kind is kind] for kind in (Kind.REQUEST, Kind.FEEDBACK)]
            events = [job.source(timed(part), Event) for part in parts] | beam.Flatten()
        else:
            events = job.source(timed(EVENTS), Event, step=10.0)
        done = events | "Serial" >> SMALL.transform(cell.folder / "serial")
        for name in ("predictions", "learned"):
            job.keep(name, done[name], form)
            job.count(name, done[name])
        job.keep("failed", done["failed"], form_failed)
        job.keep("published", done["published"], form_published)
        trained = events | "Trainer" >> SMALL.trainer(cell.folder / "trainer")
        job.keep("trained", trained, form_published)
        job.keep("trainer learned", trained.learned, form)
        job.keep("trainer failed", trained.failed, form_failed)
        job.count("trainer learned", trained.learned)

    out = cell.run(build).outputs
    ids = Counter(str(row) for row in range(100))
    for name in ("predictions", "learned", "trainer learned"):
        assert Counter(request_id for _, request_id, *_ in out[name]) == ids
        assert not cell.holds or sum(out[f"{name} behind"]) == 100
    assert out["failed"] == out["trainer failed"] == []
    assert sorted(out["learned"]) == sorted(out["trainer learned"])
    weights = {digest for *_, digest, _ in out["published"]}
    assert weights == {digest for *_, digest, _ in out["trained"]} == set(digests(cell.folder / "serial"))
    assert weights == reference(cell)


def digests(root: Any) -> list[str]:
    return [manifest.digest for manifest in ModelStore(str(root)).versions()]


def reference(cell: Cell) -> set[str]:
    """Return the weights of the serial form on a list of events on FnApiRunner."""
    root = cell.folder / "reference"
    with beam.Pipeline(runner="FnApiRunner") as pipeline:
        _ = pipeline | beam.Create(EVENTS) | SMALL.transform(root)
    return set(digests(root))


def feedback_join(cell: Cell) -> None:
    """100 requests, and feedback in time, late, twice, of nobody, broken and never: each has its fate, once."""
    served, feedback = stream(100, 3)

    def build(job: Job) -> None:
        examples = served_and_feedback(job, served, feedback) | join()
        every = fates(examples) | beam.Flatten()
        job.keep("fates", every, str)
        job.count("fates", every)

    out = cell.run(build).outputs
    assert Counter(out["fates"]) == expected(served, feedback)
    assert not cell.holds or sum(out["fates behind"]) == len(out["fates"])


def served_and_feedback(job: Job, served: Sequence[Served], feedback: Sequence[Event]) -> tuple[Any, Any]:
    """Return two lists, or the parts of one live source: a ``TestStream`` cannot be there twice."""
    if job.input == "bounded":
        return job.source(timed(served), Served), job.source(timed(feedback), Event)
    events = job.source(timed(sorted([*map(event_of, served), *feedback])), Event, step=3.0)
    asked = events | "Served" >> beam.Filter(lambda event: event.kind is Kind.SERVED)
    told = events | "Feedback" >> beam.Filter(is_feedback)
    return asked | "As served" >> beam.Map(served_of).with_output_types(Served), told


def fates(examples: Any) -> list[beam.PCollection[str]]:
    """Return what became of everything, as text: of two types in one collection Flink mixes up the coders."""
    parts = {"joined": examples, "late": examples.late, "failed": examples.failed}
    return [part | f"Fate {name}" >> beam.Map(str_of_fate).with_output_types(str) for name, part in parts.items()]


def str_of_fate(outcome: Any) -> str:
    return str(fate(outcome))


AFTER_TTL = [SMALL.label(row, 13.0 + row, value=1.0) for row in range(0, 10, 2)]
ON_TIME = [SMALL.request(row, float(row)) for row in range(40)] + [
    SMALL.label(row, row + 0.5) for row in range(40) if row % 2 or row >= 10
]
BEHIND = [SMALL.request(row, row - 95.0) for row in range(100, 105)] + [SMALL.label(20, 6.0), SMALL.label(22, 7.0)]
"""At event times 5 to 9 s, and they come when the watermark is at 30 s or, in a list, last."""


def late_data(cell: Cell) -> None:
    """Labels after the ttl of 5 s find no request anywhere; what comes behind a watermark is late where there is one.

    40 requests a second apart, each with its label half a second later, but for the 5 whose label takes 13 s. In a
    list 5 more requests are predicted, and the 2 labels that say something again find no request. A batching step has
    them all in either case.
    """
    in_time = sorted(ON_TIME + AFTER_TTL)
    is_live = cell.input == "live"

    def build(job: Job) -> None:
        if is_live:
            steps = steps_of(timed(in_time), 5.0)
            assert steps[6].watermark == 35
            late = steps[6]._replace(elements=[*steps[6].elements, *timed(BEHIND)])
            # By then the watermark of the steps before has come everywhere.
            steps[6:] = [step._replace(at=step.at + 2.0) for step in (late, *steps[7:])]
            events = job.live(steps, Event)
        else:
            events = job.source(timed(in_time + BEHIND), Event)
        done = events | SMALL.transform(cell.folder / "store", ttl=5.0)
        for name in ("predictions", "learned"):
            job.keep(name, done[name], form)
        job.keep("failed", done["failed"], form_failed)
        batches = events | ContinuousBatch(BatchPolicy(8, 2.0, time_domain="event_time"))
        job.keep("batches", batches, rows)
        job.keep("taken", events, row_of)

    out = cell.run(build).outputs
    assert Counter(out["taken"]) == Counter(event.row for event in in_time + BEHIND)
    assert Counter(row for batch in out["batches"] for row in batch) == Counter(out["taken"])
    served = [*range(40)] if is_live else [*range(40), *range(100, 105)]
    assert sorted(int(request_id) for _, request_id, *_ in out["predictions"]) == served
    learned = [row for row in range(40) if row % 2 or row >= 10]
    assert sorted(int(request_id) for _, request_id, *_ in out["learned"]) == learned
    failed = [["unmatched", "feedback", row] for row in range(0, 10, 2)]
    if is_live:
        failed += [["failed", "request", row] for row in range(100, 105)]
    failed += [["late" if is_live else "unmatched", "feedback", row] for row in (20, 22)]
    assert sorted(out["failed"]) == sorted(failed)


def row_of(event: Event) -> int:
    return event.row


def rows(batch: Any) -> list[int]:
    return [event.row for event in batch]
