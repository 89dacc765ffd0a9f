"""Faults of a live job on a real Flink cluster: what was killed has changed nothing."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.runners.cluster import FlinkCluster
from tests.runners.faults.forms import Workload
from tests.runners.faults.job import FaultyJob
from tests.runners.faults.verdict import Undisturbed, judge

pytestmark = [pytest.mark.needs("javac", "mvn"), pytest.mark.slow]

WORKLOAD = Workload(requests=600, rate=200.0)
"""600 requests, 600 labels, 60 labels again: 6.3 s."""


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    return Undisturbed(tmp_path_factory.mktemp("undisturbed"), WORKLOAD)


@pytest.mark.parametrize(
    "disturb",
    [lambda job: job.kill("worker"), lambda job: job.kill("taskmanager"), lambda job: job.resume()],
    ids=["the worker is killed", "the TaskManager is killed", "a savepoint is resumed"],
)
def test_nothing_is_lost_or_learned_twice(
    tmp_path: Path, flink: FlinkCluster, undisturbed: Undisturbed, disturb: Callable[[FaultyJob], object]
) -> None:
    with ExitStack() as stack:
        job = FaultyJob(flink, tmp_path, WORKLOAD, stack)
        job.start()
        job.wait_for(0.3)
        disturb(job)
        job.finish()
    found = judge(tmp_path, WORKLOAD, undisturbed)
    assert {form: outcome.violations for form, outcome in found.items() if outcome.violations} == {}
    assert all(outcome.versions > 10 for outcome in found.values())
