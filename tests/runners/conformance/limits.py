"""Cells that a runner cannot fill, why, and a run of plain Beam in which its limit shows."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import apache_beam as beam
from apache_beam.coders import VarIntCoder
from apache_beam.metrics import Metrics
from apache_beam.transforms.timeutil import TimeDomain
from apache_beam.transforms.userstate import BagStateSpec, TimerSpec, on_timer

from tests.runners.conformance.jobs import Cell, Job
from tests.runners.conformance.places import Input
from tests.runners.conformance.source import Step
from tests.runners.processes import wait_for


@dataclass(frozen=True)
class Limit:
    """What a runner cannot do.

    Attributes:
        why: in one line.
        still_there: fails once it can.
    """

    why: str
    still_there: Callable[[Cell], None]


class AlarmFn(beam.DoFn):
    """Says so when an alarm that was set for in an hour rings."""

    ALARM = TimerSpec("alarm", TimeDomain.REAL_TIME)

    def process(self, element: tuple[str, int], alarm: Any = beam.DoFn.TimerParam(ALARM)) -> None:
        alarm.set(time.time() + 3_600)

    @on_timer(ALARM)
    def on_alarm(self) -> Iterator[int]:
        yield 1


def timers_fire_at_once(cell: Cell) -> None:
    def build(job: Job) -> None:
        pairs = job.source([(0, 0)]) | beam.Map(paired).with_output_types(tuple[str, int])
        job.keep("rung", pairs | beam.ParDo(AlarmFn()), int)

    assert cell.run(build).outputs["rung"] == [1]


def paired(number: int) -> tuple[str, int]:
    return "", number


def live_input_is_a_streaming_job(cell: Cell) -> None:
    def build(job: Job) -> None:
        job.keep("numbers", job.live([Step(0.0, [(0, 0)], 1), Step(0.5, [(1, 1)], 2)]), int)

    cell.run(build)
    flink = cell.fixture("flink")
    (job,) = (each for each in flink.rest("jobs/overview")["jobs"] if each["name"].startswith(cell.job_name))
    assert flink.rest(f"jobs/{job['jid']}")["plan"]["type"] == "STREAMING"


def run_returns_at_the_end(cell: Cell) -> None:
    cell.folder.mkdir(exist_ok=True)
    with cell.started(slowly(cell.folder / "log")):
        assert len((cell.folder / "log").read_text()) == SLOW


def cancel_does_not_stop(cell: Cell) -> None:
    with cell.started(slowly(cell.folder / "log")) as (_, result):
        wait_for("the first element", (cell.folder / "log").exists, cell.folder)
        result.cancel()
        assert len((cell.folder / "log").read_text()) < SLOW
        wait_for("the last element", lambda: len((cell.folder / "log").read_text()) == SLOW, cell.folder, 10)


SLOW = 20


def slowly(log: Path) -> Callable[[Job], None]:
    """Return what builds a job of 20 elements in a second, each of which leaves a mark."""

    def build(job: Job) -> None:
        job.keep("numbers", job.source([(0, number) for number in range(SLOW)]) | beam.Map(noted, str(log)), int)

    return build


def noted(number: int, log: str) -> int:
    time.sleep(0.05)
    with open(log, "a") as file:
        file.write(".")
    return number


class HeldFn(beam.DoFn):
    """Gives what it has kept, at its own time, when a timer at 5 s fires: so long the runner should hold that time."""

    BAG = BagStateSpec("bag", VarIntCoder())
    DUE = TimerSpec("due", TimeDomain.REAL_TIME)

    def process(
        self,
        element: tuple[str, int],
        bag: Any = beam.DoFn.StateParam(BAG),
        due: Any = beam.DoFn.TimerParam(DUE),
    ) -> None:
        bag.add(element[1])
        due.set(5)

    @on_timer(DUE)
    def on_due(self, bag: Any = beam.DoFn.StateParam(BAG)) -> Iterator[Any]:
        yield from (beam.window.TimestampedValue(number, number) for number in bag.read())
        bag.clear()


def watermark_is_not_held(cell: Cell) -> None:
    """0 and 1 wait for a timer of real time at 5 s; meanwhile the watermark moves to 10 s."""

    def build(job: Job) -> None:
        source = job.live([Step(0.0, [(0, 0), (1, 1)], 2), Step(1.0, [(9, 9)], 10), Step(6.0, [], 11)])
        kept = source | beam.Map(paired).with_output_types(tuple[str, int]) | beam.ParDo(HeldFn())
        job.keep("numbers", kept, int)
        job.count("numbers", kept)

    out = cell.run(build).outputs
    assert sorted(out["numbers"]) == [0, 1, 9]
    assert sum(out["numbers behind"]) < 3


class CountFn(beam.DoFn):
    """Counts elements."""

    def __init__(self) -> None:
        self._count = Metrics.counter("limits", "counted")

    def process(self, number: int) -> Iterator[int]:
        self._count.inc()
        yield number


def metrics_of_timers_are_lost(cell: Cell) -> None:
    """What is counted behind a timer is there, and in no counter; what is counted before it is in one."""

    def build(job: Job) -> None:
        source = job.live([Step(0.0, [(0, 0), (1, 1)], 2), Step(6.0, [], 11)])
        pairs = source | beam.Map(paired).with_output_types(tuple[str, int])
        job.keep("numbers", pairs | beam.ParDo(HeldFn()) | beam.ParDo(CountFn()), int)

    done = cell.run(build)
    assert sorted(done.outputs["numbers"]) == [0, 1]
    assert done.counters.get("counted", 0) == 0


_AT_ONCE = Limit("its timers of real time fire at once", timers_fire_at_once)
_IN_RUN = Limit("`run()` returns when the job has ended: there is nothing to cancel", run_returns_at_the_end)

LIMITS: dict[tuple[str, str, Input], Limit] = {
    ("DirectRunner", "drain, cancel", "bounded"): _IN_RUN,
    ("DirectRunner", "aggregation behind it", "live"): Limit(
        "from a `TestStream` the runner that it picks does not hold the watermark for what waits in state",
        watermark_is_not_held,
    ),
    ("DirectRunner", "metrics", "live"): Limit(
        "from a `TestStream` the runner that it picks leaves what timers do out of its metrics",
        metrics_of_timers_are_lost,
    ),
    ("FnApiRunner", "delay", "bounded"): _AT_ONCE,
    ("FnApiRunner", "drain, cancel", "bounded"): _IN_RUN,
    ("FnApiRunner, gRPC", "delay", "bounded"): _AT_ONCE,
    ("FnApiRunner, gRPC", "drain, cancel", "bounded"): _IN_RUN,
    ("embedded server", "delay", "bounded"): _AT_ONCE,
    ("embedded server", "drain, cancel", "bounded"): Limit(
        "`cancel()` says that the job is cancelled, and the job goes on", cancel_does_not_stop
    ),
    ("Flink, batch", "delay", "bounded"): _AT_ONCE,
    ("Flink, batch", "shed", "bounded"): Limit(
        "live input, where alone somebody waits, makes it a streaming job", live_input_is_a_streaming_job
    ),
}
"""By column, row and input. A row that needs live input stands under the input that the runner has."""

BLEMISHES: dict[tuple[str, str, Input], str] = {
    ("Prism", "metrics", "live"): "now and then its metrics lack a bundle (2 runs of 10 on a busy machine)",
}
"""What a runner does not always do right, which no test can wait for: the cell runs, and allows for it."""
