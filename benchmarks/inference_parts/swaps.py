"""A model of 100 MB that is replaced every second under load, beside the same load with one version.

Every version's weights are all its number, and the module returns the least and the largest of those it looks at, so
an output tells which version made it, and whether it was made of one alone. The module also holds the device for a
time, as a model does that runs on an accelerator. The files are written before, as by a trainer on another machine;
each is renamed into place at its time. Without swaps, as many are written and none is renamed.
"""

from __future__ import annotations

import os
import tempfile
import threading
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn

from benchmarks.harness import Report
from benchmarks.inference_parts.driving import Latencies, Ours, open_loop, progress
from contbatch.transforms import BatchPolicy
from contbatch.transforms.engine.versions import FileVersions
from contbatch.transforms.handlers.torch import TorchModelHandler
from contbatch.transforms.infer import FailedElement, ShedElement

WEIGHTS, LOOKED_AT = 25_000_000, 1_000
"""Of float32: 100 MB."""
CALL, RATE = 0.010, 50
"""Seconds of a call, and elements a second: half of what the device can do one by one."""
SECONDS, ROUNDS, POLL, THREADS, SEED = 15, 2, 0.2, 8, 5
SLOWER = 1.1


class Weights(nn.Module):
    """Returns the least and the largest of some weights."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.empty(WEIGHTS), requires_grad=False)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return [B, 2]."""
        time.sleep(CALL)
        seen = self.weights[:: WEIGHTS // LOOKED_AT]
        return torch.stack([seen.min(), seen.max()]).expand(len(inputs), 2)


class Checked(NamedTuple):
    """Of one run.

    Attributes:
        latencies: all of them.
        failed: predictions that were not made.
        torn: outputs that are not those of the version that they name.
        versions: how many made an output.
    """

    latencies: Latencies
    failed: int
    torn: int
    versions: int


def write(folder: Path, number: int) -> None:
    """Write a version under a name that the pattern does not match, down to the disk."""
    path = folder / f"{number}.tmp"
    safetensors.torch.save_file({"weights": torch.full((WEIGHTS,), float(number))}, path)
    with path.open("rb") as file:
        os.fsync(file.fileno())


def publish(folder: Path, number: int) -> None:
    """Rename a version into place."""
    (folder / f"{number}.tmp").rename(folder / f"{number}.safetensors")


def load(swaps: int) -> Checked:
    """Give elements for some seconds, and a new version at every whole second of the first ones."""
    count = SECONDS * RATE
    arrivals = np.random.default_rng(SEED).exponential(size=count).cumsum()
    schedule = (arrivals * SECONDS / arrivals[-1]).tolist()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for number in range(1, SECONDS + 1):
            write(folder, number)
        publish(folder, 1)
        stop = threading.Event()

        def publish_all() -> None:
            started = time.perf_counter()
            for number in range(2, swaps + 2):
                if stop.wait(max(0.0, started + number - 1 - time.perf_counter())):
                    return
                publish(folder, number)

        side = Ours(TorchModelHandler(Weights), BatchPolicy(32), FileVersions(f"{folder}/*.safetensors"), POLL)
        publisher = threading.Thread(target=publish_all)
        publisher.start()
        try:
            latencies = open_loop(side, THREADS, schedule, [torch.zeros(1)] * count)
        finally:
            stop.set()
            publisher.join()
    good = [result for result in latencies.results if not isinstance(result, FailedElement | ShedElement)]
    named = [(int(Path(result.model_id).stem), result.inference.tolist()) for result in good]
    torn = sum(seen != [number, number] for number, seen in named)
    return Checked(latencies, count - len(good), torn, len({number for number, _ in named}))


def swaps(report: Report) -> None:
    """Run rounds with and without swaps, in turns; what was served meanwhile is the same."""
    torch.set_num_threads(1)
    still: list[Checked] = []
    swapped: list[Checked] = []
    expected = SECONDS - 2  # the last of them has time to load
    for number in range(ROUNDS):
        progress(f"swaps, round {number + 1} of {ROUNDS}, one version")
        still.append(load(0))
        progress(f"swaps, round {number + 1} of {ROUNDS}, a version every second")
        swapped.append(load(expected))
    p99 = {
        name: float(np.percentile(np.concatenate([run.latencies.seconds for run in runs]), 99)) * 1e3
        for name, runs in (("still", still), ("swapped", swapped))
    }
    report.at_least("swaps of a 100 MB model seen", "", sum(run.versions - 1 for run in swapped), ROUNDS * expected)
    report.at_most("predictions that failed", "", sum(run.failed for run in swapped), 0)
    report.at_most("torn reads", "", sum(run.torn for run in swapped), 0)
    report.note("p99 latency with a swap a second", "ms", p99["swapped"], {"without": p99["still"]})
    report.at_most("of the p99 latency without", "x", p99["swapped"] / p99["still"], SLOWER)
