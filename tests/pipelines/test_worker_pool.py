"""The pool of workers without a runner: who may have it, what a worker is told, and that it leaves nobody behind."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from concurrent import futures
from contextlib import contextmanager
from typing import Any

import grpc
import pytest
from apache_beam.portability.api import (
    beam_fn_api_pb2,
    beam_fn_api_pb2_grpc,
    beam_provision_api_pb2,
    beam_provision_api_pb2_grpc,
    endpoints_pb2,
)
from google.protobuf import json_format, struct_pb2

from contbatch.pipelines.worker_pool import Busy, Workers, provisioned

SLEEP = [sys.executable, "-c", "import os; os.read(0, 1)"]
STUBBORN = [
    sys.executable,
    "-c",
    "import signal; signal.signal(15, signal.SIG_IGN); print(flush=True); signal.pause()",
]


def sleeper(_: Mapping[str, str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(SLEEP, stdin=subprocess.PIPE, start_new_session=True)


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def wait_until_gone(pid: int) -> None:
    end = time.monotonic() + 20
    while is_alive(pid):
        assert time.monotonic() < end, f"process {pid} is alive"
        time.sleep(0.02)


@contextmanager
def workers(patience: float = 10.0, start: Any = sleeper) -> Iterator[Workers]:
    given = Workers(start, patience)
    try:
        yield given
    finally:
        given.stop_all()


def test_a_second_job_is_refused_while_workers_of_the_first_run() -> None:
    with workers(patience=0.1) as pool:
        first = pool.start("a/1", "1-1", {})
        pool.start("a/1", "1-2", {})
        with pytest.raises(Busy) as busy:
            pool.start("b/2", "1-1", {})
        assert str(busy.value) == "the pool serves the job a/1: start a pool of its own for b/2 (another --port)"
        assert is_alive(first)
        pool.stop("1-1")
        pool.stop("1-2")
        pool.start("b/2", "1-1", {})
        assert not is_alive(first)


def test_a_job_waits_for_the_last_workers_of_the_one_before() -> None:
    with workers() as pool, futures.ThreadPoolExecutor() as threads:
        pool.start("a", "1-1", {})
        second = threads.submit(pool.start, "b", "1-1", {})
        with pytest.raises(futures.TimeoutError):
            second.result(0.3)
        pool.stop("1-1")
        assert is_alive(second.result(10))


def test_a_job_that_starts_over_gets_a_new_worker_for_the_lost_one() -> None:
    with workers() as pool:
        lost = pool.start("a", "1-1", {})
        assert is_alive(pool.start("a", "1-1", {}))
        assert not is_alive(lost)


def test_workers_that_have_died_do_not_hold_the_pool() -> None:
    with workers() as pool:
        dead = pool.start("a", "1-1", {})
        os.kill(dead, signal.SIGKILL)
        pool.start("b", "1-1", {})


def test_a_worker_that_ignores_sigterm_is_killed() -> None:
    def start(_: Mapping[str, str]) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(STUBBORN, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True)
        assert process.stdout is not None
        process.stdout.readline()  # now it ignores the signal
        process.stdout.close()
        return process

    with workers(patience=0.2, start=start) as pool:
        pid = pool.start("a", "1-1", {})
        pool.stop("1-1")
        assert not is_alive(pid)
        pool.stop("1-1")  # it is gone, which is no error


def info(options: dict[str, Any], token: str = "") -> Any:
    struct = json_format.ParseDict(options, struct_pb2.Struct())
    return beam_provision_api_pb2.ProvisionInfo(
        pipeline_options=struct, retrieval_token=token, runner_capabilities=["one", "two"]
    )


def request(**endpoints: str) -> Any:
    given = {name: endpoints_pb2.ApiServiceDescriptor(url=url) for name, url in endpoints.items()}
    return beam_fn_api_pb2.StartWorkerRequest(worker_id="1-1", **given)


def test_a_worker_is_told_what_beams_worker_reads() -> None:
    options = {"beam:option:job_name:v1": "mine", "beam:option:options_id:v1": 2, "beam:option:streaming:v1": True}
    asked = request(control_endpoint="localhost:1", logging_endpoint="localhost:2")
    job, environment = provisioned(asked, info(options))
    assert job == "mine/2.0"
    assert json.loads(environment.pop("PIPELINE_OPTIONS")) == options
    assert environment == {
        "WORKER_ID": "1-1",
        "RUNNER_CAPABILITIES": "one two",
        "CONTROL_API_SERVICE_DESCRIPTOR": 'url: "localhost:1"\n',
        "LOGGING_API_SERVICE_DESCRIPTOR": 'url: "localhost:2"\n',
    }


def test_a_job_without_a_name_is_known_by_its_token() -> None:
    assert provisioned(request(control_endpoint="localhost:1"), info({}, "token"))[0] == "token"


class Runner(beam_provision_api_pb2_grpc.ProvisionServiceServicer):
    """What a worker is told, and nothing that it could control."""

    def __init__(self, given: Any) -> None:
        self.given = given

    def GetProvisionInfo(self, request: Any, context: Any) -> Any:
        assert dict(context.invocation_metadata())["worker_id"] == "1-1"
        return beam_provision_api_pb2.GetProvisionInfoResponse(info=self.given)


@contextmanager
def runner(given: Any) -> Iterator[str]:
    server = grpc.server(futures.ThreadPoolExecutor(1))
    beam_provision_api_pb2_grpc.add_ProvisionServiceServicer_to_server(Runner(given), server)
    port = server.add_insecure_port("localhost:0")
    server.start()
    yield f"localhost:{port}"
    server.stop(0)


@contextmanager
def pool() -> Iterator[tuple[subprocess.Popen[str], str]]:
    command = [sys.executable, "-m", "contbatch.pipelines.cli", "worker-pool", "--port=0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        found = re.search(r"--environment_config=(localhost:\d+)$", line.strip())
        assert found, line
        yield process, found[1]
    finally:
        process.kill()
        process.wait()


def started(process: subprocess.Popen[str]) -> int:
    assert process.stdout is not None
    for line in process.stdout:
        if found := re.search(r"worker 1-1 of job mine is process (\d+)", line):
            return int(found[1])
    raise AssertionError("no worker was started")


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_no_worker_outlives_the_pool(end: signal.Signals) -> None:
    options = {"beam:option:job_name:v1": "mine"}
    with runner(info(options)) as provision, pool() as (process, address), grpc.insecure_channel(address) as channel:
        stub = beam_fn_api_pb2_grpc.BeamFnExternalWorkerPoolStub(channel)
        # Nobody listens there, so that the worker waits for its runner, as Beam has it, for a minute.
        asked = request(control_endpoint="localhost:1", provision_endpoint=provision)
        assert stub.StartWorker(asked, timeout=30).error == ""
        worker = started(process)
        assert is_alive(worker)
        process.send_signal(end)
        assert process.wait(30) == (-end if end is signal.SIGKILL else 0)
        wait_until_gone(worker)


def test_a_runner_that_does_not_answer_is_told_so() -> None:
    with pool() as (_, address), grpc.insecure_channel(address) as channel:
        stub = beam_fn_api_pb2_grpc.BeamFnExternalWorkerPoolStub(channel)
        error = stub.StartWorker(request(provision_endpoint="localhost:1"), timeout=60).error
        assert "UNAVAILABLE" in error


def test_a_port_that_is_taken_is_said() -> None:
    with pool() as (_, address):
        port = address.rpartition(":")[2]
        command = [sys.executable, "-m", "contbatch.pipelines.cli", "worker-pool", f"--port={port}"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    (error,) = [line for line in done.stderr.splitlines() if line.startswith("contbatch: ")]
    assert done.returncode == 2
    assert error == f"contbatch: cannot listen on localhost:{port}; give another --port, or 0 for a free one"
