"""Features of ``ContinuousInference``."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import safetensors.numpy
from apache_beam.ml.inference.base import ModelHandler, PredictionResult

from contbatch.transforms import BatchPolicy, ContinuousInference, FailedElement, ModelStore, ShedElement
from tests.runners.conformance.batching import COUNT, TIMED, deadline
from tests.runners.conformance.jobs import Cell, Job
from tests.runners.conformance.limits import BLEMISHES
from tests.runners.test_prism_inference import Doubling

SWAP_AT = 60
"""Elements after which the second version is published."""


def form(result: PredictionResult) -> list[int]:
    return [result.example, result.inference]


def form_failed(failed: FailedElement) -> list[Any]:
    return [failed.element, failed.stage, failed.error]


def form_shed(shed: ShedElement) -> list[Any]:
    return [shed.element, str(shed.reason)]


def keep(job: Job, predictions: Any) -> None:
    job.keep("predictions", predictions, form)
    job.keep("failed", predictions.failed, form_failed)
    job.keep("shed", predictions.shed, form_shed)
    job.count("predictions", predictions)


def poison(cell: Cell) -> None:
    """13 fails alone, and all the others are doubled."""

    def build(job: Job) -> None:
        keep(job, job.source(TIMED) | ContinuousInference(Doubling(), BatchPolicy(16)))

    out = cell.run(build).outputs
    assert sorted(out["predictions"]) == [[number, 2 * number] for number in range(COUNT) if number != 13]
    assert out["failed"] == [[13, "inference", "ValueError: 13"]]
    assert out["shed"] == []
    assert sum(out["predictions behind"]) == COUNT - 1


def shed(cell: Cell) -> None:
    """Every fourth element had to be answered long ago; 13 fails, in time."""

    def build(job: Job) -> None:
        keep(job, job.source(TIMED) | ContinuousInference(Doubling(), BatchPolicy(16, deadline_fn=deadline)))

    out = cell.run(build).outputs
    assert Counter(map(tuple, out["shed"])) == Counter((number, "deadline") for number in range(0, COUNT, 4))
    assert sorted(one for one, _ in out["predictions"]) == [n for n in range(COUNT) if n % 4 and n != 13]
    assert [one for one, *_ in out["failed"]] == [13]


def metrics(cell: Cell) -> None:
    """200 elements wait for full batches, and 199 of them are predicted.

    A job that is cancelled on Flink leaves no metrics, so there the input of a streaming one ends.
    """
    more = []
    if not cell.place.ends:
        cell = replace(cell, place=replace(cell.place, ends=True), input="bounded")
        more = ["--shutdown_sources_after_idle_ms=1000"]

    def build(job: Job) -> None:
        keep(job, job.source(TIMED) | ContinuousInference(Doubling(), BatchPolicy(16), max_delay=5.0))

    done = cell.run(build, *more)
    counters = done.counters
    assert len(done.outputs["predictions"]) == COUNT - 1
    assert counters.get("shed", 0) == 0
    found = [counters[name] for name in ("predicted", "failed", "batched")]
    if (cell.place.name, "metrics", cell.input) in BLEMISHES:
        assert all(0 < count <= all_of_them for count, all_of_them in zip(found, [COUNT - 1, 1, COUNT], strict=True))
    else:
        assert found == [COUNT - 1, 1, COUNT]
    assert counters["released_size"] > 0


class Weighing(ModelHandler):
    """Multiplies by its weights, which are all the same unless they are torn; its own work publishes version 0.2."""

    def __init__(self, root: str) -> None:
        super().__init__()
        self._root = root
        self._path = ""

    def update_model_path(self, model_path: str | None = None) -> None:
        self._path = model_path or self._path

    def load_model(self) -> Any:
        return safetensors.numpy.load_file(self._path)

    def run_inference(self, batch: Sequence[int], model: Any, inference_args: Any = None) -> list[PredictionResult]:
        if max(batch) >= SWAP_AT:
            publish(self._root, 2)
        time.sleep(0.02)
        low, high = model["weights"].min(), model["weights"].max()
        return [PredictionResult(one, [int(low), int(high)]) for one in batch]


def publish(root: str, step: int) -> None:
    """Publish a version whose weights are its number; again, it is the same."""
    store = ModelStore(root)
    if any(manifest.step == step for manifest in store.versions()):
        return
    about = {"parent": None, "examples": step, "loss": 0.0, "time": step, "config": {}}
    store.publish({"weights": np.full(10_000, step)}, model="", epoch=0, step=step, **about)


def form_version(result: PredictionResult) -> list[Any]:
    return [result.example, result.inference, result.model_id]


def hot_swap(cell: Cell) -> None:
    """Both versions serve, every prediction is whole and says rightly who made it, and none goes back in time."""
    root = str(cell.folder / "store")
    publish(root, 1)

    def build(job: Job) -> None:
        transform = ContinuousInference(Weighing(root), BatchPolicy(4), versions=ModelStore(root), poll=0.02)
        job.keep("predictions", job.source(TIMED, step=0.5) | transform, form_version)

    predictions = cell.run(build).outputs["predictions"]
    assert sorted(one for one, *_ in predictions) == list(range(COUNT))
    assert all(weights == [int(version.removeprefix("0."))] * 2 for _, weights, version in predictions)
    by_version = Counter(version for *_, version in predictions)
    assert by_version.keys() == {"0.1", "0.2"}
    assert by_version["0.1"] >= SWAP_AT
