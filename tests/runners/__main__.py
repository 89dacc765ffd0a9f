"""``make runners``: fetch and build the real runners, and run a job on each."""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from pathlib import Path

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions

from tests.runners.binaries import classpath, prism_binary
from tests.runners.cluster import FlinkCluster


def main() -> None:
    """Set everything up."""
    print("Prism: looked for, or built by Go (two minutes)", flush=True)
    prism = prism_binary()
    _run("--runner=PrismRunner", f"--prism_location={prism}", "--experiments=disable_prism_server_singleton")
    print(f"Prism: {prism} runs\nFlink: fetched by Maven the first time (160 MB)", flush=True)
    jars = classpath()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        _run(*stack.enter_context(FlinkCluster(folder, stack).flags()))
    print(f"Flink: {len(jars.split(':'))} jars; a cluster of them runs")


def _run(*flags: str) -> None:
    with beam.Pipeline(options=PipelineOptions([*flags])) as pipeline:
        _ = pipeline | beam.Create(range(10)) | beam.Reshuffle() | beam.combiners.Count.Globally()


if __name__ == "__main__":
    main()
