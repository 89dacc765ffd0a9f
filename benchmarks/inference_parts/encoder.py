"""A padded encoder on elements of very different lengths, beside all of RunInference's ways to batch."""

from __future__ import annotations

import statistics
import time
from typing import Any

import apache_beam as beam
import numpy as np
import torch
from apache_beam.ml.inference.base import PredictionResult, RunInference
from apache_beam.testing.benchmarks import sort_and_batch_benchmark as beams

from benchmarks.harness import Report
from benchmarks.inference_parts.driving import progress
from benchmarks.inference_parts.runners import fn_api
from benchmarks.models import VOCABULARY, Encoder
from contbatch.transforms import BatchPolicy
from contbatch.transforms.handlers.torch import TorchModelHandler
from contbatch.transforms.inference import ContinuousInference
from contbatch.transforms.testing import Sink

ELEMENTS, MAX_SIZE, SEED, ROUNDS = 4_000, 32, 42, 3
FOREVER = 1e6
"""Seconds for which the stateful ways may wait: no batch of a bounded input has to leave early."""
COUNTED, BUCKETED, APART = 3.0, 1.3, 1e-5
"""Goals: of the better way that counts, of the one that knows lengths, and the largest difference of an output."""


def length(element: np.ndarray) -> int:
    """Return how many tokens an element has."""
    return len(element)


def work(element: np.ndarray) -> float:
    """Return an element's work in tokens: linear layers of 12 * 128**2 a token, attention of 2 * 128 a pair of them."""
    return len(element) * (1 + len(element) / 768)


def handler(**batching: Any) -> TorchModelHandler:
    """Return the handler of all, with Beam's arguments of batching."""
    return TorchModelHandler(Encoder, pad=True, **batching)


def transforms() -> dict[str, beam.PTransform]:
    """Return what is compared."""
    return {
        "ours": ContinuousInference(handler(), BatchPolicy(MAX_SIZE, length_fn=work)),
        "RunInference": RunInference(handler(max_batch_size=MAX_SIZE)),
        "RunInference, with a duration": RunInference(
            handler(max_batch_size=MAX_SIZE, max_batch_duration_secs=FOREVER)
        ),
        "RunInference, length buckets": RunInference(
            handler(max_batch_size=MAX_SIZE, max_batch_duration_secs=FOREVER, batch_length_fn=length)
        ),
    }


def run(transform: beam.PTransform, elements: list[np.ndarray]) -> tuple[float, list[PredictionResult]]:
    """Return the seconds of a pipeline and what came out.

    Raises:
        RuntimeError: not all came out.
    """
    sink, started = Sink(), time.perf_counter()
    with fn_api() as pipeline:
        _ = pipeline | beam.Create(elements, reshuffle=False) | transform | sink
    taken, results = time.perf_counter() - started, list(sink.elements)
    if sorted(len(result.example) for result in results) != sorted(map(len, elements)):
        raise RuntimeError(f"{len(results)} results for {len(elements)} elements, or for others")
    return taken, results


def encoder(report: Report) -> None:
    """Time per element, and whether all give the same."""
    torch.set_num_threads(1)
    tokens = np.random.default_rng(SEED)
    lengths = [len(text) for text in beams.generate_highly_skewed_data(ELEMENTS, seed=SEED)]
    elements = [tokens.integers(VOCABULARY, size=length) for length in lengths]
    taken: dict[str, list[float]] = {}
    outputs: dict[str, dict[bytes, np.ndarray]] = {}
    for name, transform in transforms().items():
        run(transform, elements[:200])
        taken[name] = []
    for number in range(ROUNDS):
        for name, transform in transforms().items():
            progress(f"encoder, round {number + 1} of {ROUNDS}, {name}")
            seconds, results = run(transform, elements)
            taken[name].append(seconds / ELEMENTS * 1e6)
            outputs[name] = {result.example.tobytes(): result.inference.numpy() for result in results}
    median = {name: statistics.median(values) for name, values in taken.items()}
    ours, counted, lasting, bucketed = median.values()
    apart = {
        name: max(float(abs(outputs["ours"][key] - row).max()) for key, row in rows.items())
        for name, rows in outputs.items()
    }
    del apart["ours"], median["ours"]
    report.note("encoder, Pareto lengths: time per element", "us", ours, median)
    report.at_least("faster than the better way that counts", "x", min(counted, lasting) / ours, COUNTED)
    report.at_least("faster than length buckets", "x", bucketed / ours, BUCKETED)
    report.at_most("largest difference of an output", "", max(apart.values()), APART, apart)
