from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from contbatch.pipelines import movielens, summary
from contbatch.pipelines.cli import main
from contbatch.pipelines.errors import JobError
from contbatch.pipelines.personalize import PersonalizeConfig
from contbatch.transforms import BatchPolicy


@pytest.fixture
def finished(ratings: Path, tmp_path: Path) -> PersonalizeConfig:
    assert main(["personalize", "--data", str(ratings), "--out", str(tmp_path)]) == 0
    policy = BatchPolicy(256, 5.0)
    return PersonalizeConfig(str(tmp_path), movielens.DATASET, ratings, policy, 5.0, 86_400.0, 0, 10_000, 80, False)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"predicted": 399}, "requests: 400 went in, but 399 predicted"),
        ({"feedback": 401}, "feedback: 401 went in, but 400 learned"),
        ({"requests": 401, "predicted": 401}, "predictions.avro holds 400 records, but 401 were predicted"),
        ({"feedback": 401, "learned": 401}, "learned.avro holds 400 records, but 401 were learned"),
    ],
)
def test_a_broken_law_fails_the_job(finished: PersonalizeConfig, change: dict[str, int], text: str) -> None:
    ledger = Path(finished.out) / "ledger.json"
    ledger.write_text(json.dumps(json.loads(ledger.read_text()) | change))
    with pytest.raises(JobError, match=text):
        summary.summarise(finished, "DirectRunner", 1.0)


def test_a_lost_file_fails_the_job(finished: PersonalizeConfig) -> None:
    (Path(finished.out) / "predictions.avro").unlink()
    with pytest.raises(JobError, match=r"predictions\.avro holds 0 records, but 400 were predicted"):
        summary.summarise(finished, "DirectRunner", 1.0)


def test_the_tables_show_what_the_summary_holds(finished: PersonalizeConfig) -> None:
    console = Console(record=True, width=120)
    values: dict[str, Any] = summary.summarise(finished, "DirectRunner", 1.0)
    summary.show(values, finished.out, console)
    text = console.export_text()
    for shown in ("predicted", "400", f"{values['logloss']:.4f}", f"{values['auc']:.4f}", "DirectRunner"):
        assert shown in text
