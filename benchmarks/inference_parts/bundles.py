"""Small bundles from several threads: throughput of bundles of one, and latency on a slow device."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence

from benchmarks.harness import Report
from benchmarks.inference_parts.driving import (
    DEVICE,
    DeviceHandler,
    Latencies,
    Ours,
    Side,
    Theirs,
    closed_loop,
    open_loop,
    progress,
)
from contbatch.transforms import BatchPolicy

THREADS = 8
FAST, SLOW = 0.010, 0.060
"""Seconds of a batch on either device, besides 0.1 ms for each element."""
SECONDS = 4.0
RATE, ELEMENTS = 300, 3_000
MAX_SIZE = 256


def idle(report: Report) -> None:
    """Let an engine have nothing to do."""
    side = Ours(DeviceHandler(0.0), BatchPolicy(MAX_SIZE))
    side.setup()
    list(side.bundle([(0, 0)]))
    before = time.process_time()
    time.sleep(SECONDS)
    report.at_most("processor that an idle engine uses", "%", 100 * (time.process_time() - before) / SECONDS, 1)
    side.teardown()
    DEVICE.reset()


def bundles_of_one(report: Report) -> None:
    """Eight threads, one element a bundle, a device of 10 ms."""
    rate = {}
    for name, side in (
        ("ours", Ours(DeviceHandler(FAST), BatchPolicy(MAX_SIZE))),
        ("RunInference", Theirs(DeviceHandler(FAST))),
    ):
        progress(f"bundles of one, {name}")
        rate[name] = closed_loop(side, THREADS, SECONDS)
    DEVICE.reset()
    ours, theirs = rate["ours"], rate["RunInference"]
    report.note("bundles of one, 8 threads: throughput", "/s", ours, {"RunInference": theirs})
    report.at_least("of RunInference's throughput", "x", ours / theirs, 4)


def slow_device(report: Report) -> None:
    """Eight threads, 300 elements a second, a device of 60 ms: in bundles of ten, and of what has come."""
    schedule = [number / RATE for number in range(ELEMENTS)]
    for bundles, least, most in (("bundles of 10", 10, 10), ("bundles of what has come", 1, ELEMENTS)):
        batch: dict[str, float] = {}
        latency: dict[str, Latencies] = {}
        sides: Sequence[tuple[str, Side]] = (
            ("ours", Ours(DeviceHandler(SLOW), BatchPolicy(MAX_SIZE))),
            ("RunInference", Theirs(DeviceHandler(SLOW))),
        )
        for name, side in sides:
            progress(f"slow device, {bundles}, {name}")
            latency[name] = open_loop(side, THREADS, schedule, range(ELEMENTS), least, most)
            if [result.inference for result in latency[name].results] != list(range(ELEMENTS)):
                raise RuntimeError(f"{name} gave an element another one's result")
            batch[name] = statistics.mean(DEVICE.reset())
        theirs = batch.pop("RunInference")
        measure = f"slow device, {bundles}"
        report.at_least(f"{measure}: mean batch", "", batch["ours"], theirs, {"RunInference": theirs})
        for percent in (50, 99):
            theirs = latency["RunInference"].percentile(percent)
            ours = latency["ours"].percentile(percent)
            report.at_most(f"{measure}: p{percent} latency", "ms", ours, theirs, {"RunInference": theirs})
