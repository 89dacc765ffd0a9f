"""What a job server says of itself before a job is given to it: whether it is there, and which flags it knows."""

from __future__ import annotations

import argparse
import socket
from collections.abc import Iterable
from typing import Any

import grpc  # type: ignore[import-untyped]
from apache_beam.options.pipeline_options import PipelineOptions, PortableOptions, StandardOptions
from apache_beam.portability.api import beam_job_api_pb2, beam_job_api_pb2_grpc

from contbatch.pipelines.errors import UsageError

_WITHOUT = ("DirectRunner", "DataflowRunner")
"""Runners that submit to no job server, whatever the options say."""


def runner_name(options: PipelineOptions) -> str:
    """Return the name of the runner, without the module that it may be given with."""
    return (options.view_as(StandardOptions).runner or "DirectRunner").rsplit(".", 1)[-1]


def server_options(options: PipelineOptions) -> list[Any]:
    """Return the flags that the job server of a pipeline's options knows; none where there is no server.

    Raises:
        UsageError: no job server answers.
    """
    endpoint = options.view_as(PortableOptions).job_endpoint
    has_one = endpoint and endpoint != "embed" and runner_name(options) not in _WITHOUT
    return described(endpoint) if has_one else []


def described(endpoint: str, seconds: float = 5.0) -> list[Any]:
    """Return the flags that a job server knows, as ``PipelineOptionDescriptor``; none if it does not tell.

    Raises:
        UsageError: no job server answers there.
    """
    host, _, port = endpoint.rpartition(":")
    if not (host and port.isdecimal()):
        raise UsageError(f"job_endpoint is {endpoint}; give host and port, as localhost:8099")
    try:
        socket.create_connection((host.strip("[]"), int(port)), seconds).close()
    except (OSError, OverflowError) as error:
        raise UsageError(
            f"no job server answers at {endpoint} ({error}); start one, or give its address with --job_endpoint"
        ) from error
    with grpc.insecure_channel(endpoint) as channel:
        request = beam_job_api_pb2.DescribePipelineOptionsRequest()
        try:
            stub = beam_job_api_pb2_grpc.JobServiceStub(channel)
            return list(stub.DescribePipelineOptions(request, timeout=seconds, wait_for_ready=True).options)
        except grpc.RpcError as error:
            if error.code() is grpc.StatusCode.UNIMPLEMENTED:
                return []
            raise UsageError(
                f"what answers at {endpoint} is no job server ({error.code().name}); give the address of one with "
                "--job_endpoint"
            ) from error


def is_flink(options: Iterable[Any]) -> bool:
    """Return whether these flags are those of Beam's runner for Flink."""
    return any(option.name == "max_bundle_time_mills" for option in options)


def add_options(parser: argparse.ArgumentParser, options: Iterable[Any]) -> None:
    """Have a parser know a server's flags as Beam will parse them when it submits the job."""
    kinds = beam_job_api_pb2.PipelineOptionType
    for option in options:
        flag = f"--{option.name}"
        if flag in parser._option_string_actions:
            continue
        if option.type == kinds.BOOLEAN:
            parser.add_argument(flag, action="store_true")
        else:
            parser.add_argument(flag, type=int if option.type == kinds.INTEGER else str)
