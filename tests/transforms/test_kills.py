"""Jobs whose process is killed, in earnest, at each of the points that matter; the hundred kills are a benchmark."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.learning_parts import kills
from contbatch.transforms import BatchPolicy, OnlineUpdate, PredictThenLearn

FORMS = {
    "serial": lambda root, **given: PredictThenLearn(kills.sparse(), BatchPolicy(16, 1.0), root, **given),
    "trainer": lambda root, **given: OnlineUpdate(kills.dense(), BatchPolicy(16, 1.0), root, **given)._loop,
    "arrival": lambda root, **given: (
        OnlineUpdate(kills.sparse(), BatchPolicy(16, 1.0), root, deterministic=False, **given)._loop
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_job_that_is_killed_comes_to_what_it_would_have(tmp_path: Path, form: str) -> None:
    arguments = kills.ARGUMENTS | {"publish_every": 40, "snapshot_every": 60}
    bundles = kills.workload(requests=200, bundle=25)
    learner = kills.dense() if form == "trainer" else kills.sparse()
    found = {}
    for name, count in (("straight", 0), ("killed", len(kills.POINTS))):
        job = kills.Job(tmp_path / name, lambda root: FORMS[form](root, **arguments), bundles)
        assert kills.run_killed(job, learner, count) == count
        found[name] = job.comes_to()
    assert len(found["straight"]["learned"]) == 200
    if form == "arrival":  # the counts alone do not depend on how bundles were cut
        assert found["killed"]["learned"] == found["straight"]["learned"]
    else:
        assert found["killed"] == found["straight"]
