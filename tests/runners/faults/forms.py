"""What is under fault: every form of learning on one source.

The serial form, a trainer that goes by event time, inference and its trainer as events come, data-parallel training.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import apache_beam as beam
import numpy as np

from contbatch.pipelines.infer import infer
from contbatch.pipelines.train import train
from contbatch.transforms import BatchPolicy, Event, Failed, Learned, ParallelUpdate, Published, SparseLearner
from contbatch.transforms.events import is_request
from contbatch.transforms.io.replay import PacedReplay
from contbatch.transforms.learning.batches import Batch, pack_batch
from tests.runners.sink import FileSink
from tests.small import Small

LEARNER = SparseLearner(("user", "item"), ((("user",), ("item",)),), factors=2, bits=6)
ORDERED = ("serial", "ordered")
"""Forms that go by event time."""
FORMS = (*ORDERED, "arrival", "sharded")
PREDICTING, LEARNING = ("serial", "arrival"), ("serial", "ordered", "arrival")


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
