"""Running a pipeline so that SIGINT and SIGTERM end it in order, and leave nothing behind.

The first signal stops the sources, if the workers are in this process, and what was read comes out; after a grace
period, or at the second signal, the job is cancelled. A job that reads its input at once is cancelled at the first. On
Flink the job is cancelled through its REST interface: Beam's ``cancel()`` leaves it running there. DirectRunner plays
the rest of its script without events, some 0.1 s for each step, before a live job has drained.
"""

from __future__ import annotations

import atexit
import io
import logging
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, suppress
from types import FrameType
from typing import Any

import apache_beam as beam
from apache_beam.options.pipeline_options import (
    FlinkRunnerOptions,
    GoogleCloudOptions,
    PipelineOptions,
    PortableOptions,
    StandardOptions,
)
from apache_beam.runners.runner import PipelineState

from contbatch.pipelines.errors import JobError, Stopped, UsageError
from contbatch.pipelines.flink import Flink, rest_address
from contbatch.pipelines.job_server import is_flink, runner_name, server_options
from contbatch.transforms.io.stop import resume_sources, stop_sources

GRACE = 30.0
"""Seconds to drain."""
_PATIENCE = 15.0
"""Seconds for a cancelled job to say so."""
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class _Asked:
    """Signals that have come.

    Attributes:
        first: of them.
        at: when it came, by the monotonic clock.
        count: how many.
        starting: whether the pipeline is being started, in this thread, so that a signal has to break it off.
    """

    def __init__(self) -> None:
        self.first: signal.Signals | None = None
        self.at = 0.0
        self.count = 0
        self.starting = True

    def listen(self) -> None:
        """Take the signals over."""
        for number in _SIGNALS:
            signal.signal(number, self._note)

    def _note(self, number: int, _: FrameType | None) -> None:
        self.count += 1
        if self.first is None:
            self.first, self.at = signal.Signals(number), time.monotonic()
        if self.starting:
            raise Stopped(self.first, False, f"stopped by {self.first.name} before the job had begun")


def run_until_stopped(
    pipeline: beam.Pipeline, *, grace: float = GRACE, flink_rest: str | None = None, say: Callable[[str], None] = print
) -> str:
    """Run a pipeline to its end, and return the state that it ends in.

    Has to be called by the main thread, whose signal handlers it takes over meanwhile.

    Args:
        pipeline: not yet run.
        grace: seconds from the first signal in which it may drain.
        flink_rest: address of Flink's REST interface, if that is where it runs; ``--flink_master`` says so too.
        say: is told what is done about a signal.

    Raises:
        Stopped: a signal ended it.
        UsageError: no job server answers.
        Exception: whatever the runner raises for a job that fails.
    """
    options = pipeline.options
    drains = options.view_as(StandardOptions).streaming and _in_process(options)
    cancel = _canceller(options, flink_rest)
    asked = _Asked()
    resume_sources()
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    try:
        asked.listen()
        result = pipeline.run()
        asked.starting = False
        asked.listen()  # again: Beam sets a handler of its own when it starts Prism, which ends Prism at once
        return _wait(result, asked, cancel, grace if drains else 0.0, say)
    finally:
        resume_sources()
        for number, handler in before.items():
            signal.signal(number, handler)


def _wait(
    result: Any, asked: _Asked, cancel: Callable[[Any], str | None], grace: float, say: Callable[[str], None]
) -> str:
    ended: list[Any] = []

    def wait() -> None:
        try:
            ended.append(result.wait_until_finish())
        except BaseException as error:  # raised again by the thread that asked
            ended.append(error)

    thread = threading.Thread(target=wait, daemon=True, name="wait-for-the-job")
    thread.start()
    told = False
    while thread.is_alive():
        thread.join(0.1)
        if asked.first is None:
            continue
        if grace and not told:
            told = True
            stop_sources()
            say(f"{asked.first.name}: the source ends, and what was read comes out; once more to cancel")
        if asked.count > 1 or time.monotonic() > asked.at + grace:
            return _cancel(result, asked.first, thread, ended, cancel)
    if isinstance(ended[0], BaseException):
        raise ended[0]
    if asked.first is not None:
        atexit.register(_end_quietly)
        raise Stopped(asked.first, True, _drained(asked.first))
    return str(ended[0] or result.state)


def _cancel(
    result: Any, first: signal.Signals, thread: threading.Thread, ended: list[Any], cancel: Callable[[Any], str | None]
) -> str:
    with _quiet():
        left = cancel(result)
        end = time.monotonic() + _PATIENCE
        while left is None and thread.is_alive() and not _ended(result):
            if time.monotonic() > end:
                left = f"the runner has not said in {_PATIENCE:g} s that the job is cancelled"
            thread.join(0.1)
    if ended and ended[0] == PipelineState.DONE:
        raise Stopped(first, True, _drained(first))
    raise Stopped(first, False, f"stopped by {first.name}; {left or 'the job was cancelled: its output is incomplete'}")


def _ended(result: Any) -> bool:
    try:
        return PipelineState.is_terminal(result.state)
    except Exception:  # of a runner that is gone
        return True


def _drained(first: signal.Signals) -> str:
    return f"stopped by {first.name}; everything that was read is accounted for"


@contextmanager
def _quiet() -> Iterator[None]:
    """Drop what the threads of a worker have to say about the end of its runner."""
    hook, level = threading.excepthook, logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    threading.excepthook = lambda _: None
    atexit.register(_end_quietly)
    try:
        with redirect_stderr(io.StringIO()):  # where Beam's worker prints its tracebacks
            yield
    finally:
        logging.disable(level)
        threading.excepthook = hook


def _end_quietly() -> None:
    """Let nothing break off or talk into the end of the process, in which Beam stops Prism."""
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    logging.disable(logging.CRITICAL)
    threading.excepthook = lambda _: None
    sys.stderr = io.StringIO()


def _in_process(options: PipelineOptions) -> bool:
    """Return whether the workers are threads of this process."""
    runner = runner_name(options)
    kind = options.view_as(PortableOptions).environment_type
    return (
        runner in ("DirectRunner", "FnApiRunner", "BundleBasedDirectRunner")
        or kind == "LOOPBACK"
        or (runner == "PrismRunner" and kind is None)
    )


def _canceller(options: PipelineOptions, flink_rest: str | None) -> Callable[[Any], str | None]:
    """Return what cancels the job; that returns why the job runs on, or ``None``."""
    name = options.view_as(GoogleCloudOptions).job_name
    rest = rest_address(flink_rest, options.view_as(FlinkRunnerOptions).flink_master)
    on_flink = runner_name(options) == "FlinkRunner" or is_flink(server_options(options))

    def cancel(result: Any) -> str | None:
        if not on_flink:
            with suppress(Exception):  # one that has ended meanwhile
                result.cancel()
            return None
        if rest is None or name is None:
            return f"the job runs on: cancel it with `contbatch flink cancel {name or 'JOB'} --flink_rest=...`"
        try:
            _cancel_on_flink(Flink(rest), name)
        except (UsageError, JobError) as error:
            return f"the job may run on: {error}"
        return None

    return cancel


def _cancel_on_flink(flink: Flink, name: str) -> None:
    end = time.monotonic() + _PATIENCE
    while not any(job.name == name for job in flink.jobs()) and time.monotonic() < end:
        time.sleep(0.1)  # it has been handed over, and is not there yet
    job = flink.find(name)
    if not job.ended:
        flink.cancel(job)
