"""The main job on invented ratings: accounted for, repeatable, and nothing lost to a bad line."""

from __future__ import annotations

import json
import random
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import fastavro
import numpy as np
import pytest

from contbatch.pipelines.cli import main
from contbatch.transforms import ModelStore


def run(data: Path, out: Path, *flags: str) -> dict[str, Any]:
    arguments = ["personalize", "--data", str(data), "--out", str(out), "--publish_every=100", *flags]
    assert main(arguments) == 0
    return json.loads((out / "summary.json").read_text())


def records(path: Path) -> list[dict[str, Any]]:
    with path.open("rb") as file:
        return list(fastavro.reader(file))


def edited(ratings: Path, folder: Path, edit: Any) -> Path:
    """Return a copy of the ratings, their lines edited."""
    shutil.copytree(ratings, folder)
    path = folder / "ml-100k.inter"
    header, *lines = path.read_text().splitlines()
    path.write_text("\n".join([header, *edit(lines)]) + "\n")
    return folder


def test_everything_is_accounted_for_and_written_down(ratings: Path, tmp_path: Path) -> None:
    summary = run(ratings, tmp_path / "out")
    assert (summary["requests"], summary["predicted"], summary["feedback"], summary["learned"]) == (400,) * 4
    predictions = records(tmp_path / "out" / "predictions.avro")
    assert len({record["request_id"] for record in predictions}) == 400
    assert set(predictions[0]) >= {"request_id", "score", "version", "batch_size", "reason"}
    sizes = Counter(record["batch_size"] for record in predictions)
    assert summary["batches"] == sum(count // size for size, count in sizes.items())
    assert sum(summary["reasons"].values()) == summary["batches"]
    assert not (tmp_path / "out" / "failed.avro").exists()
    manifests = ModelStore(str(tmp_path / "out" / "store")).versions()
    assert summary["versions"] == len(manifests) == 4
    assert manifests[-1].examples == 400


def test_the_summary_is_what_the_files_say(ratings: Path, tmp_path: Path) -> None:
    summary = run(ratings, tmp_path / "out")
    learned = records(tmp_path / "out" / "learned.avro")
    losses = [-np.log(r["score"] if r["label"] else 1 - r["score"]) for r in learned]
    assert summary["logloss"] == pytest.approx(np.mean(losses), abs=1e-6)
    # label i at 5 s after request i; the first prediction by weights that know it is that of a later batch
    predictions = records(tmp_path / "out" / "predictions.avro")
    step = {record["request_id"]: int(record["version"].split(".")[1]) for record in predictions}
    released = {record["request_id"]: record["time"] for record in predictions}
    waits = []
    for record in learned:
        known = [released[i] for i in released if step[i] >= int(record["version"].split(".")[1])]
        waits += [(min(known) - record["time"]) / 1e6] if known else []
    assert summary["freshness_p50_s"] == pytest.approx(np.percentile(waits, 50))


def test_the_frozen_model_is_a_version_that_stays(ratings: Path, tmp_path: Path) -> None:
    summary = run(ratings, tmp_path / "out", "--freeze=0.25")
    assert summary["frozen_examples"] >= 100
    assert summary["frozen_labels"] == summary["online_labels"] < 400
    assert summary["frozen_logloss"] != summary["online_logloss"]
    never = run(ratings, tmp_path / "never", "--freeze=1", "--publish_every=1000")
    assert (never["online_labels"], never["frozen_auc"]) == (0, None)


def test_same_input_and_seed_same_bytes_whatever_the_order_of_the_lines(ratings: Path, tmp_path: Path) -> None:
    run(ratings, tmp_path / "a")
    run(ratings, tmp_path / "b")
    run(ratings, tmp_path / "c", "--seed=1")
    a, b, c = ((tmp_path / name / "predictions.avro").read_bytes() for name in "abc")
    assert a == b != c


def test_distinct_times_in_any_order_of_lines_give_the_same_scores(ratings: Path, tmp_path: Path) -> None:
    """A request's id is its line; so the scores are compared by user, item and time."""
    shuffled = edited(ratings, tmp_path / "shuffled", lambda lines: random.Random(5).sample(lines, len(lines)))
    scores = []
    for data, out in ((ratings, tmp_path / "a"), (shuffled, tmp_path / "b")):
        run(data, out)
        scores.append(sorted((r["request_time"], r["score"]) for r in records(out / "predictions.avro")))
    assert scores[0] == scores[1]


def test_bad_lines_come_out_failed_and_the_others_are_as_without_them(ratings: Path, tmp_path: Path) -> None:
    bad = ["", "1\t2", "1\t2\t5.0\tnoon", "99\t2\t5.0\t880000001", "1\t99\t5.0\t880000001", "1\t2\tgood\t880000001"]
    data = edited(ratings, tmp_path / "bad", lambda lines: [*lines, *bad])
    clean, summary = run(ratings, tmp_path / "a"), run(data, tmp_path / "b")
    assert (summary["requests"], summary["predicted"], summary["failed"]) == (406, 401, 5)
    assert (summary["feedback"], summary["learned"], summary["refused"]) == (401, 400, 1)
    failed = records(tmp_path / "b" / "failed.avro")
    assert {record["payload"].decode() for record in failed} == set(bad)
    assert all(record["reason"] for record in failed)
    assert clean["learned"] == summary["learned"]


def test_an_earlier_run_is_replaced_and_nothing_else_is_touched(ratings: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(ratings, out, "--publish_every=50")
    (out / "notes.txt").write_text("mine")
    assert run(ratings, out)["versions"] == 4
    assert len(ModelStore(str(out / "store")).versions()) == 4
    assert (out / "notes.txt").read_text() == "mine"


def test_feedback_without_its_request_is_unmatched_at_the_end(ratings: Path, tmp_path: Path) -> None:
    """A delay beyond twice the ttl: nothing is known of the request any more when its label comes."""
    summary = run(ratings, tmp_path / "out", "--feedback_delay=500", "--ttl=100")
    assert (summary["learned"], summary["unmatched"], summary["late"]) == (0, 400, 0)
    summary = run(ratings, tmp_path / "out", "--feedback_delay=150", "--ttl=100")
    assert (summary["learned"], summary["unmatched"], summary["late"]) == (0, 0, 400)
