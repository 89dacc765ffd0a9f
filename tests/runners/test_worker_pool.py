"""The pool of workers on a real Flink cluster: the job's options reach its workers, as they do not with Beam's pool."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import apache_beam as beam
import pytest
from apache_beam.options.value_provider import RuntimeValueProvider
from apache_beam.runners.worker.sdk_worker import SdkHarness

from contbatch.pipelines.flink import Flink
from contbatch.pipelines.options import pipeline_options
from contbatch.pipelines.runner_flags import given
from tests.runners.cluster import FlinkCluster
from tests.runners.processes import free_ports, is_open, start, wait_for
from tests.runners.sink import FileSink
from tests.runners.test_flink_commands import job

pytestmark = [pytest.mark.needs("javac", "mvn"), pytest.mark.slow]

ASKED = ("--max_cache_memory_usage_mb=33", "--experiments=data_buffer_time_limit_ms=7")
MANY = 200_000
"""Bytes that a step prints: a pipe that nobody reads holds 64 KiB."""


class ReportFn(beam.DoFn):
    """Says what its worker was told, after printing so many bytes."""

    def __init__(self, prints: int) -> None:
        self._prints = prints

    def process(self, element: Any) -> Iterator[dict[str, Any]]:
        import gc

        (harness,) = (one for one in gc.get_objects() if isinstance(one, SdkHarness))
        print("x" * self._prints, flush=True)
        yield {
            "cache": harness._state_cache._max_weight,
            "buffer": harness._data_channel_factory._data_buffer_time_limit_ms,
            "experiments": (RuntimeValueProvider.runtime_options or {}).get("experiments"),
            "python": sys.executable,
        }


def report(flags: Sequence[str], folder: Path, prints: int = 0) -> dict[str, Any]:
    sink = FileSink(folder)
    with beam.Pipeline(options=pipeline_options([*flags, *ASKED])) as pipeline:
        _ = pipeline | beam.Create([0]) | beam.ParDo(ReportFn(prints)) | sink
    (found,) = sink.read()
    return found


def test_the_jobs_options_reach_its_workers_and_what_they_print_blocks_nobody(
    flink: FlinkCluster, tmp_path: Path
) -> None:
    with flink.flags() as flags:
        found = report(flags, tmp_path / "out", MANY)
    assert (found["cache"], found["buffer"]) == (33 << 20, 7)
    assert {"data_buffer_time_limit_ms=7", "prism_disable_sdf_split"} <= {*found["experiments"]}
    assert found["python"] == sys.executable
    port = (given(flags, "environment_config") or "").rpartition(":")[2]
    log = (flink.folder / f"pool-{port}.log").read_text()
    assert "x" * MANY in log
    assert "is process" in log


def test_beams_own_pool_loses_them(flink: FlinkCluster, tmp_path: Path) -> None:
    """Why there is a pool of ours; the day that this fails, there need not be. (Printing MANY, it hangs.)"""
    (port,) = free_ports(1)
    with ExitStack() as stack:
        flags = stack.enter_context(flink.flags())
        stock = [sys.executable, "-m", "apache_beam.runners.worker.worker_pool_main", f"--service_port={port}"]
        start("stock", stock, tmp_path, stack)
        wait_for("Beam's pool", lambda: is_open(port), tmp_path)
        found = report([*flags, f"--environment_config=localhost:{port}"], tmp_path / "out")
    assert (found["cache"], found["buffer"], found["experiments"]) == (0, -1, None)


def test_one_pool_serves_jobs_one_after_the_other(flink: FlinkCluster, tmp_path: Path) -> None:
    with flink.flags() as flags:
        report(flags, tmp_path / "first")
        report(flags, tmp_path / "second")


def test_a_second_job_fails_and_the_first_goes_on(flink: FlinkCluster, tmp_path: Path) -> None:
    """With Beam's pool the end of the second job stops the worker of the first."""
    cluster = flink.flink
    with job(flink, "holder", tmp_path / "out") as sink, flink.flags() as others:
        one = cluster.find("holder")
        pool = cluster.settings(one.id)["environmentConfig"]
        # No REST address, so that the pool alone can see it.
        flags = [flag for flag in others if not flag.startswith(("--flink_master", "--environment_config"))]
        second = beam.Pipeline(options=pipeline_options([*flags, f"--environment_config={pool}", "--job_name=second"]))
        _ = second | beam.Create([0]) | beam.ParDo(ReportFn(0))
        second.run()
        failed = partial(_failed, cluster, "second")
        wait_for("the second job's end", failed, tmp_path)
        why = str(flink.rest(f"jobs/{failed()[0]}/exceptions"))
        assert re.search(r"the pool serves the job holder/\S+: start a pool of its own for second/", why)
        seen = len(sink.read())
        wait_for("more of the first job", lambda: len(sink.read()) > seen + 50, tmp_path)
        assert cluster.state(one.id) == "RUNNING"
        rows = sorted(sink.read())
        assert rows == [*range(len(rows))]  # once each: its worker was never lost
        cluster.cancel(one)


def _failed(cluster: Flink, name: str) -> list[str]:
    return [one.id for one in cluster.jobs() if (one.name, one.state) == (name, "FAILED")]
