"""The ``contbatch`` command. Importing this module imports neither Beam nor numpy: ``--help`` answers at once."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from importlib import metadata
from typing import NoReturn

from contbatch.pipelines import models
from contbatch.pipelines.errors import JobError, UsageError


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns 0, 1 for a job that did not end well, or 2 for one that cannot be done."""
    try:
        parser, ours = _parser()
        args, flags = parser.parse_known_args(argv)
        if args.command is None:
            parser.print_help()
            return 0
        return models.run(args, flags) if args.command == "models" else _personalize(args, flags, ours)
    except (UsageError, JobError) as error:
        print(f"contbatch: {error}", file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1
    except KeyboardInterrupt:
        print("contbatch: stopped", file=sys.stderr)
        return 130


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
        help="predict MovieLens 100k in event time, and learn from it",
        description="Replays MovieLens 100k in event time: each rating is a request and, later, its feedback "
        "(liked: 4 or more). Predicts every request in micro-batches, learns the feedback, publishes versions.",
        epilog="Beam's own flags are passed on: --runner=PrismRunner; --runner=PortableRunner --job_endpoint=...",
        formatter_class=_HelpFormatter,
        allow_abbrev=False,
    )
    add = personalize.add_argument
    add("--out", default="out/personalize", help="folder for predictions, model versions and the summary")
    add("--data", help="folder of the ml-100k files (default: the installed recbole wheel)")
    add(
        "--form",
        choices=("serial", "parallel"),
        default="serial",
        help="predict and learn in one transform, in event "
        "time, or in two that meet in the model store, live from a replay at --rate",
    )
    add("--learner", choices=("sparse", "torch"), default="sparse", help="hashed ids in numpy, or a torch module")
    add("--rate", type=float, default=2_000.0, help="of --form=parallel: events a second")
    add("--no_gate", action="store_true", help="let bad updates serve: no gate, and no automatic rollback")
    add("--max_size", type=int, default=256, help="most requests in a micro-batch")
    add(
        "--max_delay",
        type=float,
        default=5.0,
        help="longest wait of a request, in seconds of event time (--form=serial)",
    )
    add("--feedback_delay", type=float, default=5.0, help="seconds of event time from a request to its feedback")
    add("--ttl", type=float, default=86_400.0, help="seconds that requests and feedback wait for each other")
    add("--seed", type=int, default=0, help="decides the initial weights")
    add("--publish_every", type=int, default=10_000, help="examples between published versions")
    add(
        "--freeze",
        type=float,
        default=0.2,
        help="share of the ratings after which the first version is kept as the frozen model",
    )
    add("--spread_ties", action="store_true", help="ratings of one second follow each other by a microsecond")
    text = "look into a model store, and choose which version serves"
    models.add_arguments(commands.add_parser("models", help=text, description=f"{text.capitalize()}."), _HelpFormatter)
    return parser, list(personalize._option_string_actions)


def _personalize(args: argparse.Namespace, flags: Sequence[str], ours: Sequence[str]) -> int:
    from rich.console import Console

    from contbatch.pipelines.monitor import Monitor

    with Monitor(Console(stderr=True)) as monitor:
        # Seconds of imports: under the monitor, so that the screen is not blank.
        from apache_beam.options.pipeline_options import StandardOptions

        from contbatch.pipelines import movielens
        from contbatch.pipelines.options import pipeline_options
        from contbatch.pipelines.personalize import PersonalizeConfig, run
        from contbatch.pipelines.summary import show, summarise
        from contbatch.transforms import BatchPolicy, GatePolicy

        logging.getLogger().setLevel(logging.WARNING)
        logging.getLogger("apache_beam").setLevel(logging.CRITICAL)  # its tracebacks: ours go to a file
        options = pipeline_options(flags, ours)
        if not 0 <= args.freeze <= 1:
            raise UsageError(f"freeze is {args.freeze}; give a share, 0 to 1")
        live = args.form == "parallel"
        try:
            folder = movielens.find_folder(args.data)
            ratings = movielens.count_ratings(folder)
            config = PersonalizeConfig(
                out=args.out.rstrip("/") or "/",
                data=folder,
                policy=BatchPolicy(args.max_size) if live else BatchPolicy(args.max_size, args.max_delay),
                feedback_delay=args.feedback_delay,
                ttl=args.ttl,
                seed=args.seed,
                publish_every=args.publish_every,
                freeze_after=round(args.freeze * ratings),
                spread_ties=args.spread_ties,
                form=args.form,
                learner=args.learner,
                rate=args.rate,
                gate=None if args.no_gate else GatePolicy(),
            )
        except (ValueError, OSError) as error:
            raise UsageError(str(error)) from error
        monitor.say("predicting and learning", ratings)
        seconds = run(config, options)
        monitor.say("summing up")
        summary = summarise(config, options.view_as(StandardOptions).runner, seconds)
    show(summary, config.out, Console())
    return 0


if __name__ == "__main__":
    sys.exit(main())
