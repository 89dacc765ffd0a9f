"""``contbatch flink``: list, cancel and savepoint the jobs of a Flink cluster."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from typing import Any

from contbatch.pipelines.errors import UsageError
from contbatch.pipelines.flink import Flink


def add_arguments(parser: argparse.ArgumentParser, formatter: Any) -> None:
    """Add the commands and their flags."""
    commands = parser.add_subparsers(dest="flink_command", metavar="COMMAND", required=True)
    for name, text in (
        ("list", "the jobs of the cluster"),
        ("cancel", "end a job for good, its state lost"),
        ("savepoint", "write a job's state where another job can go on from it"),
    ):
        command = commands.add_parser(
            name, help=text, description=f"{text[0].upper()}{text[1:]}.", formatter_class=formatter, allow_abbrev=False
        )
        command.add_argument(
            "--flink_rest", default="localhost:8081", help="address of the JobManager's REST interface"
        )
        if name == "list":
            command.add_argument("--all", action="store_true", help="also those that have ended")
            continue
        command.add_argument("job", help="id, beginning of an id, or name of the job")
        command.add_argument("--timeout", type=float, default=600.0, help="seconds that it may take")
        if name == "savepoint":
            command.add_argument("--folder", help="where the cluster can write (default: its state.savepoints.dir)")
            command.add_argument("--cancel", action="store_true", help="cancel the job when it is written")


def run(args: argparse.Namespace, unknown: Sequence[str]) -> int:
    """Run a command.

    Raises:
        UsageError: it cannot be done.
        JobError: the cluster did not do it.
    """
    if unknown:
        raise UsageError(f"unknown argument {unknown[0]}; see `contbatch flink {args.flink_command} --help`")
    flink = Flink(args.flink_rest)
    if args.flink_command == "list":
        jobs = [job for job in flink.jobs() if args.all or not job.ended]
        for job in jobs:
            started = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(job.started))
            print(f"{job.id}  {job.state:<10}  {started}  {job.name}")
        if not jobs:
            print(f"no jobs on {flink.address}")
        return 0
    job = flink.find(args.job)
    if args.flink_command == "cancel":
        print(f"{job.name} ({job.id}) is {flink.cancel(job, args.timeout)}")
        return 0
    path = flink.savepoint(job, args.folder, cancel=args.cancel, seconds=args.timeout, say=_say)
    print(f"{path}\nresume the same pipeline with --savepoint_path={path}")
    return 0


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
