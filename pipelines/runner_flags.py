"""What each runner needs, where the user has not given it, and what it cannot do, in one sentence."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Sequence
from pathlib import Path

from apache_beam import version as beam
from apache_beam.options.pipeline_options import (
    DebugOptions,
    GoogleCloudOptions,
    PipelineOptions,
    PortableOptions,
    PrismRunnerOptions,
)
from apache_beam.runners.portability.prism_runner import PrismJobServer

from contbatch.pipelines.errors import UsageError
from contbatch.pipelines.flink import Flink

_LIVE = ("max_bundle_time_mills=50", "checkpointing_interval=5000", "finish_bundle_before_checkpointing")
"""Milliseconds. At Flink's default of 1,000 a bundle, a deadline of 50 ms is met after 2 to 4 s.

A bundle that is open while a checkpoint is taken gives its output behind the watermark, where windows drop it as late.
"""
_ENDS = ("max_bundle_time_mills=50", "shutdown_sources_after_idle_ms=1000")
"""For a source that comes to an end: with checkpoints its job would run on for ever."""
FLINK_FLAGS = (
    *(flag.partition("=")[0] for flag in _LIVE),
    "shutdown_sources_after_idle_ms",
    "savepoint_path",
    "state_backend",
    "state_backend_storage_path",
)
"""Of Flink, to suggest one for a slip where no server can be asked."""


def given(flags: Sequence[str], name: str) -> str | None:
    """Return what a flag was given as, the last time; empty without a value, ``None`` if it was not given."""
    value = None
    for flag, after in zip(flags, [*flags[1:], "--"], strict=False):
        if flag == f"--{name}":
            value = "" if after.startswith("--") else after
        elif flag.startswith(f"--{name}="):
            value = flag.split("=", 1)[1]
    return value


def flink_flags(flags: Sequence[str], streaming: bool, ends: bool) -> list[str]:
    """Return the flags that a job on Flink needs beside those that were given.

    A live job has checkpoints, and what happens when it fails is left to the cluster, which then restarts it from the
    last one, without end. A job whose source comes to an end has none, so that it can end: one that fails is over, as
    what it would begin again has been written already.

    Raises:
        UsageError: the flags contradict each other.
    """
    backend, storage = (given(flags, name) for name in ("state_backend", "state_backend_storage_path"))
    if backend is not None and not storage:
        raise UsageError(
            f"state_backend is {backend}, and Flink's runner takes it only with a place for checkpoints; add "
            "--state_backend_storage_path=..., which every machine of the cluster can write"
        )
    if storage is not None and not backend:
        raise UsageError(
            f"state_backend_storage_path is {storage}, which Flink's runner ignores without a backend; add "
            "--state_backend=filesystem, or rocksdb"
        )
    wanted = [f"--job_name=contbatch-{uuid.uuid4().hex[:8]}"] if given(flags, "job_name") is None else []
    if streaming:
        defaults = _ENDS if ends else _LIVE
        wanted += [f"--{flag}" for flag in defaults if given(flags, flag.partition("=")[0]) is None]
    return wanted


def check_pool(options: PipelineOptions, flink: Flink) -> None:
    """See that no running job of a Flink cluster has the pool of workers that these options name.

    Raises:
        UsageError: one has it: the end of either job would stop the other's workers.
    """
    portable = options.view_as(PortableOptions)
    if portable.environment_type != "EXTERNAL" or not portable.environment_config:
        return
    for job in flink.jobs():
        if not job.ended and flink.settings(job.id).get("environmentConfig") == portable.environment_config:
            raise UsageError(
                f"the pool of workers {portable.environment_config} serves the job {job.name} ({job.id}); start one "
                "for this job with `contbatch worker-pool --port=0`, and name it with --environment_config"
            )


def find_prism(options: PipelineOptions) -> None:
    """Say where Prism is: ``--prism_location``, ``$CONTBATCH_PRISM``, the PATH, Beam's cache, or a download into it.

    Raises:
        UsageError: it is nowhere.
    """
    prism = options.view_as(PrismRunnerOptions)
    named = "--prism_location" if prism.prism_location else "$CONTBATCH_PRISM"
    path = prism.prism_location or os.environ.get("CONTBATCH_PRISM")
    if path:
        if "://" not in path and not Path(path).is_file():
            raise UsageError(
                f"no Prism at {path}, which {named} names; give the path of the binary, or build it: {_BUILD}"
            )
        prism.prism_location = path
        return
    prism.prism_location = shutil.which("prism")
    if prism.prism_location:
        return
    server = PrismJobServer(options)
    try:
        prism.prism_location = server.local_bin(server.path_to_binary())
    except (RuntimeError, OSError, ValueError) as error:
        reason = str(error).rpartition(": ")[2].strip("<>")
        raise UsageError(
            f"no Prism, neither in $CONTBATCH_PRISM nor on the PATH, and it cannot be downloaded ({reason}); build it "
            f"with {_BUILD}, and name the binary in $CONTBATCH_PRISM"
        ) from error


_BUILD = f"`go install github.com/apache/beam/sdks/v2/go/cmd/prism@v{beam.__version__}`"


def set_up_dataflow(options: PipelineOptions, streaming: bool) -> None:
    """Set what a streaming job needs on Dataflow, which turns on Streaming Engine and Runner v2 by itself.

    A worker machine gets one process, so that it has one engine, and one model: Dataflow's default is a process for
    each of its cores.

    Raises:
        UsageError: project, region or a place for files is missing.
    """
    cloud, debug = options.view_as(GoogleCloudOptions), options.view_as(DebugOptions)
    needed = {
        "--project": cloud.project,
        "--region": cloud.region or os.environ.get("CLOUDSDK_COMPUTE_REGION"),
        "--temp_location": cloud.temp_location or cloud.staging_location,
    }
    missing = [flag for flag, value in needed.items() if not value]
    if missing:
        raise UsageError(
            f"DataflowRunner needs {', '.join(missing)}; as --project=... --region=... --temp_location=gs://..."
        )
    several = {"use_multiple_sdk_containers", "no_use_multiple_sdk_containers"} & {*(debug.experiments or ())}
    if streaming and not several:
        debug.add_experiment("no_use_multiple_sdk_containers")
