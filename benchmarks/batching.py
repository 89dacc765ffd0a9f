"""Batches for one device under a latency goal: overload, light load, a device that changes, what is kept, overhead.

Time is virtual: the device is a formula, arrivals are Poisson, and the peers' own code runs on a clock that jumps (see
``peers/batching.py``), so that the CPU time of a scheduler is not in its latencies; it is a row of its own. Each load
follows 60 requests at 50 a second, as a service wakes up.
"""

from __future__ import annotations

import math
import random
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

from apache_beam.transforms.util import _BatchSizeEstimator

from benchmarks.harness import Report, run_peers
from contbatch.transforms.batching import BatchPolicy, CostModel, Scheduler

SEEDS = (0, 1, 2)
A, B, MAX_SIZE, SLO = 0.010, 0.0005, 32, 0.100
CAPACITY = MAX_SIZE / (A + B * MAX_SIZE)
LOADS = {"24 %": 300, "65 %": 800, "89 %": 1100, "1.22x": 1500, "2x": 2500}
SECONDS, QUIET = 20.0, 1.2


def arrivals(rate: float, seed: int) -> list[float]:
    """Return times of 60 arrivals at 50 a second, then of Poisson arrivals."""
    rng, now = random.Random(seed), QUIET  # noqa: S311
    times = [number * QUIET / 60 for number in range(60)]
    while (now := now + rng.expovariate(rate)) < QUIET + SECONDS:
        times.append(now)
    return times


def ours(times: list[float]) -> Counter[str]:
    """Run the scheduler in front of the device."""
    scheduler: Scheduler[float] = Scheduler(BatchPolicy(MAX_SIZE, latency_slo=SLO))
    fates: Counter[str] = Counter()
    now, following = 0.0, 0
    while following < len(times) or scheduler:
        if not scheduler:
            now = max(now, times[following])
        while following < len(times) and times[following] <= now:
            scheduler.submit(times[following], times[following])
            following += 1
        batch, shed, *_ = scheduler.release(now)
        fates["shed"] += sum(time >= QUIET for time in shed)
        if batch:
            seconds = A + B * len(batch)
            now += seconds
            scheduler.finish(len(batch), seconds)
            count(fates, batch, now)
    return fates


def greedy(times: list[float]) -> Counter[str]:
    """Run whatever waits, first in first out, as soon as the device is free: the loop that everybody writes first."""
    fates: Counter[str] = Counter()
    now, start = 0.0, 0
    while start < len(times):
        now = max(now, times[start])
        end = start
        while end < len(times) and end - start < MAX_SIZE and times[end] <= now:
            end += 1
        now += A + B * (end - start)
        count(fates, times[start:end], now)
        start = end
    return fates


def count(fates: Counter[str], batch: list[float], now: float) -> None:
    """Count the answers of a batch."""
    for arrived in batch:
        if arrived >= QUIET:
            fates["in_time" if now - arrived <= SLO + 1e-9 else "late"] += 1


def loads(report: Report) -> None:
    """Overload and light load."""
    grid = {f"{load} {seed}": arrivals(rate, seed) for load, rate in LOADS.items() for seed in SEEDS}
    workload = {"arrivals": grid, "a": A, "b": B, "max_size": MAX_SIZE, "slo": SLO, "count_from": QUIET}
    fates: dict[str, dict[str, Counter[str]]] = {
        "ours": {name: ours(times) for name, times in grid.items()},
        "greedy": {name: greedy(times) for name, times in grid.items()},
        **run_peers("batching", workload),
    }
    for load in LOADS:
        names = [name for name in grid if name.split(" ")[:-1] == load.split(" ")]
        total = {who: sum((Counter(of[name]) for name in names), Counter()) for who, of in fates.items()}
        if load.endswith("x"):
            share = {who: n["in_time"] / (len(SEEDS) * SECONDS) / CAPACITY for who, n in total.items()}
            report.at_least(f"goodput at {load} load, of capacity", "", share.pop("ours"), 0.97, share)
        else:
            shed = {who: float(n["shed"]) for who, n in total.items()}
            in_time = {who: n["in_time"] / sum(n.values()) for who, n in total.items()}
            report.at_most(f"shed at {load} load", "", shed.pop("ours"), 0, shed)
            report.at_least(f"within the SLO at {load} load", "", in_time.pop("ours"), 0.999, in_time)


class Device(NamedTuple):
    """What a batch of n takes, by the number of batches before it."""

    seconds: Callable[[int, int], float]
    noise: float = 0.0


class Outcome(NamedTuple):
    """Sizes and seconds of the batches that ran, one after the other, with always enough waiting."""

    sizes: list[int]
    seconds: list[float]

    def rate(self) -> float:
        """Return elements a second."""
        return sum(self.sizes) / sum(self.seconds)

    def violations(self, slo: float) -> float:
        """Return the share of batches above the goal."""
        return sum(seconds > slo * (1 + 1e-9) for seconds in self.seconds) / len(self.seconds)


def by_cost_model(device: Device, batches: int, seed: int, slo: float = 0.05) -> Outcome:
    """Run the largest batches that ours expects to meet the goal."""
    rng, model, outcome = random.Random(seed), CostModel(), Outcome([], [])  # noqa: S311
    for number in range(batches):
        size = model.largest(slo, 10_000)
        seconds = device.seconds(number, size) * max(0.05, rng.gauss(1, device.noise))
        model.observe(size, seconds)
        outcome.sizes.append(size)
        outcome.seconds.append(seconds)
    return outcome


def by_beam(device: Device, batches: int, seed: int, slo: float = 0.05) -> Outcome:
    """Run the batches that Beam's BatchElements would."""
    rng, outcome, now = random.Random(seed), Outcome([], []), [0.0]  # noqa: S311
    random.seed(seed)  # the estimator draws from the module's own generator
    estimator = _BatchSizeEstimator(target_batch_duration_secs_including_fixed_cost=slo, clock=lambda: now[0])
    for number in range(batches):
        size = estimator.next_batch_size()
        seconds = device.seconds(number, size) * max(0.05, rng.gauss(1, device.noise))
        with estimator.record_time(size):
            now[0] += seconds
        outcome.sizes.append(size)
        outcome.seconds.append(seconds)
    return outcome


def line(a: float, b: float) -> Callable[[int, int], float]:
    """Return a device that takes ``a + b * n``."""
    return lambda _, size: a + b * size


def adaptation(report: Report) -> None:
    """Keep a goal of 50 ms, on a steady device, on one that changes, over a cliff and in waves."""
    a, b, slo = 0.010, 0.0002, 0.050
    ideal = 200 / slo
    for noise, goal in ((0.0, 0.95), (0.05, 0.95), (0.20, 0.87)):
        runs = {
            who: [play(Device(line(a, b), noise), 2000, seed) for seed in SEEDS]
            for who, play in (("ours", by_cost_model), ("Beam", by_beam))
        }
        missed = {who: statistics.mean(run.violations(slo) for run in of) for who, of in runs.items()}
        rate = {who: statistics.mean(run.rate() for run in of) / ideal for who, of in runs.items()}
        report.at_most(f"batches over 50 ms, noise {noise:.0%}", "", missed.pop("ours"), 0.015, missed)
        report.at_least(f"throughput of the ideal, noise {noise:.0%}", "", rate.pop("ours"), goal, rate)
    for name, factor in (("5x slower", 5.0), ("5x quicker", 0.2)):
        for noise in (0.0, 0.05):
            device = Device(lambda number, size, f=factor: a + b * (f if number >= 300 else 1) * size, noise)
            taken = {
                who: float(max(converged(play(device, 700, seed), 300) for seed in SEEDS))
                for who, play in (("ours", by_cost_model), ("Beam", by_beam))
            }
            report.at_most(f"batches to converge, {name}, noise {noise:.0%}", "", taken.pop("ours"), 3, taken)
    cliff = Device(lambda _, size: (a + b * size) * (20 if size > 128 else 1))
    wave = Device(lambda _, size: 0.010 * math.ceil(size / 32))
    for name, device, best in (("a 20x cliff above 128", cliff, 128 / (a + b * 128)), ("waves of 32", wave, 3200.0)):
        rates = {who: play(device, 4000, 0).rate() / best for who, play in (("ours", by_cost_model), ("Beam", by_beam))}
        report.at_least(f"throughput of the best size, {name}", "", rates.pop("ours"), 0.95, rates)


def converged(outcome: Outcome, changed: int) -> int:
    """Return how many batches after the change the mean of five sizes comes to within a fifth of where it ends."""
    sizes = outcome.sizes[changed:]
    final = statistics.mean(sizes[-100:])
    means = [statistics.mean(sizes[k : k + 5]) for k in range(len(sizes) - 5)]
    return next((k for k, mean in enumerate(means) if abs(mean - final) <= 0.2 * final), len(means))


def kept(report: Report) -> None:
    """Four windows of 300 elements, goal 50 ms: what was learned in one serves the next."""
    a, b, slo = 0.010, 0.0002, 0.050
    model, batches, missed = CostModel(), 0, 0
    beam_batches = 0
    for _ in range(4):
        estimator, now, left, beam_left = None, [0.0], 300, 300
        while left:
            size = min(left, model.largest(slo, 10_000))
            model.observe(size, a + b * size)
            missed += a + b * size > slo
            left, batches = left - size, batches + 1
        estimator = _BatchSizeEstimator(
            target_batch_duration_secs_including_fixed_cost=slo, clock=lambda now=now: now[0]
        )
        while beam_left:
            size = min(beam_left, estimator.next_batch_size())
            with estimator.record_time(size):
                now[0] += a + b * size
            beam_left, beam_batches = beam_left - size, beam_batches + 1
    best = 4 * math.ceil(300 / ((slo - a) / b))
    report.at_most("batches for 4 windows of 300", "", float(batches), best + 2, {"Beam, stateful": beam_batches})
    report.at_most("of them over 50 ms", "", float(missed), 0)


def overhead(report: Report) -> None:
    """CPU time of submit, release and finish, this loop included."""
    for load in ("89 %", "2x"):
        times = arrivals(LOADS[load], 0)
        costs = []
        for _ in range(5):
            started = time.process_time()
            ours(times)
            costs.append((time.process_time() - started) / len(times) * 1e6)
        report.at_most(f"CPU per element at {load} load", "us", statistics.median(costs), 5)


def main() -> int:
    """Run everything and return the exit code."""
    report = Report("batching", ("apache-beam",), seed=SEEDS[0])
    for part in (overhead, loads, adaptation, kept):
        print(part.__doc__, file=sys.stderr)
        part(report)
    return report.finish()


if __name__ == "__main__":
    sys.exit(main())
