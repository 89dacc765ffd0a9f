"""The main job on a real Flink cluster: the bytes of DirectRunner, and a live parallel form that loses nothing."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from contbatch.pipelines.cli import main
from contbatch.transforms import ModelStore
from tests.runners.cluster import FlinkCluster

pytestmark = pytest.mark.needs("java", "mvn")


@pytest.fixture(scope="module")
def flink(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FlinkCluster]:
    """A cluster, for the tests of this file."""
    with ExitStack() as stack:
        yield FlinkCluster(tmp_path_factory.mktemp("flink"), stack)


@pytest.fixture
def flights(root: Path, tmp_path: Path) -> Path:
    """The first 400 flights of the year."""
    lines = gzip.decompress((root / "tests" / "data" / "flights.csv.gz").read_bytes()).splitlines(keepends=True)
    path = tmp_path / "flights.csv"
    path.write_bytes(b"".join(lines[:401]))
    return path


def personalize(out: Path, *flags: str) -> dict[str, Any]:
    assert main(["personalize", "--out", str(out), *flags]) == 0, (out / "error.log").read_text()[-3000:]
    return json.loads((out / "summary.json").read_text())


def test_the_serial_form_gives_the_bytes_of_the_direct_runner(
    ratings: Path, tmp_path: Path, flink: FlinkCluster
) -> None:
    job = ["--data", str(ratings), "--publish_every=100"]
    direct = personalize(tmp_path / "direct", *job)
    with flink.flags() as flags:
        on_flink = personalize(tmp_path / "flink", *job, *flags)
    assert (direct.pop("runner"), on_flink.pop("runner")) == ("DirectRunner", "PortableRunner")
    assert {**direct, "seconds": 0} == {**on_flink, "seconds": 0}
    files = [(tmp_path / name / "predictions.avro").read_bytes() for name in ("direct", "flink")]
    assert files[0] == files[1]


@pytest.mark.parametrize("dataset", ["movielens", "flights"])
def test_the_parallel_form_accounts_for_everything(
    ratings: Path, flights: Path, tmp_path: Path, flink: FlinkCluster, dataset: str
) -> None:
    """The flights' model prepares features, so that its trainer gets them from where they were served."""
    data = {"movielens": ratings, "flights": flights}[dataset]
    job = ["--form=parallel", "--rate=200", "--data", str(data), f"--dataset={dataset}"]
    live = ["--shutdown_sources_after_idle_ms=1000", "--checkpointing_interval=2000", "--max_bundle_time_mills=50"]
    with flink.flags(*live) as flags:
        summary = personalize(tmp_path / "out", *job, *flags)
    assert summary["requests"] == summary["predicted"] == 400
    assert summary["feedback"] == summary["learned"] == sum(summary["freshness"].values()) > 390
    assert len(ModelStore(str(tmp_path / "out" / "store")).versions()) == summary["versions"] > 1
