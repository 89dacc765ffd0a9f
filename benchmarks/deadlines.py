"""What a deadline costs in accuracy: MovieLens 100k in event time, progressive scores, mean of three seeds.

Ours is the main job's own loop. The peers learn one by one, each label right after its prediction: the easiest
setting there is, so they are to be held against the row without any delay.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from multiprocessing import Pool
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.harness import Report, run_peers
from contbatch.pipelines import movielens
from contbatch.transforms.batching import BatchPolicy
from contbatch.transforms.events import END_OF_TIME, Event
from contbatch.transforms.learning import PrequentialConfig, PrequentialLoop, auc, mean_log_loss
from contbatch.transforms.records import Learned, Prediction

SEEDS = (0, 1, 2)
DEADLINES = (0.0, 1.0, 5.0, 30.0, 600.0)


class Case(NamedTuple):
    """One run: the policy, how long feedback takes, and whether one second's ratings are spread."""

    seed: int
    max_size: int
    max_delay: float
    feedback_delay: float
    spread_ties: bool


class Scores(NamedTuple):
    """Progressive scores over all labels, and the mean size of a micro-batch."""

    logloss: float
    auc: float
    mean_batch: float


def play(case: Case) -> Scores:
    """Run the main job's loop over all ratings, as one worker would."""
    items = movielens.read_events(movielens.find_folder(None), case.feedback_delay, case.spread_ties)
    events = sorted(item for item in items if isinstance(item, Event))
    policy = BatchPolicy(case.max_size, case.max_delay)
    config = PrequentialConfig(movielens.learner(case.seed), policy, movielens.REQUESTS, movielens.FEEDBACK)
    started, scores, labels, sizes = time.monotonic(), [], [], []
    for output in PrequentialLoop(config).advance(events, END_OF_TIME):
        if isinstance(output, Learned):
            scores.append(output.score)
            labels.append(output.label)
        elif isinstance(output, Prediction):
            sizes.append(output.batch_size)
    print(f"{case}: {time.monotonic() - started:.0f} s", file=sys.stderr)
    return Scores(mean_log_loss(scores, labels), auc(scores, labels), len(sizes) / sum(1 / size for size in sizes))


def mean(runs: list[Scores]) -> Scores:
    """Return the mean over seeds."""
    return Scores(*(sum(column) / len(column) for column in zip(*runs, strict=True)))


def peers() -> dict[str, tuple[float, float]]:
    """Return (log loss, AUC) of each peer."""
    ratings = [item for item in movielens.read_ratings(movielens.find_folder(None)) if hasattr(item, "request")]
    ratings.sort(key=lambda rating: (rating.time, rating.row))
    rows = [[rating.request[field] for field in movielens.FIELDS] for rating in ratings]
    labels = [int(float(rating.rating) >= 4) for rating in ratings]
    results = run_peers("deadlines", {"rows": rows, "labels": labels})
    return {name: (mean_log_loss(scores, labels), auc(scores, labels)) for name, scores in results.items()}


def job() -> dict[str, Any]:
    """Run the command itself, as a user would; returns its summary and its seconds, start to end."""
    with tempfile.TemporaryDirectory() as folder:
        started = time.monotonic()
        command = [sys.executable, "-m", "contbatch.pipelines.cli", "personalize", "--out", folder]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        wall = time.monotonic() - started
        return {**json.loads((Path(folder) / "summary.json").read_text()), "wall": wall}


def seconds_of_help() -> float:
    """Return how long ``--help`` takes, start to end: the median of five."""
    times = []
    for _ in range(5):
        started = time.monotonic()
        command = [sys.executable, "-m", "contbatch.pipelines.cli", "personalize", "--help"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        times.append(time.monotonic() - started)
    return sorted(times)[2]


def main() -> int:
    """Run everything and return the exit code."""
    report = Report("deadlines", ("apache-beam",), seed=SEEDS[0])
    summary, help_seconds = job(), seconds_of_help()  # alone on the machine, as they are timed
    curve = [Case(seed, 256, delay, 5.0, False) for delay in DEADLINES for seed in SEEDS]
    one_by_one = [Case(seed, 1, 0.0, 0.0, True) for seed in SEEDS]
    with Pool(2) as pool:
        runs = dict(zip(curve + one_by_one, pool.map(play, curve + one_by_one, chunksize=1), strict=True))
    others = peers()
    losses, areas = ({name: scores[index] for name, scores in others.items()} for index in (0, 1))

    for delay in DEADLINES:
        scores = mean([run for case, run in runs.items() if case in curve and case.max_delay == delay])
        name = f"deadline {delay:g} s, batches of {scores.mean_batch:.1f}"
        if delay == 5.0:
            report.at_most(f"log loss, {name}", "", scores.logloss, 0.578)
            report.at_least(f"AUC, {name}", "", scores.auc, 0.760)
        else:
            report.note(f"log loss, {name}", "", scores.logloss)
            report.note(f"AUC, {name}", "", scores.auc)
    strict = mean([runs[case] for case in one_by_one])
    report.at_most("log loss, one by one", "", strict.logloss, 0.570, losses)
    report.at_least("AUC, one by one", "", strict.auc, 0.767, areas)
    report.note("AUC, frozen after the first 20 %", "", summary["frozen_auc"])
    report.at_most("the command on DirectRunner, start to end", "s", summary["wall"], 60.0)
    report.at_most("its --help, start to end", "s", help_seconds, 1.0)
    same = runs[Case(0, 256, 5.0, 5.0, False)]
    report.at_most("the command's AUC, away from the bare loop's", "", abs(summary["auc"] - same.auc), 1e-6)
    return report.finish()


if __name__ == "__main__":
    sys.exit(main())
