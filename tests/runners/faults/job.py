"""A live job on Flink whose processes are killed."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path
from typing import Any

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions

from tests.runners.cluster import LIVE, FlinkCluster
from tests.runners.faults.forms import FORMS, LEARNING, ORDERED, PREDICTING, Workload, build
from tests.runners.faults.verdict import Outputs, known
from tests.runners.processes import wait_for

RETRIES = ("--number_of_execution_retries=100", "--execution_retry_delay=500")


class FaultyJob:
    """A job on Flink, and what is done to it.

    Args:
        cluster: where it runs.
        folder: for its outputs and its stores.
        workload: what it is given.
        stack: stops its workers.
    """

    def __init__(self, cluster: FlinkCluster, folder: Path, workload: Workload, stack: ExitStack) -> None:
        self._cluster = cluster
        self._folder = folder
        self._workload = workload
        self._stack = stack
        self._outputs = Outputs(folder)
        self._flags: Sequence[str] = ()
        self._job = ""
        self._runs = 0

    def start(self, *more: str) -> None:
        """Submit the job, and wait until it runs."""
        name = f"faults-{self._folder.name}-{self._runs}".replace("_", "-").lower()
        self._runs += 1
        flags = self._stack.enter_context(self._cluster.flags(*LIVE, *RETRIES, f"--job_name={name}", *more))
        pipeline = beam.Pipeline(options=PipelineOptions(flags))
        build(pipeline, self._folder, self._workload)
        pipeline.run()
        found: list[str] = []

        def is_there() -> bool:
            try:
                found.append(self._cluster.job(name))
            except LookupError:
                return False
            return True

        wait_for("the job", is_there, self._folder)
        self._flags, self._job = flags, found[0]

    def wait_for(self, share: float) -> None:
        """Wait until a share of the requests has predictions everywhere, and a checkpoint could be restored."""
        least = share * self._workload.requests
        names = [f"{form}-predicted" for form in PREDICTING]
        self._wait("its predictions", lambda: all(len(self._outputs.ids(name)) >= least for name in names), self._long)
        self._wait("a checkpoint", lambda: self._counts["completed"] > 0)

    def kill(self, what: str) -> float:
        """Kill the ``worker`` or the ``taskmanager``, start what nobody else does; return seconds to the next output.

        Raises:
            ValueError: it is neither.
            TimeoutError: there is no output any more.
        """
        restored = self._counts["restored"]
        killed = time.time()
        if what == "worker":
            self._cluster.kill_worker(self._flags)
        elif what == "taskmanager":
            self._cluster.kill_taskmanager()
            self._cluster.start_taskmanager()
        else:
            raise ValueError(f"{what!r} is to be killed; give 'worker' or 'taskmanager'")
        seconds = self._seconds_since(killed)
        self._wait("a restored checkpoint", lambda: self._counts["restored"] > restored)
        return seconds

    def resume(self) -> tuple[float, float]:
        """Cancel with a savepoint, start again from it; return seconds of the former, and then to the next output."""
        began = time.time()
        path = self._cluster.savepoint(self._job)
        saved = time.time()
        self.start(f"--savepoint_path={path}")
        return saved - began, self._seconds_since(saved)

    def finish(self) -> None:
        """Wait until nothing is missing any more, then cancel."""
        try:
            self._wait("all outputs", self._is_complete, self._long)
        finally:
            self._cluster.cancel(self._job)

    @cached_property
    def _ids(self) -> set[str]:
        return {str(row) for row in range(self._workload.requests)}

    @cached_property
    def _again(self) -> set[int]:
        return {event.row for event in self._workload.events if event.row >= self._workload.requests}

    def _is_complete(self) -> bool:
        names = [f"{form}-predicted" for form in PREDICTING] + [f"{form}-learned" for form in LEARNING]
        if not all(self._outputs.ids(name) >= self._ids for name in names):
            return False
        # A version is in the store before the outputs of its bundle are in the sinks.
        if not all(self._outputs.ids(f"{form}-failed") >= self._again for form in LEARNING):
            return False
        last = {form: max((one[2] for one in self._outputs.read(f"{form}-published")), default=0) for form in ORDERED}
        if min(last.values()) < self._workload.requests:
            return False
        return all(known(self._folder, form) >= self._workload.requests for form in FORMS)

    @property
    def _long(self) -> float:
        """Seconds after which what the source gives has arrived, or never does."""
        return self._workload.seconds + 90

    @property
    def _counts(self) -> Any:
        return self._cluster.checkpoints(self._job)["counts"]

    def _wait(self, what: str, is_there: Callable[[], bool], seconds: float = 90.0) -> None:
        wait_for(what, is_there, self._folder, seconds)

    def _seconds_since(self, moment: float) -> float:
        """Return seconds from a moment to the next output."""
        self._wait("the next output", lambda: self._outputs.first_since(moment))
        return (self._outputs.first_since(moment) or math.inf) - moment
