"""ContinuousBatch on a real Prism: nothing lost, in the batches or in the aggregation behind them."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import apache_beam as beam
import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.testing.test_stream import TestStream as Script
from apache_beam.transforms.window import FixedWindows, TimestampedValue

from contbatch.transforms import BatchPolicy, ContinuousBatch
from contbatch.transforms.testing import Sink

pytestmark = pytest.mark.needs("go")

COUNT = 200
POLICIES = {
    "delay": BatchPolicy(16, 0.2),
    "no delay": BatchPolicy(16, math.inf),
    "deadline": BatchPolicy(16, latency_slo=5.0),
    "event time": BatchPolicy(16, 3.0, time_domain="event_time"),
}


@pytest.mark.parametrize("windowed", [False, True])
@pytest.mark.parametrize("live", [False, True])
@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES.keys())
def test_nothing_is_lost_or_late(prism: str, policy: BatchPolicy, live: bool, windowed: bool) -> None:
    kept, counted = Sink(), Sink()
    with beam.Pipeline(options=on_prism(prism, live)) as pipeline:
        elements = pipeline | (script() if live else beam.Create(range(COUNT)))
        elements |= beam.Map(lambda number: TimestampedValue((f"k{number % 3}", number), number / 2))
        if windowed:
            elements |= "Window" >> beam.WindowInto(FixedWindows(30))
        done = elements | ContinuousBatch(policy, keyed=True)
        every = [done, done.shed] | beam.Flatten()
        _ = every | "Keep" >> kept
        sizes = every | beam.MapTuple(lambda _, batch: len(batch)) | beam.WindowInto(FixedWindows(1))
        _ = sizes | beam.CombineGlobally(sum).without_defaults() | "Count" >> counted
    check(kept.elements, windowed)
    assert sum(counted.elements) == COUNT


def on_prism(prism: str, live: bool) -> PipelineOptions:
    """Return the options of a pipeline on a Prism of its own."""
    return PipelineOptions(
        [],
        runner="PrismRunner",
        streaming=live,
        prism_location=prism,
        experiments=["disable_prism_server_singleton"],
    )


def script() -> Script:
    """Return an input whose watermark follows it in steps of 5 s of event time."""
    script = Script()
    for start in range(0, COUNT, 10):
        numbers = range(start, start + 10)
        script.add_elements([TimestampedValue(number, number / 2) for number in numbers])
        script.advance_watermark_to((start + 10) / 2)
    return script.advance_watermark_to_infinity()


def check(batches: list[Any], windowed: bool) -> None:
    assert Counter(number for _, batch in batches for number in batch) == Counter(range(COUNT))
    for key, batch in batches:
        assert {f"k{number % 3}" for number in batch} == {key}
        assert len(batch) <= 16
        assert not windowed or len({number // 60 for number in batch}) == 1
