"""A live job whose processes are killed, and what must hold of it afterwards.

Every form of learning hangs on one source: the serial form, a trainer that goes by event time, inference and its
trainer as events come, and data-parallel training. The first two have to come, bit by bit, to what the same events
come to in a process that nobody disturbs; the others have to count every label once.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple

import apache_beam as beam
import numpy as np
from apache_beam.options.pipeline_options import PipelineOptions

from contbatch.pipelines.infer import infer
from contbatch.pipelines.train import train
from contbatch.transforms import BatchPolicy, Event, Failed, Kind, Learned, ModelStore, Published, SparseLearner
from contbatch.transforms.events import MICROS
from contbatch.transforms.io.replay import PacedReplay
from contbatch.transforms.learning.batches import Batch, pack_batch
from contbatch.transforms.parallel_update import ParallelUpdate
from contbatch.transforms.testing import Sink
from tests.runners.cluster import LIVE, FlinkCluster
from tests.runners.processes import wait_for
from tests.runners.sink import FileSink
from tests.small import Small

LEARNER = SparseLearner(("user", "item"), ((("user",), ("item",)),), factors=2, bits=6)
ORDERED = ("serial", "ordered")
"""Forms that go by event time."""
FORMS = (*ORDERED, "arrival", "sharded")
PREDICTING, LEARNING = ("serial", "arrival"), ("serial", "ordered", "arrival")
RETRIES = ("--number_of_execution_retries=100", "--execution_retry_delay=500")


def events(requests: int) -> list[Event]:
    """Return requests and their labels, of which every tenth is sent twice, in their order."""
    small = Small()
    rows = [(row, row / 20) for row in range(requests)]
    found = [event for row, at in rows for event in (small.request(row, at), small.label(row, at + 0.3))]
    again = [small.label(row, at + 2.0)._replace(row=row + requests) for row, at in rows if row % 10 == 0]
    return sorted([*found, *again])


class Workload(NamedTuple):
    """What the job is given.

    Attributes:
        requests: how many.
        rate: requests, labels and repeated labels a second.
    """

    requests: int
    rate: float

    @property
    def events(self) -> list[Event]:
        """The events, in their order."""
        return events(self.requests)

    @property
    def seconds(self) -> float:
        """How long the source takes."""
        return len(self.events) / self.rate


class Outcome(NamedTuple):
    """What a form has come to, beside what it should.

    Attributes:
        unpredicted: requests without a prediction.
        repeated: predictions of a request that has another one: what a sink by request id does not keep.
        contradicting: outputs, with their scores and versions, that are not those of the undisturbed job.
        unlearned: labels that no output says to be learned.
        twice: labels that the final weights know too often: examples in its manifest, beyond one for each request.
        lost: those that they do not know.
        misjudged: labels, by their row, that should be refused and are not, or the other way round.
        changed: versions, by name, examples and digest of the weights, that are not those of the undisturbed job.
        versions: in the store.
    """

    unpredicted: int = 0
    repeated: int = 0
    contradicting: int = 0
    unlearned: int = 0
    twice: int = 0
    lost: int = 0
    misjudged: int = 0
    changed: int = 0
    versions: int = 0

    @property
    def violations(self) -> dict[str, int]:
        """What must be 0 and is not."""
        return {name: count for name, count in self._asdict().items() if count and name not in ("repeated", "versions")}


class FaultyJob:
    """A job on Flink, and what is done to it.

    Args:
        cluster: where it runs.
        folder: for its outputs and its stores.
        workload: what it is given.
        stack: stops its workers.
    """

    def __init__(self, cluster: FlinkCluster, folder: Path, workload: Workload, stack: ExitStack) -> None:
        self._cluster = cluster
        self._folder = folder
        self._workload = workload
        self._stack = stack
        self._outputs = Outputs(folder)
        self._flags: Sequence[str] = ()
        self._job = ""
        self._runs = 0

    def start(self, *more: str) -> None:
        """Submit the job, and wait until it runs."""
        name = f"faults-{self._folder.name}-{self._runs}".replace("_", "-").lower()
        self._runs += 1
        flags = self._stack.enter_context(self._cluster.flags(*LIVE, *RETRIES, f"--job_name={name}", *more))
        pipeline = beam.Pipeline(options=PipelineOptions(flags))
        build(pipeline, self._folder, self._workload)
        pipeline.run()
        found: list[str] = []

        def is_there() -> bool:
            try:
                found.append(self._cluster.job(name))
            except LookupError:
                return False
            return True

        wait_for("the job", is_there, self._folder)
        self._flags, self._job = flags, found[0]

    def wait_for(self, share: float) -> None:
        """Wait until a share of the requests has predictions everywhere, and a checkpoint could be restored."""
        least = share * self._workload.requests
        names = [f"{form}-predicted" for form in PREDICTING]
        self._wait("its predictions", lambda: all(len(self._outputs.ids(name)) >= least for name in names), self._long)
        self._wait("a checkpoint", lambda: self._counts["completed"] > 0)

    def kill(self, what: str) -> float:
        """Kill the ``worker`` or the ``taskmanager``, start what nobody else does; return seconds to the next output.

        Raises:
            ValueError: it is neither.
            TimeoutError: there is no output any more.
        """
        restored = self._counts["restored"]
        killed = time.time()
        if what == "worker":
            self._cluster.kill_worker(self._flags)
        elif what == "taskmanager":
            self._cluster.kill_taskmanager()
            self._cluster.start_taskmanager()
        else:
            raise ValueError(f"{what!r} is to be killed; give 'worker' or 'taskmanager'")
        seconds = self._seconds_since(killed)
        self._wait("a restored checkpoint", lambda: self._counts["restored"] > restored)
        return seconds

    def resume(self) -> tuple[float, float]:
        """Cancel with a savepoint, start again from it; return seconds of the former, and then to the next output."""
        began = time.time()
        path = self._cluster.savepoint(self._job)
        saved = time.time()
        self.start(f"--savepoint_path={path}")
        return saved - began, self._seconds_since(saved)

    def finish(self) -> None:
        """Wait until nothing is missing any more, then cancel."""
        try:
            self._wait("all outputs", self._is_complete, self._long)
        finally:
            self._cluster.cancel(self._job)

    @cached_property
    def _ids(self) -> set[str]:
        return {str(row) for row in range(self._workload.requests)}

    @cached_property
    def _again(self) -> set[int]:
        return {event.row for event in self._workload.events if event.row >= self._workload.requests}

    def _is_complete(self) -> bool:
        names = [f"{form}-predicted" for form in PREDICTING] + [f"{form}-learned" for form in LEARNING]
        if not all(self._outputs.ids(name) >= self._ids for name in names):
            return False
        # A version is in the store before the outputs of its bundle are in the sinks.
        if not all(self._outputs.ids(f"{form}-failed") >= self._again for form in LEARNING):
            return False
        last = {form: max((one[2] for one in self._outputs.read(f"{form}-published")), default=0) for form in ORDERED}
        if min(last.values()) < self._workload.requests:
            return False
        return all(known(self._folder, form) >= self._workload.requests for form in FORMS)

    @property
    def _long(self) -> float:
        """Seconds after which what the source gives has arrived, or never does."""
        return self._workload.seconds + 90

    @property
    def _counts(self) -> Any:
        return self._cluster.checkpoints(self._job)["counts"]

    def _wait(self, what: str, is_there: Callable[[], bool], seconds: float = 90.0) -> None:
        wait_for(what, is_there, self._folder, seconds)

    def _seconds_since(self, moment: float) -> float:
        """Return seconds from a moment to the next output."""
        self._wait("the next output", lambda: self._outputs.first_since(moment))
        return (self._outputs.first_since(moment) or math.inf) - moment


def build(pipeline: beam.Pipeline, folder: Path, workload: Workload) -> None:
    """Add every form to a pipeline."""
    small, count = Small(), len(workload.events)
    live = pipeline | PacedReplay(partial(events, workload.requests), count, workload.rate)
    store, codecs = str(folder / "arrival"), {"requests": small.requests, "feedback": small.feedback}
    requests = live | "Requests" >> beam.Filter(is_request)
    done = infer(requests, LEARNER, store, codec=small.requests, policy=BatchPolicy(64))
    trained = train(live, done.served, LEARNER, store, **codecs)

    chunks = requests | "Sharded" >> beam.Map(chunk)
    _ = chunks | "In parallel" >> ParallelUpdate(
        LEARNER, str(folder / "sharded"), publish_every=8, snapshot_every=100, poll_every=0.5
    )

    written = {
        "arrival-predicted": done.predictions,
        "arrival-learned": trained.learned,
        "arrival-failed": (done.failed, trained.failed) | "Neither" >> beam.Flatten(),
    }
    for form in ORDERED:
        written |= ordered(form, live, folder)
    for name, records in written.items():
        _ = records | f"{name}: in short" >> beam.Map(in_short) | f"{name}: write" >> FileSink(folder, name)


def ordered(form: str, given: beam.PCollection[Event], folder: Path) -> dict[str, beam.PCollection[Any]]:
    """Add a form that goes by event time; returns what it puts out."""
    settings: dict[str, Any] = {"publish_every": 50, "snapshot_every": 300}
    if form == "serial":
        done = given | "Serial" >> Small().transform(folder / form, **settings)
        own = {"serial-predicted": done.predictions, "serial-published": done.published}
    else:
        done = given | "Ordered" >> Small().trainer(folder / form, **settings)
        own = {"ordered-published": done}
    return {f"{form}-learned": done.learned, f"{form}-failed": done.failed} | own


def is_request(event: Event) -> bool:
    """Return whether an event is a request."""
    return event.kind is Kind.REQUEST


def chunk(event: Event) -> tuple[str, bytes]:
    """Return the row of a request for one of two shards."""
    row = event.row
    columns = {"user": [f"u{row % 3}"], "item": [f"i{row % 4}"]}
    return "ab"[row % 2], pack_batch(Batch(columns, np.array([float(row % 3 == row % 4)]), np.ones(1)))


def in_short(record: Any) -> list[Any]:
    """Return what is compared of a record; first whose it is."""
    if isinstance(record, Failed):
        return [record.row, record.kind, record.status]
    if isinstance(record, Published):
        return [record.version, record.digest, record.examples]
    return [record.request_id, record.label if isinstance(record, Learned) else record.score, record.version]


class Outputs:
    """What the sinks in a folder have got; a line is read once.

    Args:
        folder: of the sinks.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._seen: dict[Path, int] = {}
        self._records: dict[str, list[tuple[Any, ...]]] = {}

    def read(self, name: str) -> list[tuple[Any, ...]]:
        """Return the records of a sink."""
        records = self._records.setdefault(name, [])
        for path in self._folder.glob(f"{name}-*.jsonl"):
            with path.open() as file:
                file.seek(self._seen.get(path, 0))
                while (line := file.readline()).endswith("\n"):
                    records.append(tuple(json.loads(line)[1]))
                    self._seen[path] = file.tell()
        return records

    def ids(self, name: str) -> set[Any]:
        """Return whose records they are: the request's id, or the row of what failed."""
        return {one[0] for one in self.read(name)}

    def first_since(self, moment: float) -> float | None:
        """Return when the first prediction came of a step that was made after a moment; those before may be dying."""
        heads = [path.read_text().partition("\n")[0] for path in self._folder.glob("*-predicted-*.jsonl")]
        times = [json.loads(head)[0] for head in heads if head]
        return min((at for at in times if at > moment), default=None)


def known(folder: Path, form: str) -> int:
    """Return how many examples the newest version of a form knows."""
    newest = next(ModelStore(str(folder / form)).newest(), None)
    return newest.examples if newest else 0


class Undisturbed:
    """What the forms that go by event time come to in this process.

    A pipeline each: where two steps have timers on one PCollection, Beam's FnApiRunner fires only those of one.

    Args:
        folder: for the stores.
        workload: what they are given.
    """

    def __init__(self, folder: Path, workload: Workload) -> None:
        timed = [
            event._replace(time=round(position * MICROS / workload.rate))
            for position, event in enumerate(workload.events)
        ]
        sinks: dict[str, Sink] = {}
        for form in ORDERED:
            with beam.Pipeline() as pipeline:
                for name, records in ordered(form, pipeline | beam.Create(timed), folder).items():
                    sinks[name] = Sink()
                    _ = records | f"{name}: in short" >> beam.Map(in_short) | f"{name}: keep" >> sinks[name]
        self.outputs = {name: {tuple(one) for one in sink.elements} for name, sink in sinks.items()}


def judge(folder: Path, workload: Workload, undisturbed: Undisturbed) -> dict[str, Outcome]:
    """Return what each form has come to."""
    outputs = Outputs(folder)
    return {form: _judged(folder, outputs, form, workload, undisturbed) for form in FORMS}


def _judged(folder: Path, outputs: Outputs, form: str, workload: Workload, undisturbed: Undisturbed) -> Outcome:
    requests, ids = workload.requests, {str(row) for row in range(workload.requests)}
    examples = known(folder, form)
    found = Outcome(
        twice=max(0, examples - requests),
        lost=max(0, requests - examples),
        versions=len(ModelStore(str(folder / form)).history()),
    )
    if form in LEARNING:
        again = {(event.row, "feedback", "duplicate") for event in workload.events if event.row >= requests}
        unlearned = ids - outputs.ids(f"{form}-learned")
        misjudged = again ^ set(outputs.read(f"{form}-failed"))
        found = found._replace(unlearned=len(unlearned), misjudged=len(misjudged))
    if form in PREDICTING:
        predicted, distinct = outputs.read(f"{form}-predicted"), outputs.ids(f"{form}-predicted")
        found = found._replace(unpredicted=len(ids ^ distinct), repeated=len(predicted) - len(distinct))
    if form in ORDERED:
        published = undisturbed.outputs[f"{form}-published"]
        kept = {(one.version, one.digest, one.examples) for one in ModelStore(str(folder / form)).history()}
        changed = (set(outputs.read(f"{form}-published")) ^ published) | (kept - published)
        kinds = ("predicted", "learned") if form == "serial" else ("learned",)
        contradicting = sum(
            len(set(outputs.read(name)) ^ undisturbed.outputs[name]) for name in (f"{form}-{kind}" for kind in kinds)
        )
        found = found._replace(changed=len(changed), contradicting=contradicting)
    return found
