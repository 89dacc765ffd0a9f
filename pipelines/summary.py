"""What a run of the main job came to: computed from the files that it wrote."""

from __future__ import annotations

import json
from collections import Counter
from itertools import pairwise
from typing import Any

import numpy as np
from apache_beam.io.filesystems import FileSystems
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from contbatch.pipelines.errors import JobError
from contbatch.pipelines.files import read_records, write_text
from contbatch.pipelines.personalize import LEARNED, LEDGER, PREDICTIONS, STORE, SUMMARY, PersonalizeConfig
from contbatch.transforms.events import MICROS
from contbatch.transforms.files import read_bytes
from contbatch.transforms.learning import Arrays, ModelStore, auc, mean_log_loss
from contbatch.transforms.learning.calibration import CalibrationMonitor
from contbatch.transforms.learning.manifest import ordered
from contbatch.transforms.ledger import FEEDBACK_FATES, REQUEST_FATES, violations

Columns = dict[str, NDArray[Any]]


def summarise(config: PersonalizeConfig, runner: str, seconds: float) -> dict[str, Any]:
    """Compute the summary of a run, check its conservation laws, write it as JSON and return it.

    Raises:
        JobError: a law is broken, or the files do not hold what the ledger counted.
    """
    ledger: Counter[str] = Counter(json.loads(read_bytes(FileSystems.join(config.out, LEDGER))))
    predictions = _read(FileSystems.join(config.out, PREDICTIONS), _PREDICTION_COLUMNS)
    learned = _served(_read(FileSystems.join(config.out, LEARNED), _LEARNED_COLUMNS), predictions)
    summary = {
        **{name: ledger[name] for name in ("requests", *REQUEST_FATES, "feedback", *FEEDBACK_FATES, "versions")},
        **_batches(predictions),
        **_scores(learned, config),
        "calibration": _calibration(learned),
        **_freshness(predictions, learned),
        "rollbacks": len(ModelStore(FileSystems.join(config.out, STORE)).restores()),
        "seconds": round(seconds, 1),
        "runner": runner,
        "form": config.form,
        "learner": config.learner,
        "seed": config.seed,
        "max_size": config.policy.max_size,
        "max_delay_s": config.policy.max_delay,
        "feedback_delay_s": config.feedback_delay,
    }
    write_text(FileSystems.join(config.out, SUMMARY), json.dumps(summary, indent=2) + "\n")
    broken = violations(ledger)
    for name, path, rows in (("predicted", PREDICTIONS, predictions), ("learned", LEARNED, learned)):
        if ledger[name] != len(rows["time"]):
            broken.append(f"{path} holds {len(rows['time'])} records, but {ledger[name]} were {name}")
    if broken:
        raise JobError(f"conservation is broken: {'; '.join(broken)}")
    return summary


def show(summary: dict[str, Any], out: str, console: Console) -> None:
    """Print the summary as tables."""
    events = Table("events", "count", title="Every event accounted for", title_justify="left")
    events.columns[1].justify = "right"
    for total, fates in (("requests", REQUEST_FATES), ("feedback", FEEDBACK_FATES)):
        events.add_row(f"[bold]{total}", f"[bold]{summary[total]:,}")
        for fate in fates:
            events.add_row(f"  {fate}", f"{summary[fate]:,}")
    console.print(events)

    console.print(_bars(_batch_title(summary), "batch size", "batches", summary["batch_sizes"]))

    scores = Table("model", "labels", "log loss", "AUC", title="Progressive scores", title_justify="left")
    for column in scores.columns[1:]:
        column.justify = "right"
    for label, prefix in _SCORE_ROWS:
        count, loss, area = (summary[f"{prefix}{name}"] for name in ("labels", "logloss", "auc"))
        scores.add_row(label, f"{count:,}", _number(loss, 4), _number(area, 4))
    console.print(scores)

    spans = ", ".join(f"{_number(ratio, 2)} over {span}" for span, ratio in summary["calibration"].items())
    console.print(f"Mean prediction over mean label: {spans}", highlight=False)

    digits = 3 if summary["form"] == "parallel" else 1
    clock = "" if summary["form"] == "parallel" else " of event time (lulls between requests included)"
    p50, p99 = (_number(summary[f"freshness_p{share}_s"], digits) for share in (50, 99))
    title = f"Label to first prediction that knows it: p50 {p50} s, p99 {p99} s{clock}"
    console.print(_bars(title, "freshness", "labels", summary["freshness"]))
    console.print(
        f"{summary['versions']} model versions, {summary['rollbacks']} rollbacks, "
        f"{summary['seconds']} s on {summary['runner']}; predictions, models and summary.json are in {out}",
        highlight=False,
        soft_wrap=True,
    )


def _bars(title: str, what: str, how_many: str, counts: dict[str, int]) -> Table:
    table = Table(what, how_many, "", title=title, title_justify="left")
    table.columns[1].justify = "right"
    most = max(counts.values(), default=0) or 1
    for name, count in counts.items():
        table.add_row(name, f"{count:,}", "█" * (count and max(1, round(40 * count / most))))
    return table


_SCORE_ROWS = (
    ("online, all", ""),
    ("online, after the freeze", "online_"),
    ("frozen, after the freeze", "frozen_"),
)

_PREDICTION_COLUMNS = ("request_id", "score", "time", "version", "batch_size", "reason")
_LEARNED_COLUMNS = ("request_id", "time", "version", "label")


def _read(path: str, names: tuple[str, ...]) -> Columns:
    """Return columns of an Avro file, a version as a number that sorts; empty ones when there is no file."""
    columns: dict[str, list[Any]] = {name: [] for name in names}
    for record in read_records(path):
        for name, column in columns.items():
            column.append(record[name])
    columns["version"] = [_number_of(version) for version in columns["version"]]
    return {name: np.array(column) for name, column in columns.items()}


def _number_of(version: str) -> int:
    epoch, step = ordered(version)
    return epoch * 1_000_000_000 + step


def _served(learned: Columns, predictions: Columns) -> Columns:
    """Add to what was learned the score that had been given, and the version that had given it."""
    given = zip(predictions["score"].tolist(), predictions["version"].tolist(), strict=True)
    answers = dict(zip(predictions["request_id"].tolist(), given, strict=True))
    found = [answers.get(name, (np.nan, -1)) for name in learned["request_id"].tolist()]
    scores, versions = np.array(found).reshape(-1, 2).T
    return learned | {"score": scores, "served_by": versions}


def _batches(predictions: Columns) -> dict[str, Any]:
    """Count batches: each of a batch of n predictions stands for 1/n of it."""
    sizes, shares = predictions["batch_size"], 1 / np.maximum(predictions["batch_size"], 1)
    batches = round(float(shares.sum()))
    edges = [1, 2, 4, 8, 16, 32, 64, 128, 256, 1 << 62]
    histogram = {}
    for low, high in pairwise(edges):
        count = round(float(shares[(sizes >= low) & (sizes < high)].sum()))
        if count:
            histogram[f"{low}" if high == low + 1 else f"{low}-{high - 1}" if high < 1 << 62 else f"{low}+"] = count
    reasons = {
        str(reason): round(float(shares[predictions["reason"] == reason].sum()))
        for reason in np.unique(predictions["reason"])
    }
    mean = round(len(sizes) / batches, 3) if batches else None
    return {"batches": batches, "mean_batch": mean, "batch_sizes": histogram, "reasons": reasons}


def _scores(learned: Columns, config: PersonalizeConfig) -> dict[str, Any]:
    """Score all labels, and those served after the freeze by the online and by the frozen model."""
    scores = _score("", learned["score"], learned["label"])
    store = ModelStore(FileSystems.join(config.out, STORE))
    frozen = next((m for m in store.versions() if m.examples >= config.freeze_after), None)
    after = learned["served_by"] >= (_number_of(frozen.version) if frozen else np.inf)
    labels = learned["label"][after]
    given = np.zeros(0) if frozen is None else _rescore(store.read(frozen), learned["request_id"][after], config)
    return {
        **scores,
        "frozen_version": frozen and frozen.version,
        "frozen_examples": frozen and frozen.examples,
        **_score("online_", learned["score"][after], labels),
        **_score("frozen_", given, labels),
    }


def _score(prefix: str, scores: NDArray[Any], labels: NDArray[Any]) -> dict[str, Any]:
    return {
        f"{prefix}labels": len(labels),
        f"{prefix}logloss": _finite(mean_log_loss(scores, labels)),
        f"{prefix}auc": _finite(auc(scores, labels)),
    }


def _rescore(arrays: Arrays, request_ids: NDArray[Any], config: PersonalizeConfig) -> NDArray[np.float64]:
    """Return what a version would have answered to these requests; what it knows of late is as old as its weights."""
    learner = config.dataset.learner(config.seed, config.learner)
    state = learner.load(arrays)
    requests = {request["request_id"]: request for request in config.dataset.read_requests(config.data)}
    columns = {field: [requests[request_id][field] for request_id in request_ids] for field in learner.fields}
    return learner.predict(state, columns)


def _freshness(predictions: Columns, learned: Columns) -> dict[str, Any]:
    """Describe the time from a label to the first prediction by weights that know it: its percentiles, and how many."""
    order = np.lexsort((predictions["time"], predictions["version"]))
    earliest = np.minimum.accumulate(predictions["time"][order][::-1])[::-1]
    first = np.searchsorted(predictions["version"][order], learned["version"])
    known = first < len(order)
    waits = (earliest[first[known]] - learned["time"][known]) / MICROS
    counts = np.histogram(waits, [-np.inf, *_FRESHNESS, np.inf])[0].tolist()
    percentiles = {
        f"freshness_p{share}_s": _finite(float(np.percentile(waits, share))) if len(waits) else None
        for share in (50, 99)
    }
    edges = [*(f"<= {edge:g} s" for edge in _FRESHNESS), f"> {_FRESHNESS[-1]:g} s"]
    histogram = {edge: count for edge, count in zip(edges, counts, strict=True) if count}
    return percentiles | {"freshness": histogram | {"never": int(np.sum(~known))}}


_FRESHNESS = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0)
"""Upper edges of the freshness histogram, in seconds."""


def _calibration(learned: Columns) -> dict[str, float | None]:
    """Return mean prediction over mean label: over the last hour and day of event time, fading, and over all."""
    horizons = {"last hour": 3_600.0, "last day": 86_400.0, "all": _FOR_EVER}
    monitor = CalibrationMonitor(tuple(horizons.values()))
    state = monitor.learn(monitor.init(), learned["score"], learned["label"], learned["time"] / MICROS)
    ratios = monitor.ratios(state)
    return {name: _finite(ratios[horizon]) for name, horizon in horizons.items()}


_FOR_EVER = 1e15
"""A horizon, in seconds, beside which all event times are one."""


def _finite(value: float) -> float | None:
    return round(value, 6) if np.isfinite(value) else None


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:,.{digits}f}"


def _batch_title(summary: dict[str, Any]) -> str:
    reasons = ", ".join(f"{count:,} by {reason}" for reason, count in summary["reasons"].items() if reason)
    mean = _number(summary["mean_batch"], 2)
    return f"{summary['batches']:,} micro-batches, mean size {mean}" + (f", released {reasons}" if reasons else "")
