"""A pool of workers for jobs with ``--environment_type=EXTERNAL``, whose workers get the job's options.

Beam's own pool starts its workers without them: ``--max_cache_memory_usage_mb``, ``data_buffer_time_limit_ms`` and log
levels have no effect there, and a worker that prints much stops at a pipe which nobody reads. Here a worker gets what
the runner's provision endpoint says, and prints where the pool does.

A pool serves one job at a time, and one TaskManager: workers are told apart by ids that begin anew in each job, so that
the end of one job would stop the workers of another.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import grpc  # type: ignore[import-untyped]
from apache_beam.portability.api import (
    beam_fn_api_pb2,
    beam_fn_api_pb2_grpc,
    beam_provision_api_pb2,
    beam_provision_api_pb2_grpc,
)
from apache_beam.utils import thread_pool_executor
from google.protobuf import json_format, text_format  # type: ignore[import-untyped]

from contbatch.pipelines.errors import UsageError

PATIENCE = 10.0
"""Seconds that a worker has to end, and that a job has to wait for the workers of the last one."""

_LOG = logging.getLogger(__name__)
_JOB_OPTIONS = ("job_name", "options_id")


class Busy(RuntimeError):
    """The pool serves another job."""


class Workers:
    """Worker processes of one job.

    Args:
        start: starts a process in the given environment.
        patience: seconds.
    """

    def __init__(self, start: Callable[[Mapping[str, str]], subprocess.Popen[bytes]], patience: float = PATIENCE):
        self._start = start
        self._patience = patience
        self._lock = threading.Lock()
        self._job = ""
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, job: str, worker: str, environment: Mapping[str, str]) -> int:
        """Start a worker, in place of one of the same id that its runner has lost; returns its process id.

        Raises:
            Busy: workers of another job run.
        """
        end = time.monotonic() + self._patience
        while True:
            with self._lock:
                if job == self._job or not self._alive():
                    self._job = job
                    self._stop(self._running.pop(worker, None))
                    process = self._running[worker] = self._start(environment)
                    return process.pid
                busy = f"the pool serves the job {self._job}: start a pool of its own for {job} (another --port)"
            if time.monotonic() > end:
                raise Busy(busy)
            time.sleep(0.05)

    def stop(self, worker: str) -> None:
        """Stop a worker; one that is gone already is none."""
        with self._lock:
            process = self._running.pop(worker, None)
        self._stop(process)

    def stop_all(self) -> None:
        """Stop every worker."""
        with self._lock:
            processes, self._running = list(self._running.values()), {}
        for process in processes:
            _signal(process, signal.SIGTERM)
        for process in processes:
            self._stop(process)

    def _alive(self) -> bool:
        self._running = {worker: process for worker, process in self._running.items() if process.poll() is None}
        return bool(self._running)

    def _stop(self, process: subprocess.Popen[bytes] | None) -> None:
        if process is None:
            return
        for number in (signal.SIGTERM, signal.SIGKILL):
            _signal(process, number)
            with suppress(subprocess.TimeoutExpired):
                process.wait(self._patience)
                break
        _signal(process, signal.SIGKILL)  # what the worker has started
        if process.stdin is not None:
            process.stdin.close()


def _signal(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    """Signal a worker and what it has started."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)


class Servicer(beam_fn_api_pb2_grpc.BeamFnExternalWorkerPoolServicer):
    """What the runner calls."""

    def __init__(self, workers: Workers) -> None:
        self._workers = workers

    def StartWorker(self, request: Any, context: Any) -> Any:
        """Start a worker with the options of its job."""
        try:
            job, environment = provisioned(request, provision(request.provision_endpoint.url, request.worker_id))
            pid = self._workers.start(job, request.worker_id, environment)
        except Exception as error:  # the runner fails the job with it
            _LOG.error("no worker %s: %s", request.worker_id, error)
            return beam_fn_api_pb2.StartWorkerResponse(error=f"{type(error).__name__}: {error}")
        _LOG.info("worker %s of job %s is process %d", request.worker_id, job, pid)
        return beam_fn_api_pb2.StartWorkerResponse()

    def StopWorker(self, request: Any, context: Any) -> Any:
        """Stop a worker."""
        _LOG.info("worker %s is stopped", request.worker_id)
        self._workers.stop(request.worker_id)
        return beam_fn_api_pb2.StopWorkerResponse()


def provision(endpoint: str, worker: str, seconds: float = 30.0) -> Any:
    """Return what a runner has to say to its worker, a ``ProvisionInfo``."""
    with grpc.insecure_channel(endpoint) as channel:
        stub = beam_provision_api_pb2_grpc.ProvisionServiceStub(channel)
        request = beam_provision_api_pb2.GetProvisionInfoRequest()
        return stub.GetProvisionInfo(request, timeout=seconds, metadata=[("worker_id", worker)]).info


def provisioned(request: Any, info: Any) -> tuple[str, dict[str, str]]:
    """Return the name of the job that a worker is for, and what Beam's worker reads from its environment."""
    options = json_format.MessageToDict(info.pipeline_options)
    names = [str(options.get(f"beam:option:{name}:v1", options.get(name, ""))) for name in _JOB_OPTIONS]
    job = "/".join(filter(None, names)) or info.retrieval_token or "without a name"
    environment = {
        "WORKER_ID": request.worker_id,
        "PIPELINE_OPTIONS": json.dumps(options),
        "RUNNER_CAPABILITIES": " ".join(info.runner_capabilities),
    }
    for variable, given, default in (
        ("CONTROL_API_SERVICE_DESCRIPTOR", request.control_endpoint, info.control_endpoint),
        ("LOGGING_API_SERVICE_DESCRIPTOR", request.logging_endpoint, info.logging_endpoint),
        ("STATUS_API_SERVICE_DESCRIPTOR", info.status_endpoint, info.status_endpoint),
    ):
        descriptor = given if given.url else default
        if descriptor.url:
            environment[variable] = text_format.MessageToString(descriptor)
    return job, environment


def start_process(environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """Start a worker: by this Python, into this output, and it ends when the pool does."""
    command = [sys.executable, "-m", "contbatch.pipelines.worker"]
    return subprocess.Popen(
        command, stdin=subprocess.PIPE, env={**os.environ, **environment}, close_fds=True, start_new_session=True
    )


def serve(host: str, port: int, workers: Workers) -> tuple[grpc.Server, int]:
    """Start to listen; returns the server and its port.

    Raises:
        UsageError: the port cannot be had.
    """
    options = [
        ("grpc.so_reuseport", 0),  # else a second pool gets half of the first one's calls
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.http2.max_ping_strikes", 0),
    ]
    server = grpc.server(thread_pool_executor.shared_unbounded_instance(), options=options)
    beam_fn_api_pb2_grpc.add_BeamFnExternalWorkerPoolServicer_to_server(Servicer(workers), server)
    try:
        bound = server.add_insecure_port(f"{host}:{port}")
    except RuntimeError as error:
        raise UsageError(f"cannot listen on {host}:{port}; give another --port, or 0 for a free one") from error
    server.start()
    return server, bound


def run(host: str, port: int) -> int:
    """Serve jobs, one after the other, until SIGINT or SIGTERM."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s pool: %(message)s")
    ended = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: ended.set())
    workers = Workers(start_process)
    server, bound = serve(host, port, workers)
    print(f"contbatch: workers for --environment_type=EXTERNAL --environment_config={host}:{bound}", flush=True)
    ended.wait()
    server.stop(0)
    workers.stop_all()
    return 0
