"""What padding costs: Beam's four sets of lengths, batches of at most 32 out of a bounded pool, beside the optimum.

The lengths are those of Beam's ``sort_and_batch_benchmark``: 10,000 elements from each of its generators. A batch of n
takes ``1 + n * (longest / 50)**1.5`` ms: the second part is that benchmark's own, the first is a fixed part, without
which batches of one would be best. The optimum knows all 10,000 at once: a dynamic programme over the sorted lengths.

Ours sees the elements one by one, one a second, before a device that is always free: so ``max_delay`` in seconds is one
in arrivals. ``length_fn`` gives the work, ``length**1.5``; what a unit of it and a batch cost is learned on the way.
Beam's transforms are its own code: in a pipeline, or its DoFn where the size of bundles is to be chosen. Its buckets
are not made to keep a delay. Of the three seeds, ours shows the worst and a peer the best.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import apache_beam as beam
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from apache_beam.testing.benchmarks import sort_and_batch_benchmark as beams
from apache_beam.transforms.util import BatchElements, _SortAndBatchElementsDoFn

from benchmarks.harness import Report
from contbatch.transforms.batching import BatchPolicy, CostModel, Scheduler
from contbatch.transforms.batching.release import Backlog, ReleaseRule
from contbatch.transforms.testing import Sink

SEEDS = (42, 1, 2)
"""The first is the seed of Beam's benchmark."""
ELEMENTS, MAX_SIZE, MAX_WAIT, FIXED = 10_000, 32, 1024, 0.001
GOALS = {256: 1.25, 1024: 1.12}
"""Of the optimum's cost, by the size of the pool."""
BUNDLE, MAX_WEIGHT = 64, 2000
"""Of ``SortAndBatchElements``; the weight is that of Beam's benchmark."""
SETS = {
    "Pareto": beams.generate_highly_skewed_data,
    "lognormal": beams.generate_lognormal_data,
    "bimodal": beams.generate_bimodal_data,
    "low variance": beams.generate_low_variance_data,
}

Element = tuple[int, int]
"""Number of the arrival, and length."""
Batches = list[tuple[list[int], int]]
"""Arrivals that ran together, and the last arrival before they did."""


class Outcome(NamedTuple):
    """Seconds of all batches, and the most arrivals that an element waited for."""

    seconds: float
    wait: int


def device(size: int, longest: int) -> float:
    """Return the seconds of a batch."""
    return FIXED + beams.simulate_inference_latency(size, longest) / 1000


def work(length: int) -> float:
    """Return an element's part in the seconds, but for the factor."""
    return length**1.5


def optimum(lengths: Sequence[int]) -> float:
    """Return the least seconds for all: some optimum takes neighbours by length together."""
    ordered, best = sorted(lengths), [0.0]
    for end, longest in enumerate(ordered, 1):
        starts = range(max(0, end - MAX_SIZE), end)
        best.append(min(best[start] + device(end - start, longest) for start in starts))
    return best[-1]


def outcome(lengths: Sequence[int], batches: Batches) -> Outcome:
    """Return what batches cost and how long they let wait; each element is in one of them."""
    if sorted(number for batch, _ in batches for number in batch) != list(range(len(lengths))):
        raise AssertionError("an element is missing, or is there twice")
    if any(len(batch) > MAX_SIZE for batch, _ in batches):
        raise AssertionError(f"a batch holds more than {MAX_SIZE}")
    seconds = sum(device(len(batch), max(lengths[number] for number in batch)) for batch, _ in batches)
    return Outcome(seconds, max(now - min(batch) for batch, now in batches))


def ours(lengths: Sequence[int], pool: int, length_fn: Callable[[int], float] = work) -> Batches:
    """Submit one by one, and run what is due."""
    policy = BatchPolicy(MAX_SIZE, max_delay=MAX_WAIT, length_fn=length_fn, pool_size=pool)
    cost = CostModel()
    scheduler: Scheduler[int] = Scheduler(policy, cost)
    rule, backlog, batches = ReleaseRule(policy, cost), Backlog(), []

    def run(now: int, flush: bool) -> None:
        batch, _, _, size, weight, _ = scheduler.release(now, flush)
        batches.append((batch, now))
        scheduler.finish(size, device(size, max(lengths[number] for number in batch)), weight)

    for now, length in enumerate(lengths):
        weight = length_fn(length)
        scheduler.submit(now, now, weight=weight)
        backlog = backlog.plus(Backlog(1, weight, now))
        while rule.due(backlog, now):
            run(now, flush=False)
            backlog = scheduler.backlog()
    while scheduler:
        run(len(lengths) - 1, flush=True)
    return batches


def in_pipeline(lengths: Sequence[int], batching: beam.PTransform) -> Batches:
    """Run a transform of Beam; a batch leaves when it is full, and what is left over leaves at the end."""
    sink = Sink()
    with beam.Pipeline(FnApiRunner()) as pipeline:
        _ = pipeline | beam.Create(list(enumerate(lengths)), reshuffle=False) | batching | sink
    batches = [[number for number, _ in batch] for batch in sink.elements]
    return [(batch, max(batch) if len(batch) == MAX_SIZE else len(lengths) - 1) for batch in batches]


def in_bundles(lengths: Sequence[int], batching: beam.DoFn) -> Batches:
    """Run a DoFn of Beam, bundle by bundle; all leaves at the end of its bundle."""
    batches = []
    for start in range(0, len(lengths), BUNDLE):
        bundle = list(enumerate(lengths))[start : start + BUNDLE]
        batching.start_bundle()
        for element in bundle:
            batching.process(element)
        batches += [([number for number, _ in out.value], bundle[-1][0]) for out in batching.finish_bundle()]
    return batches


def length_of(element: Element) -> int:
    """Return an element's length."""
    return element[1]


def peers(lengths: Sequence[int]) -> dict[str, Batches]:
    """Return the batches of each of Beam's transforms."""
    counting = BatchElements(MAX_SIZE, MAX_SIZE)
    buckets = BatchElements(MAX_SIZE, MAX_SIZE, max_batch_duration_secs=1e6, length_fn=length_of)
    return {
        f"batches of {MAX_SIZE}": in_pipeline(lengths, counting),
        f"SortAndBatchElements, bundles of {BUNDLE}": in_bundles(
            lengths, _SortAndBatchElementsDoFn(1, MAX_SIZE, MAX_WEIGHT, length_of)
        ),
        "BatchElements, length buckets": in_pipeline(lengths, buckets),
    }


class Result(NamedTuple):
    """One set and seed: costs of the optimum's and longest waits, ours by its pool; then more of ours."""

    ratio: dict[int | str, float]
    wait: dict[int | str, int]
    by_length: dict[int, float]
    """The cost where ``length_fn`` is the length itself."""
    cpu: dict[int, float]
    """Seconds of the processor."""


def measure(lengths: Sequence[int]) -> Result:
    """Run ours and the peers."""
    cpu, runs = {}, {}
    for pool in GOALS:
        started = time.process_time()
        runs[pool] = ours(lengths, pool)
        cpu[pool] = time.process_time() - started
    best = optimum(lengths)
    outcomes = {who: outcome(lengths, batches) for who, batches in {**runs, **peers(lengths)}.items()}
    ratio = {who: it.seconds / best for who, it in outcomes.items()}
    by_length = {pool: outcome(lengths, ours(lengths, pool, float)).seconds / best for pool in GOALS}
    return Result(ratio, {who: it.wait for who, it in outcomes.items()}, by_length, cpu)


def fold(rows: Iterable[dict[int | str, float]], kindest: bool) -> dict[int | str, float]:
    """Return the worst of each of ours, and of each peer the best or the worst."""
    table = list(rows)
    return {who: (min if kindest and isinstance(who, str) else max)(row[who] for row in table) for who in table[0]}


def others(row: dict[int | str, float]) -> dict[str, float | None]:
    """Return the peers' part of a row."""
    return {who: value for who, value in row.items() if isinstance(who, str)}


def main() -> int:
    """Run everything and return the exit code."""
    logging.disable(logging.WARNING)
    report = Report("padding", ("apache-beam",), seed=SEEDS[0])
    results: dict[str, list[Result]] = {}
    for name, generate in SETS.items():
        for seed in SEEDS:
            print(f"{name}, seed {seed}", file=sys.stderr)
            lengths = [len(text) for text in generate(ELEMENTS, seed=seed)]
            results.setdefault(name, []).append(measure(lengths))
    everything = [result for of in results.values() for result in of]
    waits = fold((result.wait for result in everything), kindest=False)
    for pool, goal in GOALS.items():
        for name, of in results.items():
            ratio = fold((result.ratio for result in of), kindest=True)
            report.at_most(f"cost of the optimum, {name}, pool {pool:,}", "x", ratio[pool], goal, others(ratio))
        by_length = max(result.by_length[pool] for result in everything)
        report.note(f"the worst of the four if length_fn is the length itself, pool {pool:,}", "x", by_length)
        report.at_most(f"arrivals that an element waited, pool {pool:,}", "", waits[pool], MAX_WAIT, others(waits))
        cpu = sum(result.cpu[pool] for result in everything) / len(everything) / ELEMENTS * 1e6
        report.note(f"CPU per element, pool {pool:,}", "us", cpu)
    return report.finish()


if __name__ == "__main__":
    sys.exit(main())
