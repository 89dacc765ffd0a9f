"""Jobs whose process is killed, in earnest, at each of the points that matter; the hundred kills are a benchmark."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.learning_parts.kills import FORMS, POINTS, Outcome

PROGRAM = """
import json, sys
from benchmarks.learning_parts.kills import POINTS, compare, workload
found = compare(sys.argv[1], len(POINTS), workload(200, 25), publish_every=40, snapshot_every=60)
print(json.dumps(found._asdict()))
"""


@pytest.mark.parametrize("form", FORMS)
def test_a_job_that_is_killed_comes_to_what_it_would_have(root: Path, form: str) -> None:
    # A process of its own: this one has threads, with which nothing can be forked.
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, form], cwd=root, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    found = Outcome(**json.loads(done.stdout))
    assert (found.killed, found.twice, found.lost) == (len(POINTS), 0, 0)
    assert found.versions > 2
    if not form.endswith("as it comes"):
        assert (found.different, found.changed) == (0, 0)
