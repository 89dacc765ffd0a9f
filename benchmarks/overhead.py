"""``ContinuousBatch`` in a pipeline: what it costs beside ``GroupIntoBatches``, and what it keeps across windows.

Both are stateful and run on Beam's FnApiRunner in this process: 50,000 pairs of integers, batches of 32, nothing done
with them. The time is that of the whole pipeline; that of the same pipeline without batching stands beside it. Most of
it with many keys is Beam's state cache, which measures every value that it keeps, so the modules that are imported
count too: they are the same for both.
"""

from __future__ import annotations

import logging
import statistics
import sys
import time
from collections.abc import Iterable, Sized

import apache_beam as beam
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from apache_beam.transforms.util import BatchElements, GroupIntoBatches
from apache_beam.transforms.window import FixedWindows, TimestampedValue

from benchmarks.harness import Report
from contbatch.transforms import BatchPolicy, ContinuousBatch
from contbatch.transforms.testing import ManualClock, Sink

ELEMENTS, MAX_SIZE = 50_000, 32
ROUNDS = {8: 7, 5_000: 3}
"""Keys, and how often the three pipelines run, in turns."""
A, B, SLO, WINDOWS, PER_WINDOW = 0.010, 0.0002, 0.050, 4, 300


def microseconds(batching: beam.PTransform | None, keys: int) -> float:
    """Run a pipeline and return its time per element."""
    started = time.perf_counter()
    with beam.Pipeline(FnApiRunner()) as pipeline:
        numbers = pipeline | beam.Create(range(ELEMENTS), reshuffle=False)
        pairs = numbers | beam.Map(lambda number: (number % keys, number)).with_output_types(tuple[int, int])
        batches = pairs | batching if batching else pairs
        _ = batches | "End" >> beam.Map(lambda _: None)
    return (time.perf_counter() - started) / ELEMENTS * 1e6


def overhead(report: Report) -> None:
    """Time per element, three pipelines in turns."""
    microseconds(ContinuousBatch(BatchPolicy(MAX_SIZE), keyed=True), 8)  # what is imported and made at first use
    for keys, rounds in ROUNDS.items():
        taken: dict[str, list[float]] = {"ours": [], "GroupIntoBatches": [], "no batching": []}
        for number in range(rounds):
            print(f"{keys} keys, round {number + 1} of {rounds}", file=sys.stderr)
            taken["ours"].append(microseconds(ContinuousBatch(BatchPolicy(MAX_SIZE), keyed=True), keys))
            taken["GroupIntoBatches"].append(microseconds(GroupIntoBatches(MAX_SIZE), keys))
            taken["no batching"].append(microseconds(None, keys))
        median = {name: statistics.median(values) for name, values in taken.items()}
        ratios = [ours / beams for ours, beams in zip(taken["ours"], taken["GroupIntoBatches"], strict=True)]
        report.note(f"time per element, {keys:,} keys", "us", median.pop("ours"), median)
        report.at_most(f"of GroupIntoBatches' time, {keys:,} keys", "", statistics.median(ratios), 2 / 3)


class Device(beam.DoFn):
    """Takes 10 ms and 0.2 ms an element, by a clock that it moves, and returns size and seconds."""

    def __init__(self, clock: ManualClock) -> None:
        self._clock = clock

    def process(self, batch: Sized) -> Iterable[tuple[int, float]]:
        """Run a batch."""
        seconds = A + B * len(batch)
        self._clock.advance(seconds)
        yield len(batch), seconds


def kept(report: Report) -> None:
    """Four windows of 300 elements, goal 50 ms: what was learned in one serves the next."""
    ran: dict[str, list[tuple[int, float]]] = {}
    for name in ("ours", "BatchElements, stateful"):
        clock, sink = ManualClock(), Sink()
        batching: beam.PTransform = ContinuousBatch(BatchPolicy(10_000, latency_slo=SLO), shards=1, clock=clock)
        if name != "ours":
            batching = BatchElements(
                target_batch_duration_secs_including_fixed_cost=SLO, max_batch_duration_secs=1e6, clock=clock
            )
        with beam.Pipeline(FnApiRunner()) as pipeline:
            elements = pipeline | beam.Create(range(WINDOWS * PER_WINDOW), reshuffle=False)
            timed = elements | beam.Map(lambda number: TimestampedValue(number, number / PER_WINDOW))
            batches = timed | beam.WindowInto(FixedWindows(1)) | batching
            _ = batches | beam.ParDo(Device(clock)) | sink
        ran[name] = list(sink.elements)
        if sum(size for size, _ in ran[name]) != WINDOWS * PER_WINDOW:
            raise RuntimeError(f"{name} lost elements: {ran[name]}")
    count = {name: float(len(batches)) for name, batches in ran.items()}
    late = {name: float(sum(seconds > SLO + 1e-9 for _, seconds in batches)) for name, batches in ran.items()}
    best = WINDOWS * -(-PER_WINDOW // round((SLO - A) / B))
    report.at_most("batches for 4 windows of 300 in a pipeline", "", count.pop("ours"), best + 2, count)
    report.at_most("of them over 50 ms", "", late.pop("ours"), 0, late)


def main() -> int:
    """Run everything and return the exit code."""
    logging.disable(logging.WARNING)
    report = Report("overhead", ("apache-beam",))
    for part in (kept, overhead):
        print(part.__doc__, file=sys.stderr)
        part(report)
    return report.finish()


if __name__ == "__main__":
    sys.exit(main())
