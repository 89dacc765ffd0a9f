"""Versions of a model as tables, and as JSON values. Times are UTC."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from typing import Any

from rich.table import Table

from contbatch.pipelines.model_catalog import Row, State
from contbatch.pipelines.model_diff import Change, Shape
from contbatch.transforms.learning import Manifest, Restore
from contbatch.transforms.learning.snapshots import RETAIN, Pin, Snapshot

_LINEAGE_SHOWN = 12


def record(row: Row) -> dict[str, Any]:
    """Return a version as JSON values: its manifest's fields, and what the store says of it."""
    manifest = row.manifest
    known = {} if manifest is None else asdict(manifest)
    times = {} if manifest is None else {"first_event": _iso(manifest.since), "last_event": _iso(manifest.time)}
    return (
        known
        | times
        | {
            "version": row.version,
            "state": row.state.value,
            "why": row.why,
            "bytes": row.size,
            "published": _iso(round(row.published * 1_000_000)),
        }
    )


def listing(title: str, rows: Iterable[Row], now: float) -> Table:
    """Return one line per version.

    Args:
        title: above them.
        rows: the versions.
        now: seconds since the epoch.
    """
    names = ("version", "parent", "state", "examples", "event time (UTC)", "log loss", "AUC", "gate", "size", "age")
    table = _table(title, names, right=("examples", "log loss", "AUC", "size", "age"))
    table.columns[names.index("event time (UTC)")].min_width = len("1997-09-20 04:05:10 to")
    table.caption = "log loss and AUC: progressive, of the examples since the version before"
    table.caption_justify = "left"
    for row in rows:
        style = "bold" if row.state is State.SERVES else None if row.state is State.COUNTS else "dim"
        figures = ("", "", "", "", "", "") if row.manifest is None else _figures(row.manifest)
        parent, *others = figures
        size, age = _bytes(row.size), _age(now - row.published)
        table.add_row(row.version, parent, _state(row), *others, size, age, style=style)
    return table


def details(row: Row, lineage: Sequence[str], end: str, now: float) -> Table:
    """Return all that a version's manifest holds but its histograms, by field.

    Args:
        row: the version, its digest verified.
        lineage: it and those that it descends from.
        end: how that ends.
        now: seconds since the epoch.
    """
    table = _table(f"Version {row.version}", ("field", "value"))
    add = table.add_row
    add("state", _state(row))
    manifest = row.manifest
    if manifest is not None:
        add("model", manifest.model or "(unnamed)")
        add("parent", manifest.parent or "none")
        add("lineage", _chain(lineage, end))
        add("examples", f"{manifest.examples:,}")
        add("importance weight", f"{manifest.weight:,g}")
        add("event time (UTC)", _span(manifest))
        add("log loss, all examples", _number(manifest.loss))
        for name, value in sorted(manifest.metrics.items()):
            add(f"{name}, since the parent", _number(value))
        add("gate", manifest.gate or "-")
        for name, text in sorted(manifest.config.items()):
            add(f"config: {name}", text)
        intact = "DAMAGED, see state" if row.state is State.DAMAGED else "verified against the weights file"
        add("digest", f"{manifest.digest} ({intact})")
    add("weights", _bytes(row.size))
    add("published (UTC)", f"{_time(round(row.published * 1_000_000))}, {_age(now - row.published)} ago")
    return table


def bars(title: str, what: str, how_many: str, histogram: dict[str, int]) -> Table:
    """Return a histogram; its buckets are named by their lower bounds, such as ``4-7``."""
    table = _table(title, (what, how_many, ""), right=(how_many,))
    most = max(histogram.values(), default=0) or 1
    for name, count in sorted(histogram.items(), key=lambda item: (_lower(item[0]), item[0])):
        table.add_row(name, f"{count:,}", "█" * (count and max(1, round(40 * count / most))))
    return table


def touched_by(version: str, restores: dict[Restore, str]) -> Table:
    """Return what each of these restores did to a version, in their order."""
    table = _table("Restores that touch it", ("of", "ends epochs up to", "effect on it", "reason"))
    for restore, reason in restores.items():
        effect = "serves again" if restore.target == version else "no longer counts"
        table.add_row(restore.target, str(restore.ended), effect, reason)
    return table


def snapshots(title: str, found: Iterable[Snapshot], now: float) -> Table:
    """Return one line per snapshot.

    Args:
        title: above them.
        found: the snapshots.
        now: seconds since the epoch.
    """
    table = _table(title, ("snapshot", "size", "age", "replaced", "goes", "pinned by"), right=("size", "age"))
    for one in sorted(found, key=lambda one: one.written, reverse=True):
        replaced, goes = "-", "-"
        if one.replaced is not None:
            left = one.replaced + RETAIN - now
            replaced = f"{_age(now - one.replaced)} ago"
            goes = "when unpinned" if one.pins else f"in {_age(left)}" if left > 0 else "at the next snapshot"
        table.add_row(one.digest, _bytes(one.size), _age(now - one.written), replaced, goes, ", ".join(one.pins) or "-")
    return table


def pins(found: Iterable[Pin], present: Collection[str], now: float) -> Table:
    """Return one line per pin.

    Args:
        found: the pins.
        present: digests of the snapshots that there are.
        now: seconds since the epoch.
    """
    table = _table(
        "Pins", ("name", "age", "snapshots", "of them missing"), right=("age", "snapshots", "of them missing")
    )
    for pin in found:
        missing = sum(digest not in present for digest in pin.snapshots)
        table.add_row(pin.name, _age(now - pin.since), f"{len(pin.snapshots):,}", f"{missing:,}")
    return table


def side_by_side(a: Manifest, b: Manifest) -> Table:
    """Return the figures of two manifests, and how numbers changed; of the configuration, what differs."""
    table = _table("Manifests", ("field", f"A: {a.version}", f"B: {b.version}", "B - A"))

    def numbers(name: str, before: float | None, after: float | None, digits: int) -> None:
        change = "-" if before is None or after is None else f"{after - before:+,.{digits}f}"
        table.add_row(name, _number(before, digits), _number(after, digits), change)

    table.add_row("parent", a.parent or "none", b.parent or "none", "")
    numbers("examples", a.examples, b.examples, 0)
    numbers("importance weight", a.weight, b.weight, 1)
    numbers("updates", a.step, b.step, 0)
    numbers("log loss, all examples", a.loss, b.loss, 6)
    for name in sorted(a.metrics.keys() | b.metrics.keys()):
        numbers(f"{name}, since the parent", a.metrics.get(name), b.metrics.get(name), 6)
    later = f"{(b.time - a.time) / 1_000_000:+,.0f} s"
    table.add_row("last event (UTC)", _time(a.time), _time(b.time), later)
    table.add_row("gate", a.gate or "-", b.gate or "-", "")
    for name in sorted(a.config.keys() | b.config.keys()):
        texts = a.config.get(name, "-"), b.config.get(name, "-")
        if texts[0] != texts[1]:
            table.add_row(f"config: {name}", *texts, "")
    return table


def changes(title: str, found: Iterable[Change]) -> Table:
    """Return how each array differs."""
    right = ("changed", "largest |change|", "mean |change|", "L2 of change / A")
    table = _table(title, ("array", "shape", *right), right=right)
    for change in found:
        share = "-" if change.share is None else f"{change.share:.2%}"
        sizes = ("-" if x is None else f"{x:.4g}" for x in (change.largest, change.mean, change.relative))
        table.add_row(change.name, _shapes(change.before, change.after), share, *sizes)
    return table


def _table(title: str, columns: Iterable[str], right: Sequence[str] = ()) -> Table:
    table = Table(title=title, title_justify="left")
    for name in columns:
        table.add_column(name, justify="right" if name in right else "left", overflow="fold")
    return table


def _figures(manifest: Manifest) -> tuple[str, str, str, str, str, str]:
    loss, area = (_number(manifest.metrics.get(name)) for name in ("log_loss", "auc"))
    parent, gate = manifest.parent or "-", manifest.gate or "-"
    return parent, f"{manifest.examples:,}", _span(manifest), loss, area, gate


def _state(row: Row) -> str:
    return f"{row.state.value}{': ' if row.state is not State.RESTORED and row.why else ' '}{row.why}".strip()


def _span(manifest: Manifest) -> str:
    return f"{_time(manifest.since)} to {_time(manifest.time)}" if manifest.examples else "-"


def _iso(micros: int) -> str | None:
    try:
        return (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=micros)).isoformat()
    except OverflowError:
        return None


def _time(micros: int) -> str:
    iso = _iso(micros)
    return f"{micros} microseconds" if iso is None else iso[:19].replace("T", " ")


def _age(seconds: float) -> str:
    for unit, size in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:,.0f} {unit}"
    return f"{max(0.0, seconds):.0f} s"


def _bytes(size: int | None) -> str:
    if size is None:
        return "missing"
    for unit, of in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= of:
            return f"{size / of:,.1f} {unit}"
    return f"{size} B"


def _number(value: float | None, digits: int = 4) -> str:
    return "-" if value is None else f"{value:,.{digits}f}"


def _lower(bucket: str) -> int:
    digits = bucket.partition("-")[0].rstrip("+")
    return int(digits) if digits.isdecimal() else 1 << 62


def _chain(lineage: Sequence[str], end: str) -> str:
    shown = list(lineage)
    if len(shown) > _LINEAGE_SHOWN:
        half = _LINEAGE_SHOWN // 2
        shown = [*shown[:half], f"... {len(shown) - 2 * half} more ...", *shown[-half:]]
    return f"{' < '.join(shown)} ({end})"


def _shapes(before: Shape | None, after: Shape | None) -> str:
    if before is None or after is None:
        return f"{before} only in A" if after is None else f"{after} only in B"
    return f"{before}" if before == after else f"{before} to {after}"
