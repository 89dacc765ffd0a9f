"""A paced source on Prism: what comes in is fused with the model, and Prism decides how much makes a bundle."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from typing import Any

import apache_beam as beam
import numpy as np
from apache_beam.io.restriction_trackers import OffsetRange, OffsetRestrictionTracker
from apache_beam.ml.inference.base import RunInference
from apache_beam.transforms.core import RestrictionProvider
from apache_beam.transforms.window import TimestampedValue
from apache_beam.utils.timestamp import Duration

from benchmarks.harness import Report
from benchmarks.inference_parts.driving import DEVICE, DeviceHandler, progress
from benchmarks.inference_parts.runners import prism
from contbatch.transforms import BatchPolicy
from contbatch.transforms.inference import ContinuousInference
from contbatch.transforms.testing import Sink
from tests.runners.binaries import prism_location

SHARDS, ELEMENTS = 8, 1_600
DEVICES = {0.010: 400, 0.060: 300}
"""Seconds of a batch, besides 0.1 ms for each element, and elements a second."""
MAX_SIZE = 256
_STARTED: dict[str, float] = {}
"""When the first call of a run's source was, in this process."""


class Numbers(RestrictionProvider):
    """Each shard has every eighth number."""

    def initial_restriction(self, element: int) -> OffsetRange:
        """Return all of a shard's."""
        return OffsetRange(0, ELEMENTS // SHARDS)

    def create_tracker(self, restriction: OffsetRange) -> OffsetRestrictionTracker:
        """Return Beam's own."""
        return OffsetRestrictionTracker(restriction)

    def restriction_size(self, element: int, restriction: OffsetRange) -> int:
        """Return how many are left."""
        return restriction.size()


_NUMBERS = beam.DoFn.RestrictionParam(Numbers())


class Paced(beam.DoFn):
    """Gives the scheduled arrivals that are due, and asks to be called again when the next one is."""

    def __init__(self, name: str, rate: float) -> None:
        self._name = name
        self._rate = rate

    @beam.DoFn.unbounded_per_element()
    def process(self, shard: int, tracker: Any = _NUMBERS) -> Iterator[Any]:
        """Give what is due."""
        started = _STARTED.setdefault(self._name, time.time())
        number = tracker.current_restriction().start
        while True:
            due = started + (number * SHARDS + shard) / self._rate
            left = due - time.time()
            if left > 0:
                tracker.defer_remainder(Duration(left))
                return
            if not tracker.try_claim(number):
                return
            yield TimestampedValue(due, due)
            number += 1


def latency(result: Any) -> float:
    """Return the seconds from the arrival."""
    return time.time() - result.example


def paced(report: Report) -> None:
    """As measured, on either device."""
    for fixed, rate in DEVICES.items():
        batch: dict[str, float | None] = {}
        p50: dict[str, float | None] = {}
        for name in ("ours", "RunInference"):
            progress(f"paced on Prism, a device of {fixed * 1e3:.0f} ms, {name}")
            batch[name], p50[name] = run(f"{name} {fixed}", fixed, rate, name == "ours")
        measure = f"{fixed * 1e3:.0f} ms device, {rate}/s on Prism"
        report.note(f"{measure}: mean batch", "", batch.pop("ours"), batch)
        report.note(f"{measure}: p50 latency", "ms", p50.pop("ours"), p50)


def run(name: str, fixed: float, rate: float, ours: bool) -> tuple[float | None, float | None]:
    """Return the mean batch and the median latency in milliseconds; nothing without Prism.

    Raises:
        RuntimeError: not all came out.
    """
    if prism_location() is None:
        return None, None
    handler, sink = DeviceHandler(fixed), Sink()
    infer = ContinuousInference(handler, BatchPolicy(MAX_SIZE)) if ours else RunInference(handler)
    _STARTED.pop(name, None)
    pipeline = prism()
    shards = pipeline | beam.Create(range(SHARDS), reshuffle=False)
    _ = shards | beam.ParDo(Paced(name, rate)) | infer | beam.Map(latency) | sink
    pipeline.run().wait_until_finish()
    if len(sink.elements) != ELEMENTS:
        raise RuntimeError(f"{len(sink.elements)} of {ELEMENTS} elements came out")
    return statistics.mean(DEVICE.reset()), float(np.median(sink.elements)) * 1e3
