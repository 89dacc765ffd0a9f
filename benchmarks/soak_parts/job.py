"""The job of the soak: events that are made when they are due, predicted and learned by the package's own pipelines.

Run on Prism as ``python -m benchmarks.soak_parts.job FOLDER COUNT RATE PRISM``.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import apache_beam as beam

from contbatch.pipelines.infer import infer
from contbatch.pipelines.options import pipeline_options
from contbatch.pipelines.train import train
from contbatch.transforms import BatchPolicy, Event, Failed, Kind, Learned, Prediction, SparseLearner
from contbatch.transforms.events import MICROS, is_request
from contbatch.transforms.io.replay import PacedEvents
from tests.runners.sink import FileFn
from tests.small import Small

USERS, ITEMS, DELAY, TTL = 2_000, 5_000, 500, 30.0
"""How many there are; requests between one and its label; seconds for which ids are remembered."""

REQUESTS, FEEDBACK = Small.requests, Small.feedback


def learner() -> SparseLearner:
    """Return the model: 4,096 slots, each with a weight and four factors."""
    return SparseLearner(("user", "item"), ((("user",), ("item",)),), bits=12, factors=4)


def make(place: int) -> Event:
    """Return an event: requests and labels in turn, a label for the request of ``DELAY`` turns before.

    In the first turns there is no such request, and another one in the label's place, which never has a label.
    """
    turn = place // 2
    if place % 2 and turn >= DELAY:
        row = turn - DELAY
        label = float(_mixed(row) % USERS % 3 == _mixed(row + 1) % ITEMS % 3)
        return Event(0, Kind.FEEDBACK, row, FEEDBACK.encode({"request_id": str(row), "label": label}))
    name = f"first-{turn}" if place % 2 else str(turn)
    fields = {"user": f"u{_mixed(turn) % USERS}", "item": f"i{_mixed(turn + 1) % ITEMS}"}
    return Event(0, Kind.REQUEST, turn, REQUESTS.encode({"request_id": name} | fields))


def expected(count: int) -> dict[str, int]:
    """Return how many requests and labels so many events are."""
    labels = max(0, count // 2 - DELAY)
    return {"requests": count - labels, "labels": labels}


def _mixed(number: int) -> int:
    return (number * 2_654_435_761 + 12_345) % 2**32 >> 7


def build(pipeline: beam.Pipeline, folder: Path, count: int, rate: float, rest: float) -> None:
    """Add the job to a pipeline."""
    store, codecs = str(folder / "store"), {"requests": REQUESTS, "feedback": FEEDBACK}
    events = pipeline | PacedEvents(make, count, rate, rest)
    requests = events | "Requests" >> beam.Filter(is_request)
    done = infer(requests, learner(), store, codec=REQUESTS, policy=BatchPolicy(256))
    trained = train(events, done.served, learner(), store, ttl=TTL, **codecs)
    for name, records in (
        ("predicted", done.predictions),
        ("learned", trained.learned),
        ("failed-requests", done.failed),
        ("failed-labels", trained.failed),
    ):
        _ = records | f"Tally {name}" >> beam.ParDo(TallyFn(str(folder), name)).with_output_types(None)


class TallyFn(FileFn):
    """Writes a line for a bundle: when each prediction or label was due, and by how much later it came out, in ms."""

    def start_bundle(self) -> None:
        """Start empty."""
        self._rows: list[tuple[int, int]] = []

    def process(self, record: Prediction | Learned | Failed) -> None:
        """Note a record."""
        due = record.request_time if isinstance(record, Prediction) else record.time
        self._rows.append((due // MICROS, round(time.time() * 1e3 - due / 1e3)))

    def finish_bundle(self) -> None:
        """Write them down."""
        self.append(json.dumps(self._rows) + "\n")


def main(folder: str, count: str, rate: str, prism: str) -> None:
    """Run the job on Prism."""
    options = pipeline_options(["--runner=PrismRunner", f"--prism_location={prism}"], streaming=True)
    with beam.Pipeline(options=options) as pipeline:
        build(pipeline, Path(folder), int(count), float(rate), 0.02)


if __name__ == "__main__":
    main(*sys.argv[1:])
