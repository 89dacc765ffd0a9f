"""What a signal does to a running pipeline, with a runner that does as it is told; ``tests/runners`` has real ones."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.runner import PipelineState

from contbatch.pipelines import stopping
from contbatch.pipelines.errors import Stopped, UsageError
from contbatch.pipelines.stopping import run_until_stopped
from contbatch.transforms.io import stop
from tests.pipelines.flink_server import fake_flink
from tests.pipelines.job_server import FLINK, job_server

LIVE = ("--runner=PrismRunner", "--streaming")
COUNTED = "everything that was read is accounted for"


def kill(number: int = signal.SIGTERM) -> None:
    os.kill(os.getpid(), number)


class Job:
    """A pipeline, and its result. It sends its own process a signal, and ends when its sources are stopped.

    Args:
        flags: Beam's.
        signals: are sent, one after the other, each when the one before has been noted.
        drains: whether it ends when its sources are stopped.
        failure: what it then fails with.
    """

    def __init__(
        self, *flags: str, signals: tuple[int, ...] = (), drains: bool = True, failure: Exception | None = None
    ) -> None:
        self.options = PipelineOptions([*flags])
        self.state = PipelineState.RUNNING
        self.cancelled = 0
        self._signals, self._drains, self._failure = signals, drains, failure
        self._end = threading.Event()

    def run(self) -> Job:
        return self

    def wait_until_finish(self) -> str:
        for number in self._signals:
            kill(number)
            if number != self._signals[-1]:
                self._end.wait(0.3)  # signals of one kind that come together are one
        end = time.monotonic() + 10  # in no test of code that works
        while self._signals and not self._end.wait(0.01) and time.monotonic() < end:
            if self._drains and stop.stopping():
                if self._failure:
                    raise self._failure
                break
        if self.state == PipelineState.RUNNING:
            self.state = PipelineState.DONE
        if self.state == PipelineState.CANCELLED:
            raise RuntimeError("failed in state CANCELLED")
        return self.state

    def cancel(self) -> None:
        self.cancelled += 1
        self.state = PipelineState.CANCELLED
        self._end.set()


def stopped(job: Any, **arguments: Any) -> tuple[str, bool, list[str]]:
    """Run it, and return how it was stopped, whether it had drained, and what was said."""
    said: list[str] = []
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(Stopped) as error:
        run_until_stopped(job, say=said.append, **arguments)
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers
    assert not stop.stopping()
    return str(error.value), error.value.drained, said


def test_a_job_that_is_left_alone_ends_in_its_state() -> None:
    assert run_until_stopped(Job(*LIVE)) == "DONE"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_live_job_drains(number: signal.Signals) -> None:
    job = Job(*LIVE, signals=(number,))
    assert stopped(job) == (
        f"stopped by {number.name}; {COUNTED}",
        True,
        [f"{number.name}: the source ends, and what was read comes out; once more to cancel"],
    )
    assert job.cancelled == 0


def test_after_the_grace_period_it_is_cancelled() -> None:
    job = Job(*LIVE, signals=(signal.SIGTERM,), drains=False)
    text, drained, said = stopped(job, grace=0.3)
    assert (text, drained, len(said)) == (
        "stopped by SIGTERM; the job was cancelled: its output is incomplete",
        False,
        1,
    )
    assert job.cancelled == 1


def test_at_the_second_signal_it_is_cancelled() -> None:
    job = Job(*LIVE, signals=(signal.SIGINT, signal.SIGTERM), drains=False)
    assert stopped(job, grace=600)[:2] == ("stopped by SIGINT; the job was cancelled: its output is incomplete", False)
    assert job.cancelled == 1


@pytest.mark.parametrize(
    "flags",
    [
        ("--runner=PrismRunner",),  # it has read its input
        (*LIVE, "--environment_type=EXTERNAL", "--environment_config=localhost:1"),  # whose sources are elsewhere
    ],
)
def test_what_cannot_drain_is_cancelled_at_once(flags: tuple[str, ...]) -> None:
    job = Job(*flags, signals=(signal.SIGTERM,))
    assert stopped(job, grace=600) == (
        "stopped by SIGTERM; the job was cancelled: its output is incomplete",
        False,
        [],
    )


def test_a_job_that_ends_as_it_is_cancelled_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    job = Job("--runner=PrismRunner", signals=(signal.SIGTERM,))
    monkeypatch.setattr(job, "cancel", job._end.set)
    assert stopped(job)[:2] == (f"stopped by SIGTERM; {COUNTED}", True)


def test_a_runner_that_does_not_end_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stopping, "_PATIENCE", 0.2)
    job = Job("--runner=PrismRunner", signals=(signal.SIGTERM,))
    monkeypatch.setattr(job, "cancel", lambda: None)
    text = "stopped by SIGTERM; the runner has not said in 0.2 s that the job is cancelled"
    assert stopped(job)[:2] == (text, False)
    job._end.set()


def test_a_job_that_fails_as_it_drains_has_failed() -> None:
    with pytest.raises(OSError, match="disk full"):
        run_until_stopped(Job(*LIVE, signals=(signal.SIGTERM,), failure=OSError("disk full")))  # type: ignore[arg-type]


class Starting(Job):
    """A runner that runs the whole job in ``run``, as FnApiRunner does, or is long in submitting it."""

    def __init__(self, action: Callable[[], None]) -> None:
        super().__init__(*LIVE)
        self._action = action

    def run(self) -> Job:
        self._action()
        return self


def test_a_signal_breaks_off_what_runs_in_this_thread() -> None:
    assert stopped(Starting(kill))[0] == "stopped by SIGTERM before the job had begun"


def test_a_handler_that_beam_sets_is_replaced() -> None:
    """Its own would end Prism under a job that is to drain."""

    noted: list[int] = []

    def beam_starts_prism() -> None:
        signal.signal(signal.SIGINT, lambda number, _: noted.append(number))

    job = Starting(beam_starts_prism)
    job._signals = (signal.SIGINT,)
    assert stopped(job)[:2] == (f"stopped by SIGINT; {COUNTED}", True)
    assert noted == []


class TestFlink:
    @pytest.fixture
    def flags(self) -> Iterator[list[str]]:
        with job_server(FLINK) as server:
            yield ["--runner=PortableRunner", f"--job_endpoint={server}", "--environment_type=EXTERNAL", "--streaming"]

    def stopped(self, *flags: str, **arguments: Any) -> str:
        job = Job(*flags, signals=(signal.SIGTERM,))
        text, drained, said = stopped(job, **arguments)
        job._end.set()
        assert (drained, said) == (False, [])
        assert job.cancelled == 0  # Beam would only say that it is
        return text

    def test_the_job_is_cancelled_in_the_cluster(self, flags: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
        with fake_flink() as cluster:
            here = cluster.add("mine")
            monkeypatch.setattr(stopping, "_ended", lambda _: cluster.states[here] == "CANCELED")
            text = self.stopped(*flags, "--job_name=mine", flink_rest=cluster.address)
            assert text == "stopped by SIGTERM; the job was cancelled: its output is incomplete"
            assert cluster.states[here] == "CANCELED"

    def test_a_job_that_the_cluster_has_not_seen_yet_is_waited_for(
        self, flags: list[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(stopping, "_ended", lambda _: True)
        with fake_flink() as cluster:
            threading.Timer(0.5, cluster.add, ["mine"]).start()
            text = self.stopped(*flags, "--job_name=mine", flink_rest=cluster.address)
            assert text == "stopped by SIGTERM; the job was cancelled: its output is incomplete"
            assert [*cluster.states.values()] == ["CANCELED"]
            monkeypatch.setattr(stopping, "_PATIENCE", 0.2)
            text = self.stopped(*flags, "--job_name=other", flink_rest=cluster.address)
            assert text.startswith("stopped by SIGTERM; the job may run on: no job other on ")

    def test_without_an_address_or_a_name_it_is_said_that_it_runs_on(self, flags: list[str]) -> None:
        text = "stopped by SIGTERM; the job runs on: cancel it with `contbatch flink cancel {} --flink_rest=...`"
        assert self.stopped(*flags, "--job_name=mine") == text.format("mine")
        assert self.stopped(*flags, "--flink_master=localhost:1") == text.format("JOB")

    def test_a_cluster_that_does_not_answer_is_said(self, flags: list[str]) -> None:
        text = self.stopped(*flags, "--job_name=mine", "--flink_master=localhost:1")
        assert text.startswith("stopped by SIGTERM; the job may run on: no Flink answers at http://localhost:1 (")


def test_another_servers_job_is_cancelled_as_beam_does() -> None:
    with job_server({}) as server:
        job = Job("--runner=PortableRunner", f"--job_endpoint={server}", "--job_name=mine", signals=(signal.SIGTERM,))
        assert stopped(job)[0] == "stopped by SIGTERM; the job was cancelled: its output is incomplete"
    assert job.cancelled == 1


def test_a_server_that_is_not_there_is_said_before_anything_is_run() -> None:
    with pytest.raises(UsageError, match="no job server answers at localhost:1 "):
        run_until_stopped(Job("--runner=PortableRunner", "--job_endpoint=localhost:1"))  # type: ignore[arg-type]
