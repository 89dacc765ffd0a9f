"""Beam's flags: what each runner needs is set here, and a flag that nobody knows is refused."""

from __future__ import annotations

import argparse
import difflib
import os
from collections.abc import Iterable, Sequence
from typing import Any, NoReturn

from apache_beam.options.pipeline_options import (
    DebugOptions,
    FlinkRunnerOptions,
    PipelineOptions,
    PortableOptions,
    StandardOptions,
)
from apache_beam.runners.runner import create_runner

from contbatch.pipelines.errors import UsageError
from contbatch.pipelines.flink import Flink, rest_address
from contbatch.pipelines.job_server import add_options, is_flink, runner_name, server_options
from contbatch.pipelines.runner_flags import FLINK_FLAGS, check_pool, find_prism, flink_flags, given, set_up_dataflow

LOCAL_RUNNERS = ("DirectRunner", "FnApiRunner", "PrismRunner")
"""Runners that read no flags but Beam's own; any other may pass flags on to a server that knows more."""
_AS_LONG_AS_IT_RUNS = 365 * 86_400
"""Seconds. At Beam's default of 300 the stream of a job's states ends after five minutes, and with it its Prism."""


def pipeline_options(
    flags: Sequence[str],
    ours: Iterable[str] = (),
    *,
    streaming: bool = False,
    ends: bool = False,
    flink_rest: str | None = None,
) -> PipelineOptions:
    """Return Beam's options for the given flags, with what the runner needs; what was given stays as it is.

    Args:
        flags: the command line without what the command itself has read.
        ours: the command's own flags, to suggest one for a slip.
        streaming: whether the job is a streaming one; ``--streaming`` says so too.
        ends: whether its source comes to an end, so that the job is to end, too.
        flink_rest: address of Flink's REST interface, if that is where the job will run; ``--flink_master`` says so
            too.

    Raises:
        UsageError: a flag is unknown, or the runner cannot do what the flags ask for.
    """
    _bypass_proxy_for_localhost()
    options = PipelineOptions([*flags])
    runner = options.view_as(StandardOptions).runner or "DirectRunner"
    name = runner_name(options)
    if name == "PortableRunner" and not options.view_as(PortableOptions).job_endpoint:
        raise UsageError("PortableRunner needs the address of a job server; give --job_endpoint, as localhost:8099")
    server = server_options(options)
    _check_known(flags, ours, name, server)
    try:
        create_runner(runner)
    except (ValueError, ImportError) as error:
        if name == "DataflowRunner":
            raise UsageError("DataflowRunner is not installed; install it with `pip install contbatch[gcp]`") from error
        raise UsageError(
            f"unknown runner {runner}; give DirectRunner, PrismRunner, FlinkRunner, PortableRunner or DataflowRunner"
        ) from error
    streaming = streaming or options.view_as(StandardOptions).streaming
    if name == "FlinkRunner" or is_flink(server):
        options = PipelineOptions([*flags, *flink_flags(flags, streaming, ends)])
        rest = rest_address(flink_rest, options.view_as(FlinkRunnerOptions).flink_master)
        if rest:
            check_pool(options, Flink(rest))
    options.view_as(StandardOptions).runner = runner
    options.view_as(StandardOptions).streaming = streaming
    if given(flags, "job_server_timeout") is None and given(flags, "job-server-timeout") is None:
        options.view_as(PortableOptions).job_server_timeout = _AS_LONG_AS_IT_RUNS
    # Prism, which DirectRunner may choose by itself, splits a slow stateful bundle and loses the key's state.
    options.view_as(DebugOptions).add_experiment("prism_disable_sdf_split")
    if name == "PrismRunner":
        # Else a server that DirectRunner tried to start in this process is used again, wherever its binary was.
        options.view_as(DebugOptions).add_experiment("disable_prism_server_singleton")
        if not options.view_as(PortableOptions).job_endpoint:
            find_prism(options)
    elif name == "DataflowRunner":
        set_up_dataflow(options, streaming)
    return options


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Raise what is wrong, in one line, where argparse would print its usage."""
        raise UsageError(message)


def _check_known(flags: Sequence[str], ours: Iterable[str], runner: str, server: Sequence[Any]) -> None:
    parser = _Parser(add_help=False, allow_abbrev=False)
    for options in PipelineOptions.__subclasses__():
        options._add_argparse_args(parser)
    add_options(parser, server)
    known = {*ours, *parser._option_string_actions}
    if not server and runner not in (*LOCAL_RUNNERS, "DataflowRunner"):
        known |= {f"--{name}" for name in FLINK_FLAGS}
    _, unknown = parser.parse_known_args([*flags])
    for argument in unknown:
        name = argument.split("=")[0]
        if name in known:  # of a server that cannot be asked
            continue
        close = difflib.get_close_matches(name.replace("-", "_").replace("__", "--", 1), sorted(known), 1, 0.8)
        if close and name.startswith("--"):
            raise UsageError(f"unknown flag {name}; did you mean {close[0]}?")
        if server:
            endpoint = given(flags, "job_endpoint")
            raise UsageError(f"unknown argument {name}: neither Beam nor the job server at {endpoint} knows it")
        if runner in LOCAL_RUNNERS:
            raise UsageError(
                f"unknown argument {name}; `contbatch personalize --help` lists ours, Beam's are passed on"
            )


def _bypass_proxy_for_localhost() -> None:
    """Keep gRPC between the runner and its workers, on this machine, away from a configured proxy."""
    for variable in ("no_proxy", "NO_PROXY"):
        hosts = os.environ.get(variable, "")
        if "localhost" not in hosts:
            os.environ[variable] = ",".join(filter(None, [hosts, "localhost", "127.0.0.1"]))
