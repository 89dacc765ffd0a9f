"""A live job on a real Flink cluster, and what it comes to when its processes are killed: one by one, and ten times.

Checkpoints every 2 s. The forms that go by event time have to come, bit by bit, to what the same events come to in a
process that nobody disturbs; the others have to know every label once. Outputs leave at least once: those that were
repeated are printed, and a sink by request id keeps each once. Seconds are from the kill to the next prediction.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness import Report
from benchmarks.inference_parts.driving import progress
from tests.runners.cluster import FlinkCluster
from tests.runners.faults.forms import FORMS, LEARNING, ORDERED, PREDICTING, Workload
from tests.runners.faults.job import FaultyJob
from tests.runners.faults.verdict import Undisturbed, judge

KILLS, SEED = 10, 7
SHORT = Workload(requests=1_000, rate=200.0)
LONG = Workload(requests=14_000, rate=100.0)
"""29,400 events, 294 s: longer than ten recoveries, or the last kills would find nothing to do."""

LAWS = {
    "unpredicted": ("requests without a prediction", PREDICTING),
    "unlearned": ("labels that no output says to be learned", LEARNING),
    "lost": ("labels that the last weights do not know", FORMS),
    "twice": ("labels that they know twice", FORMS),
    "misjudged": ("repeated labels not refused, or others refused", LEARNING),
    "contradicting": ("outputs that an undisturbed run has not, or the other way round", ORDERED),
    "changed": ("versions that are not an undisturbed run's, bit by bit", ORDERED),
}
"""What must be 0 of an outcome, in words, and of which forms."""


def ten(job: FaultyJob) -> dict[str, list[float]]:
    """Kill workers and TaskManagers at random, all along the source."""
    rng = np.random.default_rng(SEED)
    seconds: dict[str, list[float]] = {"worker": [], "taskmanager": []}
    for number in range(KILLS):
        what = "taskmanager" if rng.random() < 1 / 3 else "worker"
        job.wait_for((number + rng.random()) / (KILLS + 1))
        seconds[what].append(job.kill(what))
        progress(f"kill {number + 1}, {what}: {seconds[what][-1]:.1f} s")
    return seconds


def one(what: str) -> Callable[[FaultyJob], dict[str, list[float]]]:
    """Return what kills one process."""

    def kill(job: FaultyJob) -> dict[str, list[float]]:
        job.wait_for(0.3)
        return {what: [job.kill(what)]}

    return kill


def resume(job: FaultyJob) -> dict[str, list[float]]:
    """Cancel with a savepoint, and start again from it."""
    job.wait_for(0.3)
    savepoint, resumed = job.resume()
    return {"cancel with savepoint": [savepoint], "resumed job": [resumed]}


RUNS: tuple[tuple[str, Workload, Callable[[FaultyJob], dict[str, list[float]]]], ...] = (
    ("worker killed", SHORT, one("worker")),
    ("TaskManager killed", SHORT, one("taskmanager")),
    ("savepoint", SHORT, resume),
    (f"{KILLS} kills", LONG, ten),
)


def main() -> int:
    """Run everything and return the exit code."""
    report = Report("faults", ("apache-beam",), SEED)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        cluster = FlinkCluster(folder, stack)
        compared = {
            workload: Undisturbed(folder / f"undisturbed-{workload.requests}", workload) for workload in (SHORT, LONG)
        }
        for name, workload, disturb in RUNS:
            progress(name)
            at = folder / name.replace(" ", "-")
            at.mkdir()
            with ExitStack() as workers:
                job = FaultyJob(cluster, at, workload, workers)
                job.start()
                add(
                    report, name, disturb, job, lambda at=at, workload=workload: judge(at, workload, compared[workload])
                )
    return report.finish()


def add(
    report: Report,
    name: str,
    disturb: Callable[[FaultyJob], dict[str, list[float]]],
    job: FaultyJob,
    judged: Callable[[], Any],
) -> None:
    """Disturb a job, and add what it has come to."""
    try:
        seconds = disturb(job)
    finally:
        try:
            job.finish()
        except TimeoutError as error:  # what is missing is counted below
            progress(str(error))
    for what, each in seconds.items():
        if each:
            count = f", {len(each)} times" if len(each) > 1 else ""
            report.note(f"{name}: {what}{count}, to the next output, median", "s", float(np.median(each)))
            report.note(f"{name}: {what}{count}, to the next output, longest", "s", max(each))
    found = judged()
    for law, (words, forms) in LAWS.items():
        for form in forms:
            report.at_most(f"{name}, {form}: {words}", "", getattr(found[form], law), 0)
    for form in PREDICTING:
        report.note(f"{name}, {form}: predictions that came again", "", found[form].repeated)
    for form in FORMS:
        report.note(f"{name}, {form}: versions kept", "", found[form].versions)


if __name__ == "__main__":
    sys.exit(main())
