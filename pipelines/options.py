"""Beam's flags: what each runner needs is set here, and a flag that nobody knows is refused."""

from __future__ import annotations

import argparse
import difflib
import os
import shutil
from collections.abc import Iterable, Sequence

from apache_beam.options.pipeline_options import (
    DebugOptions,
    PipelineOptions,
    PrismRunnerOptions,
    StandardOptions,
)
from apache_beam.runners.runner import create_runner

from contbatch.pipelines.errors import UsageError

LOCAL_RUNNERS = ("DirectRunner", "FnApiRunner", "PrismRunner")
"""Runners that read no flags but Beam's own; any other may pass flags on to a server that knows more."""


def pipeline_options(flags: Sequence[str], ours: Iterable[str]) -> PipelineOptions:
    """Return Beam's options for the given flags, with what the runner needs.

    Args:
        flags: the command line without what the command itself has read.
        ours: the command's own flags, to suggest one for a slip.

    Raises:
        UsageError: a flag is unknown, and close to a known one or meaningless to the runner.
    """
    options = PipelineOptions([*flags])
    runner = options.view_as(StandardOptions).runner or "DirectRunner"
    _refuse_unknown(flags, ours, runner)
    try:
        create_runner(runner)
    except (ValueError, ImportError) as error:
        raise UsageError(
            f"unknown runner {runner}; give DirectRunner, PrismRunner, PortableRunner or DataflowRunner"
        ) from error
    options.view_as(StandardOptions).runner = runner
    # Prism, which DirectRunner may choose by itself, splits a slow stateful bundle and loses the key's state.
    options.view_as(DebugOptions).add_experiment("prism_disable_sdf_split")
    if runner == "PrismRunner":
        # Else a server that DirectRunner tried to start in this process is used again, wherever its binary was.
        options.view_as(DebugOptions).add_experiment("disable_prism_server_singleton")
        prism = options.view_as(PrismRunnerOptions)
        prism.prism_location = prism.prism_location or os.environ.get("CONTBATCH_PRISM") or shutil.which("prism")
    _bypass_proxy_for_localhost()
    return options


def _refuse_unknown(flags: Sequence[str], ours: Iterable[str], runner: str) -> None:
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for options in PipelineOptions.__subclasses__():
        options._add_argparse_args(parser)
    known = {*ours, *parser._option_string_actions}
    _, unknown = parser.parse_known_args([*flags])
    local = runner.rsplit(".", 1)[-1] in LOCAL_RUNNERS
    for argument in unknown:
        name = argument.split("=")[0]
        close = difflib.get_close_matches(name.replace("-", "_").replace("__", "--", 1), sorted(known), 1, 0.8)
        if close and name.startswith("--"):
            raise UsageError(f"unknown flag {name}; did you mean {close[0]}?")
        if local:
            raise UsageError(
                f"unknown argument {name}; `contbatch personalize --help` lists ours, Beam's are passed on"
            )


def _bypass_proxy_for_localhost() -> None:
    """Keep gRPC between the runner and its workers, on this machine, away from a configured proxy."""
    for variable in ("no_proxy", "NO_PROXY"):
        hosts = os.environ.get(variable, "")
        if "localhost" not in hosts:
            os.environ[variable] = ",".join(filter(None, [hosts, "localhost", "127.0.0.1"]))
