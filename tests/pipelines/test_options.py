from __future__ import annotations

import os

import pytest
from apache_beam.options.pipeline_options import DebugOptions, PrismRunnerOptions, StandardOptions

from contbatch.pipelines.errors import UsageError
from contbatch.pipelines.options import pipeline_options


def test_prism_is_taken_from_its_flag_else_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONTBATCH_PRISM", "/opt/prism")
    for flags, found in ((["--prism_location=/x/prism"], "/x/prism"), ([], "/opt/prism")):
        options = pipeline_options(["--runner=PrismRunner", *flags], [])
        assert options.view_as(PrismRunnerOptions).prism_location == found


def test_keyed_state_is_safe_on_prism_and_no_runner_is_taken_for_direct() -> None:
    options = pipeline_options([], [])
    assert options.view_as(StandardOptions).runner == "DirectRunner"
    assert "prism_disable_sdf_split" in options.view_as(DebugOptions).experiments


def test_a_server_may_know_flags_that_we_do_not() -> None:
    flags = ["--runner=PortableRunner", "--job_endpoint=localhost:8099", "--my_flink_setting=3"]
    assert pipeline_options(flags, []).view_as(StandardOptions).runner == "PortableRunner"
    with pytest.raises(UsageError, match="unknown argument --my_flink_setting"):
        pipeline_options(flags[2:], [])


@pytest.mark.parametrize("given", ["", "example.com"])
def test_localhost_is_kept_away_from_a_proxy(given: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", given)
    pipeline_options([], [])
    assert set(os.environ["no_proxy"].split(",")) >= {"localhost", "127.0.0.1"} | ({given} - {""})
