"""What a transform costs the processor for each element, beside Beam's two ways."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import apache_beam as beam
from apache_beam.metrics import Metrics, MetricsFilter
from apache_beam.ml.inference.base import ModelHandler, PredictionResult, RunInference

from benchmarks.harness import Report
from benchmarks.inference_parts.driving import Model, progress
from benchmarks.inference_parts.runners import Make, fn_api, prism
from contbatch.transforms import BatchPolicy
from contbatch.transforms.inference import ContinuousInference
from tests.runners.binaries import prism_location

FEW, MANY = 20_000, 150_000
ROUNDS = {"FnApiRunner": 5, "Prism": 3}
MAX_SIZE = 256
MORE, SHARE = 5.0, 0.5
"""Goals: microseconds above the stateless path, and a share of the path with a duration."""


class TrivialHandler(ModelHandler):
    """Predicts each element itself."""

    def load_model(self) -> Model:
        """Return a model that nobody looks at."""
        return Model()

    def run_inference(self, batch: Sequence[Any], model: Any, inference_args: Any = None) -> list[PredictionResult]:
        """Return the elements."""
        return [PredictionResult(element, element) for element in batch]

    def get_num_bytes(self, batch: Sequence[Any]) -> int:
        """Return eight for each; Beam's own pickles the batch."""
        return 8 * len(batch)


class Count(beam.DoFn):
    """Counts what comes out."""

    def __init__(self) -> None:
        self._seen = Metrics.counter("benchmark", "seen")

    def start_bundle(self) -> None:
        """Begin at 0."""
        self._here = 0

    def process(self, element: Any) -> None:
        """Count one."""
        self._here += 1

    def finish_bundle(self) -> None:
        """Tell."""
        self._seen.inc(self._here)


TRANSFORMS: dict[str, Callable[[], beam.PTransform]] = {
    "ours": lambda: ContinuousInference(TrivialHandler(), BatchPolicy(MAX_SIZE)),
    "RunInference": lambda: RunInference(TrivialHandler(max_batch_size=MAX_SIZE)),
    "RunInference, with a duration": lambda: RunInference(
        TrivialHandler(max_batch_size=MAX_SIZE, max_batch_duration_secs=1)
    ),
}


def seconds(make: Make, transform: beam.PTransform, elements: int) -> float:
    """Return the CPU seconds of this process for a pipeline of integers.

    Raises:
        RuntimeError: not all came out.
    """
    started = time.process_time()
    pipeline = make()
    numbers = pipeline | beam.Create(range(elements), reshuffle=False)
    _ = numbers | transform | "Count" >> beam.ParDo(Count())
    result = pipeline.run()
    result.wait_until_finish()
    taken = time.process_time() - started
    counted = result.metrics().query(MetricsFilter().with_namespace("benchmark").with_name("seen"))["counters"]
    if [count.result for count in counted] != [elements]:
        raise RuntimeError(f"{counted} of {elements} elements came out")
    return taken


def cost(report: Report) -> None:
    """CPU per element on both runners: the slope between few elements and many."""
    for runner, make in (("FnApiRunner", fn_api), ("Prism", prism)):
        if runner == "Prism" and prism_location() is None:
            median: dict[str, float | None] = dict.fromkeys(TRANSFORMS)
        else:
            median = slopes(runner, make)
        ours, stateless, lasting = (median[name] for name in TRANSFORMS)
        others = {name: value for name, value in median.items() if name != "ours"}
        report.note(f"CPU per element on {runner}", "us", ours, others)
        missing = ours is None or stateless is None or lasting is None
        more, share = (None, None) if missing else (ours - stateless, ours / lasting)
        report.at_most(f"more than RunInference's, {runner}", "us", more, MORE)
        report.at_most(f"of RunInference's with a duration, {runner}", "", share, SHARE)


def slopes(runner: str, make: Make) -> dict[str, float | None]:
    """Return the microseconds per element of each transform: the median of rounds in turns."""
    taken: dict[str, list[float]] = {name: [] for name in TRANSFORMS}
    for transform in TRANSFORMS.values():
        seconds(make, transform(), 1000)  # what is imported and made at first use
    for number in range(ROUNDS[runner]):
        progress(f"CPU per element on {runner}, round {number + 1} of {ROUNDS[runner]}")
        for name, transform in TRANSFORMS.items():
            few, many = (seconds(make, transform(), elements) for elements in (FEW, MANY))
            taken[name].append((many - few) / (MANY - FEW) * 1e6)
    return {name: statistics.median(values) for name, values in taken.items()}
