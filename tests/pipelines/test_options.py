from __future__ import annotations

import os
import shutil
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.error import URLError

import pytest
from apache_beam import version as beam
from apache_beam.options.pipeline_options import (
    DebugOptions,
    GoogleCloudOptions,
    PipelineOptions,
    PortableOptions,
    PrismRunnerOptions,
    StandardOptions,
)
from apache_beam.runners.portability.prism_runner import PrismJobServer

from contbatch.pipelines.errors import UsageError
from contbatch.pipelines.options import pipeline_options
from contbatch.pipelines.runner_flags import given
from tests.pipelines.flink_server import fake_flink
from tests.pipelines.job_server import FLINK, job_server

BUILD = f"`go install github.com/apache/beam/sdks/v2/go/cmd/prism@v{beam.__version__}`"


@pytest.fixture
def flink() -> Iterator[list[str]]:
    """Flags for a job server of Flink."""
    with job_server(FLINK) as address:
        yield ["--runner=PortableRunner", f"--job_endpoint={address}"]


def refused(*flags: str) -> str:
    with pytest.raises(UsageError) as error:
        pipeline_options([*flags])
    return str(error.value)


def experiments(options: PipelineOptions) -> set[str]:
    return {*options.view_as(DebugOptions).experiments}


def set_for(options: PipelineOptions, *names: str) -> list[str | None]:
    """Return what Flink's own flags are, which Beam's Python does not know."""
    return [given(options._flags, name) for name in names]


def test_keyed_state_is_safe_on_prism_and_no_runner_is_taken_for_direct() -> None:
    options = pipeline_options([], [])
    assert options.view_as(StandardOptions).runner == "DirectRunner"
    assert "prism_disable_sdf_split" in experiments(options)


def test_a_server_that_does_not_tell_may_know_flags_that_we_do_not() -> None:
    with job_server({}) as address:
        flags = ["--runner=PortableRunner", f"--job_endpoint={address}", "--my_setting=3", "--max_bundle_time_mills=5"]
        assert pipeline_options(flags).view_as(StandardOptions).runner == "PortableRunner"
        slip = [*flags, "--max_bundle_time_millis=5"]
        assert refused(*slip) == "unknown flag --max_bundle_time_millis; did you mean --max_bundle_time_mills?"
    assert refused("--my_setting=3") == (
        "unknown argument --my_setting; `contbatch personalize --help` lists ours, Beam's are passed on"
    )


@pytest.mark.parametrize("given", ["", "example.com"])
def test_localhost_is_kept_away_from_a_proxy(given: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", given)
    pipeline_options([], [])
    assert set(os.environ["no_proxy"].split(",")) >= {"localhost", "127.0.0.1"} | ({given} - {""})


class TestPrism:
    @pytest.fixture(autouse=True)
    def nowhere(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        """No Prism in the environment, on the PATH or in Beam's cache."""
        monkeypatch.delenv("CONTBATCH_PRISM", raising=False)
        monkeypatch.setenv("PATH", str(tmp_path))
        monkeypatch.setattr(PrismJobServer, "BIN_CACHE", str(tmp_path / "cache"))

    def located(self, *flags: str) -> str:
        return pipeline_options(["--runner=PrismRunner", *flags]).view_as(PrismRunnerOptions).prism_location

    def test_its_flag_goes_before_the_environment_and_that_before_the_path(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        for name in ("flag", "environment", "prism"):
            (tmp_path / name).write_bytes(b"")
            (tmp_path / name).chmod(0o755)
        assert self.located() == shutil.which("prism") == str(tmp_path / "prism")
        monkeypatch.setenv("CONTBATCH_PRISM", str(tmp_path / "environment"))
        assert self.located() == str(tmp_path / "environment")
        assert self.located(f"--prism_location={tmp_path}/flag") == f"{tmp_path}/flag"

    def test_beams_cache_is_the_last_place(self, tmp_path: Path) -> None:
        server = PrismJobServer(PipelineOptions())
        cached = tmp_path / "cache" / os.path.basename(server.path_to_binary())
        cached.parent.mkdir()
        cached.write_bytes(b"not a zip, so the binary itself")
        assert self.located() == str(cached)

    def test_a_place_without_it_is_said_with_what_named_it(self, monkeypatch: pytest.MonkeyPatch) -> None:
        advice = f"give the path of the binary, or build it: {BUILD}"
        assert refused("--runner=PrismRunner", "--prism_location=/x") == (
            f"no Prism at /x, which --prism_location names; {advice}"
        )
        monkeypatch.setenv("CONTBATCH_PRISM", "/y")
        assert refused("--runner=PrismRunner") == f"no Prism at /y, which $CONTBATCH_PRISM names; {advice}"

    def test_offline_it_says_how_to_build_it(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def offline(_: str) -> None:
            raise URLError("no network")

        monkeypatch.setattr("apache_beam.runners.portability.prism_runner.urlopen", offline)
        assert refused("--runner=PrismRunner", "--streaming") == (
            "no Prism, neither in $CONTBATCH_PRISM nor on the PATH, and it cannot be downloaded (urlopen error no "
            f"network); build it with {BUILD}, and name the binary in $CONTBATCH_PRISM"
        )

    def test_one_that_runs_already_needs_no_binary(self) -> None:
        with job_server({}) as address:
            options = pipeline_options(["--runner=PrismRunner", f"--job_endpoint={address}"])
        assert {"prism_disable_sdf_split", "disable_prism_server_singleton"} <= experiments(options)


@pytest.mark.parametrize(
    ("flags", "seconds"), [([], 31_536_000), (["--job_server_timeout=7"], 7), (["--job-server-timeout=7"], 7)]
)
def test_a_job_may_run_longer_than_five_minutes(flags: list[str], seconds: int) -> None:
    assert pipeline_options(flags).view_as(PortableOptions).job_server_timeout == seconds


class TestFlink:
    LIVE = ("max_bundle_time_mills", "checkpointing_interval", "shutdown_sources_after_idle_ms")

    def test_a_live_job_has_short_bundles_and_checkpoints_and_keeps_its_sources(self, flink: list[str]) -> None:
        assert set_for(pipeline_options([*flink, "--streaming"]), *self.LIVE) == ["50", "5000", None]
        assert set_for(pipeline_options(flink, streaming=True), *self.LIVE) == ["50", "5000", None]

    def test_a_job_that_is_to_end_shuts_its_sources_down_and_has_no_checkpoints(self, flink: list[str]) -> None:
        assert set_for(pipeline_options(flink, streaming=True, ends=True), *self.LIVE) == ["50", None, "1000"]

    def test_a_batch_job_is_left_as_it_is_but_has_a_name(self, flink: list[str]) -> None:
        options = pipeline_options(flink)
        assert set_for(options, *self.LIVE) == [None] * 3
        assert not options.view_as(StandardOptions).streaming
        name = options.view_as(GoogleCloudOptions).job_name
        assert name.startswith("contbatch-")
        assert name != pipeline_options(flink).view_as(GoogleCloudOptions).job_name

    def test_what_was_given_stays(self, flink: list[str]) -> None:
        flags = ["--max_bundle_time_mills", "10", "--checkpointing_interval=700", "--job_name=mine"]
        options = pipeline_options([*flink, *flags], streaming=True)
        assert set_for(options, *self.LIVE, "job_name") == ["10", "700", None, "mine"]
        whole = "--finish_bundle_before_checkpointing"
        assert options._flags == [*flink, *flags, whole]
        assert pipeline_options([*flink, *flags, whole], streaming=True)._flags == [*flink, *flags, whole]
        flags = ["--shutdown_sources_after_idle_ms=-1"]
        assert set_for(pipeline_options([*flink, *flags], streaming=True, ends=True), *self.LIVE) == ["50", None, "-1"]

    def test_flink_runner_gets_the_same_where_no_server_can_be_asked(self) -> None:
        assert set_for(pipeline_options(["--runner=FlinkRunner"], streaming=True), *self.LIVE) == ["50", "5000", None]

    def test_another_servers_job_gets_none_of_it(self) -> None:
        with job_server({"my_setting": 0}) as address:
            options = pipeline_options(["--runner=PortableRunner", f"--job_endpoint={address}"], streaming=True)
        assert set_for(options, *self.LIVE, "job_name") == [None] * 4

    def test_flags_that_the_server_does_not_know_are_refused(self, flink: list[str]) -> None:
        address = flink[1].partition("=")[2]
        for flag, error in (
            ("--checkpoint_interval=9", "unknown flag --checkpoint_interval; did you mean --checkpointing_interval?"),
            ("--zzz=9", f"unknown argument --zzz: neither Beam nor the job server at {address} knows it"),
            ("--checkpointing_interval=soon", "argument --checkpointing_interval: invalid int value: 'soon'"),
            ("--object_reuse=true", "argument --object_reuse: ignored explicit argument 'true'"),
        ):
            assert refused(*flink, flag) == error

    def test_a_state_backend_and_a_place_for_checkpoints_come_together(self, flink: list[str]) -> None:
        assert refused(*flink, "--state_backend=rocksdb") == (
            "state_backend is rocksdb, and Flink's runner takes it only with a place for checkpoints; add "
            "--state_backend_storage_path=..., which every machine of the cluster can write"
        )
        assert refused(*flink, "--state_backend_storage_path=s3://x") == (
            "state_backend_storage_path is s3://x, which Flink's runner ignores without a backend; add "
            "--state_backend=filesystem, or rocksdb"
        )
        assert pipeline_options([*flink, "--state_backend=rocksdb", "--state_backend_storage_path=s3://x"])

    def test_a_pool_that_is_taken_is_refused_where_the_cluster_can_be_asked(self, flink: list[str]) -> None:
        pool = ["--environment_type=EXTERNAL", "--environment_config=localhost:50000"]
        with fake_flink() as cluster:
            cluster.add("live", pool="localhost:50000")
            assert "serves the job live" in refused(*flink, *pool, f"--flink_master={cluster.address}")
            with pytest.raises(UsageError, match="serves the job live"):
                pipeline_options([*flink, *pool], flink_rest=cluster.address)
            assert pipeline_options([*flink, *pool])


def test_an_endpoint_without_a_job_server_is_said_at_once() -> None:
    began = time.monotonic()
    assert refused("--runner=PortableRunner", "--job_endpoint=localhost:1") == (
        "no job server answers at localhost:1 ([Errno 111] Connection refused); start one, or give its address with "
        "--job_endpoint"
    )
    assert time.monotonic() - began < 2
    with fake_flink() as cluster:
        assert refused("--runner=PortableRunner", f"--job_endpoint={cluster.address}").startswith(
            f"what answers at {cluster.address} is no job server ("
        )
    assert refused("--runner=PortableRunner", "--job_endpoint=somewhere") == (
        "job_endpoint is somewhere; give host and port, as localhost:8099"
    )
    assert refused("--runner=PortableRunner") == (
        "PortableRunner needs the address of a job server; give --job_endpoint, as localhost:8099"
    )


def test_a_silent_endpoint_does_not_hang() -> None:
    """Somebody listens, and never says a word."""
    with socket.create_server(("localhost", 0)) as server:
        address = f"localhost:{server.getsockname()[1]}"
        began = time.monotonic()
        assert refused("--runner=PortableRunner", f"--job_endpoint={address}") == (
            f"what answers at {address} is no job server (DEADLINE_EXCEEDED); give the address of one with "
            "--job_endpoint"
        )
    assert time.monotonic() - began < 15


class TestDataflow:
    FLAGS = ("--runner=DataflowRunner", "--project=mine", "--region=there", "--temp_location=gs://bucket/tmp")

    @pytest.mark.parametrize("missing", [0, 1, 2])
    def test_what_is_missing_is_named(self, missing: int, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("CLOUDSDK_COMPUTE_REGION", raising=False)
        runner, *flags = self.FLAGS
        flag = flags.pop(missing).partition("=")[0]
        advice = "as --project=... --region=... --temp_location=gs://..."
        assert refused(runner, *flags) == f"DataflowRunner needs {flag}; {advice}"
        assert refused(runner) == f"DataflowRunner needs --project, --region, --temp_location; {advice}"

    def test_a_streaming_job_has_one_engine_on_a_machine(self) -> None:
        assert "no_use_multiple_sdk_containers" in experiments(pipeline_options(self.FLAGS, streaming=True))
        assert "no_use_multiple_sdk_containers" not in experiments(pipeline_options(self.FLAGS))
        several = [*self.FLAGS, "--streaming", "--experiments=use_multiple_sdk_containers"]
        assert "no_use_multiple_sdk_containers" not in experiments(pipeline_options(several))

    def test_without_its_packages_it_says_what_to_install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def absent(_: str) -> None:
            raise ImportError("not available")

        monkeypatch.setattr("contbatch.pipelines.options.create_runner", absent)
        assert refused(*self.FLAGS) == ("DataflowRunner is not installed; install it with `pip install contbatch[gcp]`")

    def test_flags_are_beams_alone(self) -> None:
        slip = [*self.FLAGS, "--temp_locaton=gs://x"]
        assert refused(*slip) == "unknown flag --temp_locaton; did you mean --temp_location?"
