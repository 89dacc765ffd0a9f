"""From a label to the first prediction that used it, where inference and training are apart and meet in a store."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from apache_beam.pvalue import TaggedOutput
from apache_beam.utils.timestamp import Timestamp

from benchmarks.harness import Report
from benchmarks.inference_parts.driving import Ours, progress
from contbatch.pipelines import movielens
from contbatch.transforms import BatchPolicy, Event, Kind, Learned, OnlineUpdate
from contbatch.transforms.engine.versions import StoreVersions
from contbatch.transforms.events import MICROS, pack
from contbatch.transforms.handlers.learner import LearnerModelHandler
from contbatch.transforms.keyed_state import Bag, Cell, KeyedState, Timer
from contbatch.transforms.learning.manifest import ordered
from contbatch.transforms.loop import ArrivalFn
from tests.runners.binaries import prism_location

RATE, SECONDS, TICK, GOAL = 2_000, 20, 0.02, 1.0
"""Events a second, half of them labels; how long; seconds between bundles; seconds for p99."""


def events() -> list[Event]:
    """Return requests and labels, five seconds of MovieLens' time apart, in their order."""
    found = movielens.read_events(movielens.find_folder(None), 5.0)
    ordered_events = sorted(item for item in found if isinstance(item, Event))
    return ordered_events[: RATE * SECONDS]


def bundles() -> Iterator[list[Event]]:
    """Yield what is due, at its time; the time of an event is when it was due."""
    stream, began, position = events(), time.time(), 0
    while position < len(stream):
        due = int((time.time() - began) * RATE)
        part = stream[position:due]
        if part:
            yield [
                event._replace(time=round((began + (position + index) / RATE) * MICROS))
                for index, event in enumerate(part)
            ]
        position += len(part)
        time.sleep(TICK)


def waits(learned: list[tuple[int, int]], predictions: list[tuple[int, int]]) -> tuple[np.ndarray, int]:
    """Return for labels (time, version that knows it first) the seconds to the first prediction, and how many had none.

    Args:
        learned: of labels.
        predictions: their times and versions.
    """
    order = sorted(predictions, key=lambda one: one[1])
    versions = [version for _, version in order]
    earliest = np.minimum.accumulate([at for at, _ in order][::-1])[::-1]
    first = np.searchsorted(versions, [version for _, version in learned])
    known = first < len(order)
    times = np.array([at for at, _ in learned])
    return (earliest[first[known]] - times[known]) / MICROS, int(np.sum(~known))


def in_process() -> tuple[np.ndarray, int, int]:
    """Drive the DoFns of both branches by two threads; returns the waits, the labels without one, and all labels."""
    with tempfile.TemporaryDirectory() as root:
        learner = movielens.learner()
        handler = LearnerModelHandler(learner, movielens.REQUESTS)
        serving = Ours(handler, BatchPolicy(256), StoreVersions(root), poll=0.1)
        serving.setup()
        policy, codecs = BatchPolicy(256, 1.0), {"requests": movielens.REQUESTS, "feedback": movielens.FEEDBACK}
        update = OnlineUpdate(learner, policy, root, deterministic=False, publish_seconds=0.25, **codecs)
        trainer = ArrivalFn(update._loop._settings, bounded=False)
        trainer.setup()
        state = KeyedState(buffer=Bag(), log=Bag(), head_cell=Cell(), due=Timer(), last=Timer())
        learned: list[tuple[int, int]] = []
        predictions: list[tuple[int, int]] = []

        def train(part: list[Event]) -> None:
            process = partial(trainer.process, ("", pack(part)), Timestamp(0))
            for one in state.bundle(trainer, lambda buffer, **parts: process(**parts)):
                value = one.value.value if isinstance(one, TaggedOutput) else None
                if isinstance(value, Learned):
                    learned.append((value.time, ordered(value.version)[1]))

        def serve(part: list[Event]) -> None:
            requests = [(index, event) for index, event in enumerate(part) if event.kind is Kind.REQUEST]
            for _, result in serving.bundle(requests):
                predictions.append((round(time.time() * MICROS), ordered(result.model_id or "0.0")[1]))

        for part in bundles():
            threads = [threading.Thread(target=run, args=(part,)) for run in (train, serve)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        serving.teardown()
        return *waits(learned, predictions), len(learned)


def on_prism() -> dict[str, Any]:
    """Run the main job's parallel form on Prism; returns its summary."""
    location = prism_location()
    if location is None:
        raise FileNotFoundError("no Prism: put its binary on the PATH, or name it in CONTBATCH_PRISM")
    with tempfile.TemporaryDirectory() as root:
        folder, data = movielens.find_folder(None), Path(root) / "data"
        data.mkdir()
        for name in (movielens.USERS, movielens.ITEMS):
            shutil.copy(folder / name, data)
        with (folder / movielens.RATINGS).open() as lines, (data / movielens.RATINGS).open("w") as kept:
            header, *ratings = islice(lines, 1 + RATE * SECONDS // 2)
            kept.writelines([header, *ratings])
        command = [sys.executable, "-m", "contbatch.pipelines.cli", "personalize", "--form=parallel"]
        flags = [f"--data={data}", f"--out={root}/out", f"--rate={RATE}", "--runner=PrismRunner"]
        done = subprocess.run(
            [*command, *flags, f"--prism_location={location}"], capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise RuntimeError(f"the job on Prism ended with {done.returncode}: {done.stderr[-500:]}")
        summary: dict[str, Any] = json.loads((Path(root) / "out" / "summary.json").read_text())
        return summary


def freshness(report: Report) -> None:
    """Measure freshness with the DoFns of both branches in threads, and as a job on Prism."""
    progress(f"freshness in process, {RATE} events a second")
    seconds, never, labels = in_process()
    report.at_most("freshness in process: p99", "s", float(np.percentile(seconds, 99)), GOAL)
    report.note("freshness in process: p50", "s", float(np.percentile(seconds, 50)))
    report.at_most("labels of its last second and later, not known by its end", "", never, RATE / 2)
    report.note("labels in all", "", labels)
    progress(f"freshness on Prism, {RATE} events a second")
    summary = on_prism()
    report.at_most("freshness on Prism: p99", "s", summary["freshness_p99_s"], GOAL)
    report.note("freshness on Prism: p50", "s", summary["freshness_p50_s"])
    report.at_most("labels of Prism's last second and later", "", summary["freshness"]["never"], RATE / 2)
    report.note("labels on Prism in all", "", summary["learned"])
