"""The long soak: inference and its trainer, live, at a steady rate on Prism and on Flink, to see what grows.

``python -m benchmarks.soak [--minutes 20] [--rate 1000] prism|flink|both``; half of the events are requests, half
labels. Everything is sampled 240 times while the source runs: resident memory of every process, size of Flink's newest
checkpoint (one every 5 s), files of the model store. The first quarter is warm-up. A series is flat if the median of
the last quarter is at most 5 % above that of the second; a heap has a grain, so 20 MB of memory and 1 MB of checkpoint
are flat in any case (``soak_parts/flat.py``). A store promises another bound: of n updates it keeps about
``64 * log2(n / 64)`` versions. Latency is from when
a request was due by the clock to when its prediction reached the sink.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import apache_beam as beam
import numpy as np
from apache_beam.options.pipeline_options import PipelineOptions

from benchmarks.harness import Report
from benchmarks.inference_parts.driving import progress
from benchmarks.soak_parts import flat
from benchmarks.soak_parts.job import build, expected
from benchmarks.soak_parts.watch import files, memory
from contbatch.transforms import ModelStore
from tests.runners.binaries import prism_binary
from tests.runners.cluster import FlinkCluster
from tests.runners.processes import start, wait_for

SAMPLES = 240
REST = 0.02
"""Seconds for which the source on Flink rests: see :class:`~contbatch.transforms.io.replay.PacedReplay`."""
FLINK = ("--streaming", "--checkpointing_interval=5000", "--max_bundle_time_mills=50", "--job_name=soak")

Series = dict[tuple[str, str], list[float]]
"""Samples by their kind, one of ``flat.SLACK``, and whose they are."""
Sizes = Callable[[], dict[tuple[str, str], float]]


def sampled(folder: Path, seconds: float, sizes: Sizes = dict) -> Series:
    """Take samples while the source runs, from the first prediction on."""
    wait_for("the first prediction", lambda: any(tallies(folder, "predicted")), folder)
    series: Series = {}
    began = time.monotonic()
    for number in range(SAMPLES):
        time.sleep(max(0.0, began + number * seconds / SAMPLES - time.monotonic()))
        found = {("memory", role): held for role, held in memory().items()} | sizes()
        for name, value in found.items():
            series.setdefault(name, []).append(value)
        if number % (SAMPLES // 10) == 0:
            progress(
                f"{number * seconds / SAMPLES:.0f} s: " + ", ".join(f"{n[1]} {v / 1e6:.0f}" for n, v in found.items())
            )
    return series


def on_prism(folder: Path, count: int, rate: float) -> Series:
    """Run the job on Prism, to its end.

    Raises:
        RuntimeError: it failed.
    """
    with ExitStack() as stack:
        command = [
            sys.executable,
            "-m",
            "benchmarks.soak_parts.job",
            str(folder),
            str(count),
            str(rate),
            prism_binary(),
        ]
        job = start("job", command, folder, stack)
        series = sampled(folder, count / rate)
        if job.wait(120) != 0:
            raise RuntimeError(
                f"the job on Prism ended with {job.returncode}: {(folder / 'job.log').read_text()[-500:]}"
            )
    return series


def on_flink(folder: Path, count: int, rate: float, rest: float) -> Series:
    """Run the job on a Flink of its own, until everything has come out; with checkpoints it never ends by itself."""
    with ExitStack() as stack:
        cluster = FlinkCluster(folder, stack)
        flags = stack.enter_context(cluster.flags(*FLINK))
        pipeline = beam.Pipeline(options=PipelineOptions(flags))
        build(pipeline, folder, count, rate, rest)
        pipeline.run()
        wait_for("the first prediction", lambda: any(tallies(folder, "predicted")), folder)
        job = cluster.job("soak")

        series = sampled(folder, count / rate, lambda: checkpointed(cluster, job))
        try:
            wait_for("the rest", lambda: sum(counts(folder).values()) >= count, folder)
        except TimeoutError as error:  # what is missing is counted below
            progress(str(error))
        cluster.cancel(job)
    return series


def checkpointed(cluster: FlinkCluster, job: str) -> dict[tuple[str, str], float]:
    """Return the bytes of the newest checkpoint, of the step that learns and of the one that reads and predicts."""
    newest = cluster.checkpoints(job)["latest"]["completed"]
    if not newest:
        return {}
    tasks = cluster.rest(f"jobs/{job}/checkpoints/details/{newest['id']}")["tasks"]
    sizes = {("checkpoint", "trainer"): 0.0, ("checkpoint", "source and inference"): 0.0}
    for vertex in cluster.rest(f"jobs/{job}")["vertices"]:
        of_trainer = "Train" in vertex["name"] and "Infer" not in vertex["name"]
        sizes["checkpoint", "trainer" if of_trainer else "source and inference"] += tasks[vertex["id"]]["state_size"]
    return sizes


def tallies(folder: Path, name: str) -> Iterator[list[list[int]]]:
    """Yield what the sinks of a name have written, a bundle at a time: event second and milliseconds later."""
    for path in folder.glob(f"{name}-*.jsonl"):
        with path.open() as lines:
            yield from (json.loads(line) for line in lines if line.endswith("\n"))


def counts(folder: Path) -> dict[str, int]:
    """Return how many events have come out of what."""
    names = ("predicted", "learned", "failed-requests", "failed-labels")
    return {name: sum(map(len, tallies(folder, name))) for name in names}


def soak(report: Report, runner: str, minutes: float, rate: float, rest: float) -> None:
    """Run on one runner, and add what was seen."""
    count = round(minutes * 60 * rate)
    with tempfile.TemporaryDirectory() as root:
        folder = Path(root)
        series = on_prism(folder, count, rate) if runner == "prism" else on_flink(folder, count, rate, rest)
        came, due = counts(folder), expected(count)
        for law, given, fates in (
            ("requests", due["requests"], ("predicted", "failed-requests")),
            ("labels", due["labels"], ("learned", "failed-labels")),
        ):
            report.note(f"{runner}: {law}", "", given)
            report.note(f"{runner}: {fates[1].replace('-', ' ')}", "", came[fates[1]])
            missing = abs(given - sum(came[fate] for fate in fates))
            report.at_most(f"{runner}: {law} missing, or there twice", "", missing, 0)
        for (kind, whose), samples in series.items():
            before, after = flat.growth(samples)
            report.note(f"{runner}: {kind} of {whose}, second quarter", "MB", before / 1e6)
            bound = flat.bound(before, kind)
            report.at_most(f"{runner}: {kind} of {whose}, last quarter", "MB", after / 1e6, round(bound / 1e6, 1))
        versions = ModelStore(str(folder / "store")).versions()
        report.at_most(f"{runner}: versions kept", "", len(versions), flat.versions(versions[-1].step))
        report.note(f"{runner}: updates", "", versions[-1].step)
        for part in ("models", "snapshots"):
            count, size = files(folder / "store" / part)
            report.note(f"{runner}: files in {part}", "", count)
            report.note(f"{runner}: size of {part}", "MB", size / 1e6)
        rows = np.array([row for bundle in tallies(folder, "predicted") for row in bundle])
        minute = (rows[:, 0] - rows[:, 0].min()) // 60
        for number in range(int(minute.max()) + 1):
            of_minute = rows[minute == number, 1]
            for share in (50, 99):
                value = float(np.percentile(of_minute, share))
                report.note(f"{runner}: latency in minute {number + 1}, p{share}", "ms", value)


def main() -> int:
    """Read the command line, run everything, and return the exit code."""
    parser = argparse.ArgumentParser(description="does anything grow?")
    parser.add_argument("runner", choices=["prism", "flink", "both"])
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--rest", type=float, default=REST, help="seconds for which the source rests on Flink")
    parser.add_argument("--rate", type=float, default=1_000.0, help="events a second")
    given = parser.parse_args()
    both = given.runner == "both"
    report = Report("soak" if both else f"soak_{given.runner}", ("apache-beam",))
    for runner in ("prism", "flink") if both else (given.runner,):
        progress(f"{runner}, {given.minutes:g} minutes at {given.rate:g} events a second")
        soak(report, runner, given.minutes, given.rate, given.rest)
    return report.finish()


if __name__ == "__main__":
    sys.exit(main())
