"""The main job: predict every request of a data set, and learn from its feedback, in event time."""

from __future__ import annotations

import math
import os
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import apache_beam as beam
from apache_beam.io.filesystems import FileSystems
from apache_beam.options.pipeline_options import PipelineOptions, StandardOptions
from apache_beam.runners.runner import PipelineState

from contbatch.pipelines.datasets import Dataset
from contbatch.pipelines.errors import JobError, UsageError
from contbatch.pipelines.files import Tally, WriteCounts, WriteRecords, write_text
from contbatch.pipelines.infer import infer
from contbatch.pipelines.stopping import GRACE, run_until_stopped
from contbatch.pipelines.train import train
from contbatch.transforms import (
    BatchPolicy,
    Event,
    Failed,
    GatePolicy,
    Kind,
    Learned,
    Prediction,
    PredictThenLearn,
    Published,
)
from contbatch.transforms.events import is_request
from contbatch.transforms.io.replay import PacedReplay, PacedScript
from contbatch.transforms.learning.join import Refusal
from contbatch.transforms.ledger import name_in, name_out

PREDICTIONS = "predictions.avro"
LEARNED = "learned.avro"
FAILED = "failed.avro"
LEDGER = "ledger.json"
SUMMARY = "summary.json"
ERRORS = "error.log"
STORE = "store"


@dataclass(frozen=True)
class PersonalizeConfig:
    """What the job does.

    Attributes:
        out: folder for everything that it writes; an earlier run's files there are replaced.
        dataset: what is predicted.
        data: where it is.
        policy: bounds of the prediction micro-batches.
        feedback_delay: seconds of event time between a request and its feedback; None for as the data has it.
        ttl: seconds of event time that requests and feedback wait for each other.
        seed: decides the initial weights.
        publish_every: examples between published model versions.
        freeze_after: the first version with so many examples is the frozen model of the summary.
        spread_ties: whether the requests of one instant follow each other by a microsecond.
        form: ``serial`` predicts and learns in one transform, in event time; ``parallel`` in two that meet in the
            model store, live from a paced replay.
        learner: ``sparse`` or ``torch``.
        rate: of the parallel form, events a second.
        gate: keeps bad updates from serving.
    """

    out: str
    dataset: Dataset
    data: Path
    policy: BatchPolicy
    feedback_delay: float | None
    ttl: float
    seed: int
    publish_every: int
    freeze_after: int
    spread_ties: bool
    form: str = "serial"
    learner: str = "sparse"
    rate: float = 2_000.0
    gate: GatePolicy | None = None

    def __post_init__(self) -> None:
        delay = self.feedback_delay
        if delay is not None and not (math.isfinite(delay) and delay >= 0):
            raise ValueError(f"feedback_delay is {delay}; give a finite number of seconds, 0 or more")


class _Branches(NamedTuple):
    """What a form puts out."""

    events: beam.PCollection[Event]
    bad: beam.PCollection[Failed]
    predictions: beam.PCollection[Prediction]
    learned: beam.PCollection[Learned]
    failed: beam.PCollection[Failed]
    published: beam.PCollection[Published]


def build(pipeline: beam.Pipeline, config: PersonalizeConfig) -> None:
    """Add the job's steps to a pipeline."""
    done = (_parallel if config.form == "parallel" else _serial)(pipeline, config)
    failed = (done.bad, done.failed) | "All failed" >> beam.Flatten()
    outputs: list[tuple[str, beam.PCollection[Any], type[Any], tuple[str, ...]]] = [
        (PREDICTIONS, done.predictions, Prediction, ("model", "time", "request_time", "request_id")),
        (LEARNED, done.learned, Learned, ("model", "time", "request_id")),
        (FAILED, failed, Failed, ("model", "time", "kind", "row", "status", "payload")),
    ]
    for name, records, record, order in outputs:
        records | f"Write {name}" >> WriteRecords(FileSystems.join(config.out, name), record, order)
    fates = (
        ("Requests and feedback", done.events, name_in),
        ("Bad lines", done.bad, name_in),
        ("Predicted", done.predictions, name_out),
        ("Learned", done.learned, name_out),
        ("Failed", failed, name_out),
        ("Versions", done.published, name_out),
    )
    counts = [records | f"{label}: count" >> Tally(name) for label, records, name in fates]
    counts | "All counts" >> beam.Flatten() | "Ledger" >> WriteCounts(FileSystems.join(config.out, LEDGER))


def _serial(pipeline: beam.Pipeline, config: PersonalizeConfig) -> _Branches:
    """Predict and learn in one transform, in event time."""
    source = (
        pipeline
        | "Data" >> beam.Create([str(config.data)])
        | "Read"
        >> beam.ParDo(_ReadFn(config.dataset, config.feedback_delay, config.spread_ties))
        .with_output_types(Event, failed=Failed)
        .with_outputs("failed", main="events")
    )
    done = source.events | "PredictThenLearn" >> PredictThenLearn(
        config.dataset.learner(config.seed, config.learner),
        config.policy,
        FileSystems.join(config.out, STORE),
        requests=config.dataset.requests,
        feedback=config.dataset.feedback,
        gate=config.gate,
        ttl=config.ttl,
        publish_every=config.publish_every,
    )
    return _Branches(source.events, source.failed, done.predictions, done.learned, done.failed, done.published)


def _parallel(pipeline: beam.Pipeline, config: PersonalizeConfig) -> _Branches:
    """Predict and learn in two transforms that meet in the model store, live."""
    dataset = config.dataset
    reader = _ReadFn(dataset, config.feedback_delay, config.spread_ties)
    found = list(reader.process(str(config.data)))
    given = [item for item in found if isinstance(item, Event)]
    bad = [item.value for item in found if not isinstance(item, Event)]
    local = pipeline.options.view_as(StandardOptions).runner in (None, "DirectRunner")
    read = partial(_events, dataset, str(config.data), config.feedback_delay, config.spread_ties)
    source = PacedScript(given, config.rate) if local else PacedReplay(read, len(given), config.rate)
    events = pipeline | "Replay" >> source
    learner, store = dataset.learner(config.seed, config.learner), FileSystems.join(config.out, STORE)
    requests = events | "Requests" >> beam.Filter(is_request)
    inferred = infer(requests, learner, store, codec=dataset.requests, policy=config.policy)
    trained = train(
        events,
        inferred.served,
        learner,
        store,
        requests=config.dataset.requests,
        feedback=config.dataset.feedback,
        gate=config.gate,
        ttl=config.ttl,
        publish_every=config.publish_every,
    )
    failed = (inferred.failed, trained.failed) | "Neither" >> beam.Flatten()
    unread = pipeline | "Bad lines" >> beam.Create(bad).with_output_types(Failed)
    return _Branches(events, unread, inferred.predictions, trained.learned, failed, trained.published)


def _events(dataset: Dataset, data: str, feedback_delay: float | None, spread_ties: bool) -> Iterator[Event]:
    """Yield the events that can be read."""
    for item in dataset.read_events(Path(data), feedback_delay, spread_ties):
        if isinstance(item, Event):
            yield item


def run(
    config: PersonalizeConfig,
    options: PipelineOptions,
    grace: float = GRACE,
    flink_rest: str | None = None,
    say: Callable[[str], None] = print,
) -> float:
    """Run the job to its end and return its seconds.

    Args:
        config: what it does.
        options: where.
        grace: seconds from a signal in which the live form may drain.
        flink_rest: address of Flink's REST interface, if that is where it runs.
        say: is told what is done about a signal.

    Raises:
        UsageError: the output folder cannot be written.
        Stopped: a signal ended it.
        JobError: the pipeline failed; the details are in a file that the text names.
    """
    _clear(config.out)
    started = time.monotonic()
    try:
        options.view_as(StandardOptions).streaming |= config.form == "parallel"
        pipeline = beam.Pipeline(options=options)
        build(pipeline, config)
    except ValueError as error:
        raise UsageError(str(error)) from error
    try:
        state = run_until_stopped(pipeline, grace=grace, flink_rest=flink_rest, say=say)
    except Exception as error:
        log = FileSystems.join(config.out, ERRORS)
        write_text(log, traceback.format_exc())
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise JobError(f"the job failed: {lines[-1][:300]} (details: {log})") from error
    if state != PipelineState.DONE:
        runner = options.view_as(StandardOptions).runner
        raise JobError(f"the job ended as {state}; look at the log of {runner}")
    return time.monotonic() - started


class _ReadFn(beam.DoFn):
    def __init__(self, dataset: Dataset, feedback_delay: float | None, spread_ties: bool) -> None:
        self._dataset = dataset
        self._feedback_delay = feedback_delay
        self._spread_ties = spread_ties

    def process(self, data: str) -> Iterator[Any]:
        for item in self._dataset.read_events(Path(data), self._feedback_delay, self._spread_ties):
            if isinstance(item, Event):
                yield item
                continue
            kind, row, line, reason = item
            status = "failed" if kind is Kind.REQUEST else Refusal.REFUSED.value
            payload = line.encode("utf-8", "surrogateescape")
            yield beam.pvalue.TaggedOutput("failed", Failed(kind.name.lower(), status, reason, "", 0, row, payload, ""))


def _clear(out: str) -> None:
    """Remove an earlier run's files, and nothing else, and see that new ones can be written."""
    try:
        stale: Sequence[str] = [FileSystems.join(out, name) for name in _FILES]
        FileSystems.delete([path for path in stale if FileSystems.exists(path)])
        probe = FileSystems.join(out, ERRORS)
        write_text(probe, "")
        FileSystems.delete([probe])
    except (OSError, beam.io.filesystem.BeamIOError) as error:
        reason = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else str(error)
        raise UsageError(f"cannot write to {out} ({reason}); give another folder with --out") from error


_FILES = (PREDICTIONS, LEARNED, FAILED, LEDGER, SUMMARY, ERRORS, STORE)
