"""An iterative decoder: elements that join and leave between steps, beside whole batches of requests.

Outputs have geometric lengths. A whole batch of 64 runs for as long as its longest, about 4.7 times the mean. Steps
that never leave a place free would be so many times fewer, and no schedule can do better than that.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from typing import Any

import apache_beam as beam
import numpy as np
import torch
from apache_beam.ml.inference.base import RunInference

from benchmarks.harness import Report
from benchmarks.inference_parts.driving import Latencies, Ours, Theirs, open_loop, progress
from benchmarks.inference_parts.runners import fn_api
from benchmarks.models import VOCABULARY, DecoderHandler, Request
from contbatch.transforms import BatchPolicy
from contbatch.transforms.inference import ContinuousInference
from contbatch.transforms.testing import Sink

ELEMENTS, TIMED, MAX_SIZE, SEED, ROUNDS = 2000, 1000, 64, 3, 2
MEAN, LONGEST, PROMPTS = 40, 256, (4, 12)
"""Tokens: of an output on average, of a prompt with its output at most, and of a prompt."""
THREADS, LOAD, FASTER = 8, 0.8, 3.0


def requests(seed: int) -> list[Request]:
    """Return prompts and lengths of what is to follow."""
    rng = np.random.default_rng(seed)
    made: list[Request] = []
    for _ in range(ELEMENTS):
        prompt = rng.integers(VOCABULARY, size=rng.integers(*PROMPTS, endpoint=True)).tolist()
        made.append((prompt, min(int(rng.geometric(1 / MEAN)), LONGEST - len(prompt))))
    return made


def handler(**batching: Any) -> DecoderHandler:
    """Return the handler of both, with Beam's arguments of batching."""
    return DecoderHandler(slots=MAX_SIZE, max_length=LONGEST, **batching)


def transforms() -> dict[str, beam.PTransform]:
    """Return what is compared."""
    return {
        "ours": ContinuousInference(handler(), BatchPolicy(MAX_SIZE)),
        "RunInference": RunInference(handler(min_batch_size=MAX_SIZE, max_batch_size=MAX_SIZE)),
    }


def run(transform: beam.PTransform, elements: Sequence[Request]) -> tuple[float, list[list[int]]]:
    """Return the seconds of a pipeline, and what came out, sorted."""
    sink, started = Sink(), time.perf_counter()
    with fn_api() as pipeline:
        _ = pipeline | beam.Create(elements, reshuffle=False) | transform | sink
    taken = time.perf_counter() - started
    return taken, sorted(sink.elements)


def throughput(report: Report) -> float:
    """Compare pipelines, and return the requests per second of the peer. Every round has its own requests."""
    taken: dict[str, list[float]] = {}
    for name, transform in transforms().items():
        run(transform, requests(SEED)[:20])
        taken[name] = []
    for number in range(ROUNDS):
        elements, outputs = requests(SEED + number), {}
        for name, transform in transforms().items():
            progress(f"decoder, round {number + 1} of {ROUNDS}, {name}")
            seconds, outputs[name] = run(transform, elements)
            taken[name].append(seconds)
        if len(outputs["ours"]) != len(elements) or outputs["ours"] != outputs["RunInference"]:
            raise RuntimeError("the decoder's outputs are not the same, or not all are there")
    rate = {name: ELEMENTS / statistics.median(values) for name, values in taken.items()}
    ratios = [theirs / ours for ours, theirs in zip(taken["ours"], taken["RunInference"], strict=True)]
    report.note("decoder: throughput", "/s", rate["ours"], {"RunInference": rate["RunInference"]})
    report.at_least("of RunInference's throughput, same outputs", "x", statistics.median(ratios), FASTER)
    return rate["RunInference"]


def decoder(report: Report) -> None:
    """Throughput of pipelines, then latency where requests come at 80 % of what whole batches can do.

    The peer is at its best with one bundle at a time, of all that has come, up to a batch: what came later would
    else be taken in small bundles by threads that wait for each other.
    """
    torch.set_num_threads(1)
    elements = requests(SEED)[:TIMED]
    rate = LOAD * throughput(report)
    schedule = np.random.default_rng(SEED).exponential(1 / rate, TIMED).cumsum().tolist()
    latency: dict[str, Latencies] = {}
    progress(f"decoder, {rate:.1f} requests a second, ours")
    latency["ours"] = open_loop(Ours(handler(), BatchPolicy(MAX_SIZE)), THREADS, schedule, elements)
    progress(f"decoder, {rate:.1f} requests a second, RunInference")
    latency["RunInference"] = open_loop(Theirs(handler()), 1, schedule, elements, most=MAX_SIZE)
    if latency["ours"].results != latency["RunInference"].results:
        raise RuntimeError("the decoder's outputs are not the same")
    p50, p99 = ({name: it.percentile(percent) for name, it in latency.items()} for percent in (50, 99))
    measure, theirs = f"decoder at {LOAD:.0%} of RunInference's throughput", p99["RunInference"]
    report.note(f"{measure}: p50 latency", "ms", p50["ours"], {"RunInference": p50["RunInference"]})
    report.at_most(f"{measure}: p99 latency", "ms", p99["ours"], theirs, {"RunInference": theirs})
