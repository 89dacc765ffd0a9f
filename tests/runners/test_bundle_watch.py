"""On a real Flink cluster: bundles of a second are named by a batcher whose elements may wait half of that."""

from __future__ import annotations

import re
import time
from pathlib import Path

import apache_beam as beam
import pytest

from contbatch.pipelines.options import pipeline_options
from contbatch.pipelines.runner_flags import given
from contbatch.transforms import BatchPolicy, ContinuousBatch
from contbatch.transforms.io.replay import PacedReplay
from tests.runners.cluster import FlinkCluster
from tests.runners.processes import wait_for
from tests.runners.sink import FileSink
from tests.runners.test_flink_commands import COUNT, RATE, events

pytestmark = [pytest.mark.needs("javac", "mvn"), pytest.mark.slow]

WARNING = r"bundles begin (\S+) s apart \(median of 20\), and elements are to wait 0\.5 s at most: on Flink set --max_b"


@pytest.mark.parametrize("bundle", [None, 1_000], ids=["as we set it", "Flink's default"])
def test_bundles_that_are_too_long_are_named_in_the_pools_output(
    flink: FlinkCluster, tmp_path: Path, bundle: int | None
) -> None:
    more = [] if bundle is None else [f"--max_bundle_time_mills={bundle}"]
    name = f"watched-{bundle}"
    sink = FileSink(tmp_path / "out")
    with flink.flags(f"--job_name={name}", *more) as flags:
        pipeline = beam.Pipeline(options=pipeline_options(flags, streaming=True))
        rows = pipeline | PacedReplay(events, COUNT, RATE) | beam.Map(lambda event: event.row)
        # The batcher's first step is in a stage of its own, whose bundles are Flink's and not the source's.
        batches = rows | beam.Reshuffle() | ContinuousBatch(BatchPolicy(max_delay=0.5))
        _ = batches | beam.Map(len) | sink
        pipeline.run()
        wait_for("the first batches", lambda: sum(sink.read()) > 100, tmp_path)
        began = time.monotonic()
        port = (given(flags, "environment_config") or "").rpartition(":")[2]
        log = flink.folder / f"pool-{port}.log"

        def found() -> list[str]:
            return re.findall(WARNING, log.read_text())

        # 20 gaps of 0.05 s are long over in 20 s; 20 gaps of 1 s take 20 s and more.
        wait_for("the verdict", lambda: found() or (bundle is None and time.monotonic() > began + 20), tmp_path)
        flink.cancel(flink.job(name))
        gaps = [float(gap) for gap in found()]
    assert (gaps == []) if bundle is None else (len(gaps) == 1 and gaps[0] >= 1.0)
