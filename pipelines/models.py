"""``contbatch models``: look into a model store, and choose which version serves. Imports nothing heavy by itself."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from contbatch.pipelines.errors import UsageError

if TYPE_CHECKING:
    from rich.console import Console

    from contbatch.pipelines.model_catalog import Catalog

STORE = "out/demo/store"

_PIPED_WIDTH = 200
"""Columns of a table that no terminal shows: rows stay on one line each."""


def add_arguments(parser: argparse.ArgumentParser, formatter: type[argparse.HelpFormatter]) -> None:
    """Add the actions and their flags to the parser of ``contbatch models``."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)

    def action(name: str, text: str, of_model: bool = True) -> argparse.ArgumentParser:
        added = actions.add_parser(
            name,
            help=text,
            description=f"{text[0].upper()}{text[1:]}.",
            formatter_class=formatter,
            allow_abbrev=False,
        )
        added.add_argument("--store", default=STORE, help="folder of the model store")
        if of_model:
            added.add_argument("--model", metavar="NAME", help="which model; may be left out where there is only one")
        return added

    of_list = action("list", "list the versions, newest first: which one serves, and why others no longer count")
    of_list.add_argument("--verify", action="store_true", help="read all weights, compare them with their digests")
    of_show = action("show", "show all that is known of a version, and verify its weights")
    of_diff = action("diff", "show what differs between two versions: manifests, and weights array by array")
    of_promote = action("promote", "let a version serve, also one that was rolled back or withdrawn")
    of_rollback = action("rollback", "let an older version serve again; a running trainer goes on from it")
    of_snapshots = action(
        "snapshots", "list what the states of jobs go on from: what is pinned, and what will go", False
    )
    of_pin = action("pin", "keep all snapshots that there are; do so when a savepoint has been taken", False)
    of_unpin = action("unpin", "let go of the snapshots of a pin, once its savepoint has been deleted", False)
    for version in ("A", "B"):
        of_diff.add_argument(version, help="a version, such as 0.40")
    for one in (of_show, of_promote):
        one.add_argument("version", metavar="VERSION", help="such as 0.40")
    of_rollback.add_argument(
        "version",
        metavar="VERSION",
        nargs="?",
        help="such as 0.40, or 0.0 for the weights before all learning; if left out, the one before that which serves",
    )
    for one in (of_pin, of_unpin):
        one.add_argument("name", metavar="NAME", help="such as before-upgrade")
    for one in (of_list, of_show, of_snapshots):
        one.add_argument("--json", action="store_true", help="print JSON, for scripts")
    for one in (of_promote, of_rollback):
        one.add_argument("--reason", default="by hand", help="kept in the store's record")


def run(args: argparse.Namespace, unknown: Sequence[str]) -> int:
    """Do an action; returns the exit code.

    Raises:
        UsageError: it cannot be done.
    """
    if unknown:
        raise UsageError(f"unknown argument {unknown[0]}; see `contbatch models {args.action} --help`")
    from rich.console import Console

    from contbatch.pipelines.model_catalog import Catalog
    from contbatch.transforms.learning import StoreError
    from contbatch.transforms.learning.snapshots import PinError

    width = None if sys.stdout.isatty() else _PIPED_WIDTH
    console = Console(width=width, markup=False, highlight=False, emoji=False)
    try:
        _ACTIONS[args.action](Catalog(args.store), args, console)
    except (StoreError, PinError, OSError) as error:
        raise UsageError(" ".join(str(error).split())) from error
    return 0


def _list(catalog: Catalog, args: argparse.Namespace, console: Console) -> None:
    from contbatch.pipelines import model_tables

    models = catalog.models if args.model is None else [catalog.model(args.model)]
    found = {model: catalog.rows(model, lambda version: args.verify) for model in models}
    if args.json:
        _print_json([{"model": model, **model_tables.record(row)} for model, rows in found.items() for row in rows])
        return
    for model, rows in found.items():
        title = f"Model {model or '(unnamed)'} in {catalog.root}"
        console.print(model_tables.listing(title, rows, time.time()))
    found_snapshots = catalog.store.snapshots.all()
    if found_snapshots:
        pins = sorted({pin for one in found_snapshots for pin in one.pins})
        pinned = f"pinned by {', '.join(pins)}" if pins else "none pinned"
        console.print(f"Snapshots: {len(found_snapshots)}, {pinned}; `contbatch models snapshots` lists them")


def _snapshots(catalog: Catalog, args: argparse.Namespace, console: Console) -> None:
    from contbatch.pipelines import model_tables

    snapshots, pins = catalog.store.snapshots.all(), catalog.store.snapshots.pins()
    if args.json:
        _print_json({"snapshots": [one._asdict() for one in snapshots], "pins": [one._asdict() for one in pins]})
        return
    console.print(model_tables.snapshots(f"Snapshots in {catalog.root}", snapshots, time.time()))
    if pins:
        console.print(model_tables.pins(pins, {one.digest for one in snapshots}, time.time()))


def _pin(catalog: Catalog, args: argparse.Namespace, console: Console) -> None:
    pin = catalog.store.snapshots.pin(args.name)
    console.print(
        f"Pin {pin.name} keeps {_count(pin.snapshots)}: a savepoint that was taken until now can be restored for as "
        f"long as it is there",
        soft_wrap=True,
    )
    console.print(f"Undo: {_command(catalog, 'unpin', pin.name)}", soft_wrap=True)


def _unpin(catalog: Catalog, args: argparse.Namespace, console: Console) -> None:
    from contbatch.transforms.learning.snapshots import RETAIN

    pin = catalog.store.snapshots.unpin(args.name)
    console.print(
        f"Pin {pin.name} is gone; of its {_count(pin.snapshots)} those go that no other pin holds and that were "
        f"replaced {RETAIN / 86_400:g} days ago or earlier",
        soft_wrap=True,
    )


def _count(snapshots: Sequence[str]) -> str:
    return f"{len(snapshots)} snapshot{'' if len(snapshots) == 1 else 's'}"


def _show(catalog: Catalog, args: argparse.Namespace, console: Console) -> None:
    from contbatch.pipelines import model_tables
    from contbatch.pipelines.model_catalog import State, ending

    model = catalog.model(args.model)
    row = catalog.row(model, args.version, verify=True)
    lineage, end = catalog.lineage(model, row.version)
    restores = catalog.restores(model)
    ended = ending(row.version, restores)
    restores = {one: why for one, why in restores.items() if one.target == row.version or one in ended}
    if args.json:
        _print_json(
            {
                "model": model,
                **model_tables.record(row),
                "verified": row.state not in (State.DAMAGED, State.UNREADABLE),
                "lineage": lineage,
                "lineage_end": end,
                "restores": [{**one._asdict(), "reason": why} for one, why in restores.items()],
            }
        )
        return
    console.print(model_tables.details(row, lineage, end, time.time()))
    if row.manifest is not None:
        console.print(model_tables.bars("Updates by size", "examples", "updates", row.manifest.batch_sizes))
        title = "Updates between prediction and learning"
        console.print(model_tables.bars(title, "staleness", "examples", row.manifest.staleness))
    if restores:
        console.print(model_tables.touched_by(row.version, restores))


def _diff(catalog: Catalog, args: argparse.Namespace, console: Console) -> None:
    from contbatch.pipelines import model_tables
    from contbatch.pipelines.model_diff import compare

    model = catalog.model(args.model)
    a, b = (catalog.readable(model, version) for version in (args.A, args.B))
    slots, changes = compare(catalog.store.read(a), catalog.store.read(b))
    console.print(model_tables.side_by_side(a, b))
    title = "Weights"
    if slots:
        title += f"; rows by slot: {slots.common:,} in both, {slots.added:,} added, {slots.removed:,} removed"
    console.print(model_tables.changes(title, changes))


def _rollback(catalog: Catalog, args: argparse.Namespace, console: Console) -> None:
    from contbatch.pipelines.model_catalog import State
    from contbatch.transforms.learning.manifest import NOTHING, ordered

    model = catalog.model(args.model)
    serving = catalog.serving(model, 2)
    version = args.version
    if version is None:
        if len(serving) < 2:
            raise UsageError(
                f"nothing to roll back to: {f'only {serving[0]} counts' if serving else 'no version counts'}; "
                f"`contbatch models rollback {NOTHING}` goes back to the weights before all learning"
            )
        version = serving[1]
    if version != NOTHING:
        row = catalog.row(model, version)
        if row.state is State.WITHDRAWN or (serving and ordered(version) > ordered(serving[0])):
            why = "is withdrawn" if row.state is State.WITHDRAWN else f"is not older than {serving[0]}, which serves"
            raise UsageError(f"version {version} {why}; `{_again('promote', version, catalog, model)}` lets it serve")
    _let_serve(version, serving, catalog, model, args.reason, console)


def _promote(catalog: Catalog, args: argparse.Namespace, console: Console) -> None:
    from contbatch.pipelines.model_catalog import State

    model = catalog.model(args.model)
    serving = catalog.serving(model)
    catalog.readable(model, args.version)
    if catalog.row(model, args.version).state is State.WITHDRAWN:
        catalog.store.readmit(args.version, model)
    _let_serve(args.version, serving, catalog, model, args.reason, console)


def _let_serve(
    version: str, serving: Sequence[str], catalog: Catalog, model: str, reason: str, console: Console
) -> None:
    from contbatch.transforms.learning.manifest import NOTHING

    before = serving[0] if serving else NOTHING
    if version == before:
        console.print(f"{_named(version)} serves already; nothing changes")
        return
    if version != NOTHING:
        catalog.readable(model, version)
    catalog.store.restore(version, reason, model)
    console.print(
        f"{_named(before)} served until now; from now on {_named(version)} serves ({reason}). A running trainer goes "
        f"on from it at its next look at the store.",
        soft_wrap=True,
    )
    undo = "rollback" if before == NOTHING else "promote"
    console.print(f"Undo: {_again(undo, before, catalog, model)}", soft_wrap=True)


def _named(version: str) -> str:
    from contbatch.transforms.learning.manifest import NOTHING

    return "no version" if version == NOTHING else f"version {version}"


def _again(action: str, version: str, catalog: Catalog, model: str) -> str:
    """Return a command on the same model."""
    return _command(catalog, action, version, *([] if len(catalog.models) == 1 else [f"--model={model}"]))


def _command(catalog: Catalog, *arguments: str) -> str:
    flags = [] if catalog.root == STORE else [f"--store={catalog.root}"]
    return shlex.join(["contbatch", "models", *arguments, *flags])


def _print_json(value: Any) -> None:
    """Print JSON; a figure that is not a finite number is null."""
    finite = json.loads(json.dumps(value), parse_constant=lambda name: None)
    print(json.dumps(finite, indent=2))


_ACTIONS: dict[str, Callable[[Catalog, argparse.Namespace, Console], None]] = {
    "list": _list,
    "show": _show,
    "diff": _diff,
    "promote": _promote,
    "rollback": _rollback,
    "snapshots": _snapshots,
    "pin": _pin,
    "unpin": _unpin,
}
