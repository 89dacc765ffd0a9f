"""The main job on a real Flink cluster: the bytes of DirectRunner, and a live parallel form that loses nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from contbatch.transforms import ModelStore
from tests.pipelines.test_flights import edited
from tests.pipelines.test_personalize import run
from tests.runners.cluster import FlinkCluster

pytestmark = [pytest.mark.needs("javac", "mvn"), pytest.mark.slow]


def test_the_serial_form_gives_the_bytes_of_the_direct_runner(
    ratings: Path, tmp_path: Path, flink: FlinkCluster
) -> None:
    direct = run(ratings, tmp_path / "direct")
    with flink.flags() as flags:
        on_flink = run(ratings, tmp_path / "flink", *flags)
    assert (direct.pop("runner"), on_flink.pop("runner")) == ("DirectRunner", "PortableRunner")
    assert {**direct, "seconds": 0} == {**on_flink, "seconds": 0}
    files = [(tmp_path / name / "predictions.avro").read_bytes() for name in ("direct", "flink")]
    assert files[0] == files[1]


@pytest.mark.parametrize(("dataset", "least"), [("movielens", 400), ("flights", 391)])
def test_the_parallel_form_accounts_for_everything(
    ratings: Path, root: Path, tmp_path: Path, flink: FlinkCluster, dataset: str, least: int
) -> None:
    """A replay needs no flags of Flink; it comes to an end, which with checkpoints it never would.

    The flights' model prepares features, so that its trainer gets them from where they were served.
    """
    data = ratings if dataset == "movielens" else edited(root / "tests" / "data", tmp_path, lambda lines: lines[:400])
    job = ["--form=parallel", "--rate=200", f"--dataset={dataset}"]
    with flink.flags() as flags:
        summary = run(data, tmp_path / "out", *job, *flags)
    assert summary["requests"] == summary["predicted"] == 400
    assert summary["feedback"] == summary["learned"] == sum(summary["freshness"].values()) >= least
    assert len(ModelStore(str(tmp_path / "out" / "store")).versions()) == summary["versions"] > 1
