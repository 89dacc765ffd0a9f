"""The serial form on a real Prism."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import apache_beam as beam
import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.transforms.window import FixedWindows

from contbatch.pipelines.cli import main
from contbatch.transforms import ModelStore, Published
from contbatch.transforms.testing import Sink, assert_conserved, stepwise

pytestmark = pytest.mark.needs("go")

OUTPUTS = ("predictions", "learned", "failed", "published")


@pytest.mark.parametrize("live", [False, True])
def test_same_outputs_as_the_direct_runner_and_nothing_lost_downstream(
    small: Any, tmp_path: Path, prism: str, live: bool
) -> None:
    events = small.events(50)

    def run(runner: str, **flags: Any) -> tuple[list[Any], int]:
        sink, counted = Sink(), Sink()
        options = PipelineOptions([], runner=runner, streaming=live, **flags)
        with beam.Pipeline(options=options) as pipeline:
            source = stepwise(events, 0.5) if live else beam.Create(events)
            done = pipeline | source | small.transform(tmp_path / runner)
            every = [done[name] for name in OUTPUTS] | beam.Flatten()
            _ = every | "Keep" >> sink
            ones = every | beam.Map(lambda _: 1) | beam.WindowInto(FixedWindows(1))
            _ = ones | beam.CombineGlobally(sum).without_defaults() | "Count" >> counted
        return sink.elements, sum(counted.elements)

    outputs, counted = run("PrismRunner", prism_location=prism, experiments=["disable_prism_server_singleton"])
    direct, _ = run("DirectRunner")
    assert_conserved(events, outputs)
    assert counted == len(outputs)
    assert without_versions(outputs) == without_versions(direct)


def without_versions(outputs: list[Any]) -> list[str]:
    return sorted(repr(output) for output in outputs if not isinstance(output, Published))


def test_the_main_job_by_flags(ratings: Path, tmp_path: Path, prism: str) -> None:
    summaries = []
    for flags in ([], ["--runner=PrismRunner", f"--prism_location={prism}"]):
        out = tmp_path / f"out{len(flags)}"
        assert main(["personalize", "--data", str(ratings), "--out", str(out), "--publish_every=100", *flags]) == 0
        summaries.append(json.loads((out / "summary.json").read_text()))
    direct, on_prism = summaries
    assert (direct.pop("runner"), on_prism.pop("runner")) == ("DirectRunner", "PrismRunner")
    assert {**direct, "seconds": 0} == {**on_prism, "seconds": 0}
    files = [(tmp_path / f"out{number}" / "predictions.avro").read_bytes() for number in (0, 2)]
    assert files[0] == files[1]


def test_the_parallel_form_by_flags(ratings: Path, tmp_path: Path, prism: str) -> None:
    out = tmp_path / "out"
    flags = ["--form=parallel", "--rate=400", "--runner=PrismRunner", f"--prism_location={prism}"]
    assert main(["personalize", "--data", str(ratings), "--out", str(out), *flags]) == 0
    summary = json.loads((out / "summary.json").read_text())
    counts = ("requests", "predicted", "feedback", "learned")
    assert [summary[name] for name in counts] == [400] * 4
    assert sum(summary["freshness"].values()) == 400
    assert len(ModelStore(str(out / "store")).versions()) == summary["versions"] > 1


def test_beam_still_gives_a_job_no_longer_than_its_server_has_to_answer(
    ratings: Path, tmp_path: Path, prism: str
) -> None:
    """Eight seconds of events: when this goes well, ``pipeline_options`` need no ``job_server_timeout`` any more."""
    out = tmp_path / "out"
    flags = ["--runner=PrismRunner", f"--prism_location={prism}", "--job_server_timeout=4"]
    flags += ["--form=parallel", "--rate=100"]
    assert main(["personalize", "--data", str(ratings), "--out", str(out), *flags]) == 1
    assert "DEADLINE_EXCEEDED" in (out / "error.log").read_text()
