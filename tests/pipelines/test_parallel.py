"""The main job's parallel form: inference and training apart, live, in the runner of this process."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest

from contbatch.transforms import ModelStore
from contbatch.transforms.events import MICROS
from tests.pipelines.test_personalize import edited, records, run


@pytest.mark.parametrize("learner", ["sparse", "torch"])
def test_both_branches_account_for_everything(ratings: Path, tmp_path: Path, learner: str) -> None:
    def spoil(lines: list[str]) -> list[str]:
        return [*lines, "junk", f"{lines[0]}\tx", lines[1].replace(".0", "?")]

    data = edited(ratings, tmp_path / "data", spoil)
    out = tmp_path / "out"
    summary = run(data, out, "--form=parallel", f"--learner={learner}", "--rate=1000")
    assert (summary["requests"], summary["predicted"], summary["failed"]) == (403, 401, 2)
    assert (summary["feedback"], summary["learned"], summary["refused"]) == (401, 400, 1)
    assert sum(summary["freshness"].values()) == 400
    versions = ModelStore(str(out / "store")).versions()
    assert versions[-1].examples == 400
    assert [one.parent for one in versions] == [None, *[one.version for one in versions[:-1]]]
    served = {record["version"] for record in records(out / "predictions.avro")}
    assert len(served) > 1
    assert served <= {"0.0", *[one.version for one in versions]}


def test_events_have_the_times_at_which_they_were_due(ratings: Path, tmp_path: Path) -> None:
    run(ratings, tmp_path / "out", "--form=parallel", "--rate=1000")
    times = sorted(record["request_time"] for record in records(tmp_path / "out" / "predictions.avro"))
    assert (times[-1] - times[0]) / MICROS == pytest.approx(0.8, abs=0.05)  # 800 events, the last labels behind
    assert all(b > a for a, b in pairwise(times))
