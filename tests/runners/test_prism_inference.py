"""ContinuousInference on a real Prism: everything once, in its window, and in the aggregation behind it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import apache_beam as beam
import pytest
from apache_beam.ml.inference.base import KeyedModelHandler, ModelHandler, PredictionResult
from apache_beam.transforms.window import FixedWindows, TimestampedValue

from contbatch.transforms import BatchPolicy, ContinuousInference
from contbatch.transforms.testing import Sink
from tests.runners.test_prism_batch import COUNT, on_prism, script

pytestmark = pytest.mark.needs("go")


class Doubling(ModelHandler):
    """Doubles numbers; 13 fails, and whatever is in a batch with it."""

    def load_model(self) -> Any:
        return object()

    def run_inference(self, batch: Sequence[int], model: Any, inference_args: Any = None) -> Any:
        if 13 in batch:
            raise ValueError("13")
        return [PredictionResult(one, 2 * one) for one in batch]


@pytest.mark.parametrize("max_delay", [None, 0.1])
@pytest.mark.parametrize("live", [False, True])
def test_nothing_is_lost_or_late(prism: str, live: bool, max_delay: float | None) -> None:
    kept, failed, counted = Sink(), Sink(), Sink()
    with beam.Pipeline(options=on_prism(prism, live)) as pipeline:
        elements = pipeline | (script() if live else beam.Create(range(COUNT)))
        elements |= beam.Map(lambda number: TimestampedValue((f"k{number % 3}", number), number / 2))
        elements |= "Window" >> beam.WindowInto(FixedWindows(30))
        done = elements | ContinuousInference(KeyedModelHandler(Doubling()), BatchPolicy(16), max_delay=max_delay)
        _ = done | "Keep" >> kept
        _ = done.failed | "Failed" >> failed
        _ = done | beam.combiners.Count.Globally().without_defaults() | "Count" >> counted
    assert Counter(result.example for _, result in kept.elements) == Counter(set(range(COUNT)) - {13})
    for key, result in kept.elements:
        assert (key, result.inference) == (f"k{result.example % 3}", 2 * result.example)
    assert [one.element[1] for one in failed.elements] == [13]
    # windows of 30 s hold 60 numbers, the last one 20
    assert sorted(counted.elements) == [20, 59, 60, 60]
