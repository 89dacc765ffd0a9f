"""End-to-end latency of live streams on Prism and on a real Flink cluster."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import apache_beam as beam
import numpy as np
from apache_beam.options.pipeline_options import PipelineOptions

from benchmarks.harness import Report
from benchmarks.inference_parts.driving import progress
from benchmarks.runners_parts.paths import OURS, PATHS, STATEFUL, WARM_UP, build, folder_of, latencies
from contbatch.pipelines.options import pipeline_options
from tests.runners.binaries import prism_binary
from tests.runners.cluster import LIVE, FlinkCluster
from tests.runners.sink import FileSink

RATES = (100, 1_000)
SECONDS = 16.0
"""Seconds of each stream that count."""
PRISM_P99 = 150.0
HALF, THIRD = 0.5, 1 / 3
"""Goals: milliseconds on Prism; on Flink our p50 and p99 as shares of the best path with state."""
BUNDLE = "--max_bundle_time_mills=20"
"""For every path on Flink. Our default is 50: latency is about twice as long, for fewer bundles."""
PATIENCE = 120.0

Figures = tuple[float, float]
"""Milliseconds: p50 and p99."""


def on_prism(report: Report) -> None:
    """Latency on Prism, 100 and 1,000 elements a second."""
    found = {}
    with tempfile.TemporaryDirectory() as root:
        for rate in RATES:
            for path in PATHS:
                progress(f"Prism, {rate} a second: {path}")
                found[path, rate] = _prism(Path(root) / str(rate), path, rate)
    for rate in RATES:
        ours, others = _split(found, rate)
        report.at_most(
            f"Prism, {rate:,}/s: p99", "ms", ours[1], PRISM_P99, {name: p99 for name, (_, p99) in others.items()}
        )
        report.note(f"Prism, {rate:,}/s: p50", "ms", ours[0], {name: p50 for name, (p50, _) in others.items()})


def on_flink(report: Report) -> None:
    """Latency on Flink 1.19, 100 and 1,000 elements a second."""
    found = {}
    with ExitStack() as stack:
        root = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        (root / "cluster").mkdir()
        cluster = FlinkCluster(root / "cluster", stack)
        for rate in RATES:
            for path in PATHS:
                progress(f"Flink, {rate} a second: {path}")
                found[path, rate] = _flink(cluster, root / str(rate), path, rate)
    for rate in RATES:
        ours, others = _split(found, rate)
        for at, (name, share) in enumerate((("p50", HALF), ("p99", THIRD))):
            mine, *beams = (others[path][at] for path in STATEFUL)
            report.note(
                f"Flink, {rate:,}/s: {name}", "ms", ours[at], {other: them[at] for other, them in others.items()}
            )
            report.at_most(f"of Beam's best with state, Flink, {rate:,}/s: {name}", "", ours[at] / min(beams), share)
            report.at_most(f"of our own with state, Flink, {rate:,}/s: {name}", "", ours[at] / mine, share)


def _split(found: dict[tuple[str, int], Figures], rate: int) -> tuple[Figures, dict[str, Figures]]:
    """Return ours and the others' of a rate."""
    of_rate = {path: figures for (path, of), figures in found.items() if of == rate}
    return of_rate.pop(OURS), of_rate


def _prism(root: Path, path: str, rate: int) -> Figures:
    count = round((WARM_UP + SECONDS) * rate)
    sink = FileSink(folder_of(root, path))
    options = pipeline_options(["--runner=PrismRunner", f"--prism_location={prism_binary()}"], streaming=True)
    with beam.Pipeline(options=options) as pipeline:
        build(pipeline, path, count, rate, sink)
    return _figures(latencies(sink, count, rate))


def _flink(cluster: FlinkCluster, root: Path, path: str, rate: int) -> Figures:
    count = round((WARM_UP + SECONDS) * rate)
    sink = FileSink(folder_of(root, path))
    with cluster.flags(*LIVE, BUNDLE) as flags:
        pipeline = beam.Pipeline(options=PipelineOptions(flags))
        build(pipeline, path, count, rate, sink)
        with _running(cluster, pipeline):
            end = time.monotonic() + WARM_UP + SECONDS + PATIENCE
            while len(sink.read()) < count and time.monotonic() < end:
                time.sleep(1.0)
    return _figures(latencies(sink, count, rate))


@contextmanager
def _running(cluster: FlinkCluster, pipeline: beam.Pipeline) -> Iterator[None]:
    """Run a job, and cancel it: with checkpoints on it stays when its source has ended."""
    pipeline.run()
    try:
        yield
    finally:
        for job in cluster.flink.jobs():
            if not job.ended:
                cluster.cancel(job.id)


def _figures(waits: np.ndarray) -> Figures:
    return float(np.percentile(waits, 50)), float(np.percentile(waits, 99))
