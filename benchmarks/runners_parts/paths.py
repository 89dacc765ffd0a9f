"""The ways from a paced source through a model to a sink, and the latency that each has."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import apache_beam as beam
import numpy as np
from apache_beam.ml.inference.base import ModelHandler, PredictionResult, RunInference

from benchmarks.inference_parts.driving import Model
from contbatch.transforms import BatchPolicy, ContinuousInference, Event, Kind
from contbatch.transforms.events import MICROS
from contbatch.transforms.io.replay import PacedReplay
from tests.runners.sink import FileSink

MAX_SIZE = 64
DEADLINE = 0.05
"""Seconds that an element may wait for a batch in the paths that keep state."""
FIXED, EACH = 0.005, 0.00005
"""Seconds of a batch on the device, and of each of its elements."""
WARM_UP = 4.0
"""Seconds whose elements are not counted: imports, first bundles, the model's load."""


class DeviceHandler(ModelHandler):
    """A device that takes its time and no processor."""

    def load_model(self) -> Model:
        """Return a model that nobody looks at."""
        return Model()

    def run_inference(self, batch: Sequence[Any], model: Any, inference_args: Any = None) -> list[PredictionResult]:
        """Return the elements after a batch's time."""
        time.sleep(FIXED + EACH * len(batch))
        return [PredictionResult(element, element) for element in batch]

    def get_num_bytes(self, batch: Sequence[Any]) -> int:
        """Return eight for each; Beam's own pickles the batch."""
        return 8 * len(batch)


class _BatchFn(beam.DoFn):
    """What people write behind ``GroupIntoBatches``."""

    def setup(self) -> None:
        self._handler = DeviceHandler()

    def process(self, element: tuple[int, Sequence[Any]]) -> Iterator[PredictionResult]:
        yield from self._handler.run_inference([*element[1]], None)


class _GroupedInference(beam.PTransform):
    """``GroupIntoBatches`` with the same bounds, one key, and the model behind it."""

    def expand(self, elements: beam.PCollection[Event]) -> beam.PCollection[PredictionResult]:
        keyed = elements | "Key" >> beam.Map(lambda event: (0, event))
        batches = keyed | beam.GroupIntoBatches(MAX_SIZE, max_buffering_duration_secs=DEADLINE)
        return batches | "Model" >> beam.ParDo(_BatchFn())


OURS = "ContinuousInference"
STATEFUL = ("ContinuousInference, max_delay", "GroupIntoBatches", "RunInference, with a duration")
"""The paths that keep elements in the runner's state until a batch is full or its time is up."""
PATHS: dict[str, Callable[[], beam.PTransform]] = {
    OURS: lambda: ContinuousInference(DeviceHandler(), BatchPolicy(MAX_SIZE)),
    STATEFUL[0]: lambda: ContinuousInference(DeviceHandler(), BatchPolicy(MAX_SIZE), max_delay=DEADLINE),
    STATEFUL[1]: _GroupedInference,
    STATEFUL[2]: lambda: RunInference(DeviceHandler(max_batch_size=MAX_SIZE, max_batch_duration_secs=DEADLINE)),
    "RunInference": lambda: RunInference(DeviceHandler(max_batch_size=MAX_SIZE)),
}


def build(pipeline: beam.Pipeline, path: str, count: int, rate: float, sink: FileSink) -> None:
    """Add a path to a pipeline: source, model, sink."""
    events = pipeline | PacedReplay(partial(requests, count), count, rate)
    _ = events | "Path" >> PATHS[path]() | "Due" >> beam.Map(_due) | sink


def requests(count: int) -> list[Event]:
    """Return as many requests."""
    return [Event(number, Kind.REQUEST, number, b"") for number in range(count)]


def _due(result: PredictionResult) -> list[int]:
    return [result.example.row, result.example.time]


def latencies(sink: FileSink, count: int, rate: float) -> np.ndarray:
    """Return milliseconds from when an element was due to when its result reached the sink, warm-up left out.

    Raises:
        RuntimeError: not all came out.
    """
    arrived: dict[int, tuple[float, int]] = {}
    for at, (row, due) in sink.read_timed():
        arrived.setdefault(row, (at, due))
    if len(arrived) != count:
        raise RuntimeError(f"{len(arrived)} of {count} elements came out")
    return np.array([1e3 * (at - due / MICROS) for row, (at, due) in arrived.items() if row >= WARM_UP * rate])


def folder_of(root: Path, path: str) -> Path:
    """Return a folder for what a path puts out."""
    return root / path.replace(" ", "").replace(",", "-")
