"""What a job has come to whose processes were killed, beside what it should.

The forms that go by event time have to come, bit by bit, to what the same events come to in a process that nobody
disturbs; the others have to count every label once.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import apache_beam as beam

from contbatch.transforms import ModelStore
from contbatch.transforms.events import MICROS
from contbatch.transforms.testing import Sink
from tests.runners.faults.forms import FORMS, LEARNING, ORDERED, PREDICTING, Workload, in_short, ordered


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
