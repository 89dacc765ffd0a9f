"""``contbatch flink`` on a real cluster: list, savepoint, resume, cancel; and SIGTERM to a job's own process."""

from __future__ import annotations

import re
import signal
import sys
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import apache_beam as beam
import pytest

from contbatch.pipelines.cli import main
from contbatch.pipelines.errors import UsageError
from contbatch.pipelines.options import pipeline_options
from contbatch.transforms import Event, Kind
from contbatch.transforms.io.replay import PacedReplay
from tests.runners.cluster import FlinkCluster
from tests.runners.processes import start, wait_for
from tests.runners.sink import FileSink

pytestmark = [pytest.mark.needs("javac", "mvn"), pytest.mark.slow]

COUNT, RATE = 30_000, 50.0
"""Ten minutes of events: no test waits for their end."""


def events() -> Iterable[Event]:
    return [Event(0, Kind.REQUEST, row, b"") for row in range(COUNT)]


def build(pipeline: beam.Pipeline, folder: Path) -> None:
    rows = pipeline | PacedReplay(events, COUNT, RATE) | "Rows" >> beam.Map(lambda event: event.row)
    _ = rows | beam.Reshuffle() | FileSink(folder)


@contextmanager
def job(flink: FlinkCluster, name: str, folder: Path, *more: str) -> Iterator[FileSink]:
    """A live job, which is there until it is ended by REST."""
    with flink.flags(f"--job_name={name}", *more) as flags:
        options = pipeline_options(flags, streaming=True, flink_rest=flink.address)
        pipeline = beam.Pipeline(options=options)
        build(pipeline, folder)
        pipeline.run()
        sink = FileSink(folder)
        wait_for("the first outputs", lambda: len(sink.read()) > 50, folder)
        yield sink


def said(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, list[str], list[str]]:
    """Return the exit code of a command, and the lines that it prints to the output and to the error output."""
    capsys.readouterr()
    code = main(["flink", *arguments])
    captured = capsys.readouterr()
    return code, captured.out.splitlines(), captured.err.splitlines()


def test_a_job_is_listed_moved_by_a_savepoint_and_cancelled(
    flink: FlinkCluster, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rest = f"--flink_rest={flink.address}"
    with job(flink, "moved", tmp_path / "first") as sink:
        one = flink.flink.find("moved")
        settings = flink.flink.settings(one.id)
        assert (settings["maxBundleTimeMills"], settings["checkpointingInterval"]) == ("50", "5000")
        code, listed, _ = said(capsys, "list", rest)
        assert code == 0
        assert [line for line in listed if re.fullmatch(rf"{one.id}  RUNNING     \S+ \S+  moved", line)]

        code, out, _ = said(capsys, "savepoint", "moved", "--cancel", f"--folder=file://{tmp_path}/savepoints", rest)
        path, advice = out
        assert code == 0
        assert path.startswith(f"file:{tmp_path}/savepoints/savepoint-{one.id[:6]}")
        assert advice == f"resume the same pipeline with --savepoint_path={path}"
        assert flink.flink.state(one.id) == "CANCELED"
        before = {*sink.read()}

    with job(flink, "resumed", tmp_path / "second", f"--savepoint_path={path}") as sink:
        code, out, _ = said(capsys, "cancel", flink.flink.find("resumed").id[:8], rest)
        assert code == 0
        assert re.fullmatch(r"resumed \([0-9a-f]{32}\) is CANCELED", out[0])
        after = {*sink.read()}
    assert min(after) > 50  # it did not begin anew
    assert before | after == {*range(max(after) + 1)}  # and nothing is missing between


def test_what_cannot_be_done_is_one_sentence(
    flink: FlinkCluster, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rest = f"--flink_rest={flink.address}"
    with job(flink, "stays", tmp_path / "out"):
        one = flink.flink.find("stays")
        assert said(capsys, "cancel", "absent", rest) == (
            2,
            [],
            [f"contbatch: no job absent on http://{flink.address}; running: stays ({one.id})"],
        )
        assert said(capsys, "savepoint", "stays", rest) == (
            2,
            [],
            [f"contbatch: http://{flink.address} has no state.savepoints.dir; give --folder, where it can write"],
        )
        code, _, (error,) = said(capsys, "savepoint", "stays", "--folder=file:///proc/none", rest)
        assert code == 1
        assert error.startswith("contbatch: the savepoint of stays failed: ")
        assert flink.flink.state(one.id) == "RUNNING"
        assert said(capsys, "cancel", "stays", rest)[0] == 0
        assert said(capsys, "cancel", "stays", rest) == (
            2,
            [],
            [f"contbatch: the job stays ({one.id}) is CANCELED and does not run; nothing was done"],
        )


def test_a_pool_that_serves_a_running_job_is_refused_to_another(flink: FlinkCluster, tmp_path: Path) -> None:
    with job(flink, "first", tmp_path / "out"):
        cluster = flink.flink
        one = cluster.find("first")
        pool = cluster.settings(one.id)["environmentConfig"]
        with flink.flags() as flags:
            others = [flag for flag in flags if not flag.startswith("--environment_config=")]
            assert pipeline_options(flags, streaming=True, flink_rest=flink.address)
            with pytest.raises(UsageError) as refused:
                pipeline_options([*others, f"--environment_config={pool}"], flink_rest=flink.address)
        assert str(refused.value) == (
            f"the pool of workers {pool} serves the job first ({one.id}); start one for this job with "
            "`contbatch worker-pool --port=0`, and name it with --environment_config"
        )
        cluster.cancel(one)


def test_flags_are_those_of_the_job_server(flink: FlinkCluster) -> None:
    with flink.flags() as flags:
        for flag, error in (
            (
                "--max_bundle_time_millis=50",
                "unknown flag --max_bundle_time_millis; did you mean --max_bundle_time_mills?",
            ),
            ("--checkpoint_interval=50", "unknown flag --checkpoint_interval; did you mean --checkpointing_interval?"),
            (
                "--zzz=1",
                f"unknown argument --zzz: neither Beam nor the job server at localhost:{flink.jobs} knows it",
            ),
            (
                "--max_bundle_time_mills=fast",
                "argument --max_bundle_time_mills: invalid int value: 'fast'",
            ),
        ):
            with pytest.raises(UsageError) as refused:
                pipeline_options([*flags, flag])
            assert str(refused.value) == error


@pytest.mark.parametrize("known", [True, False], ids=["REST address given", "no REST address"])
def test_sigterm_to_the_process_of_a_job(flink: FlinkCluster, tmp_path: Path, known: bool) -> None:
    """A library user's program: the job is cancelled in the cluster, or it is said how to do that."""
    cluster = flink.flink
    with ExitStack() as stack:
        flags = stack.enter_context(flink.flags(f"--job_name=program-{known}"))
        if not known:
            flags = [flag for flag in flags if not flag.startswith("--flink_master=")]
        command = [sys.executable, "-m", "tests.runners.test_flink_commands", str(tmp_path), *flags]
        process = start("program", command, tmp_path, stack)
        sink = FileSink(tmp_path / "out")
        wait_for("the first output", sink.read, tmp_path)
        process.send_signal(signal.SIGTERM)
        process.wait(60)
        one = cluster.find(f"program-{known}")
        log = (tmp_path / "program.log").read_text()
        if known:
            assert "stopped by SIGTERM; the job was cancelled: its output is incomplete" in log
            assert cluster.state(one.id) == "CANCELED"
        else:
            assert (
                "stopped by SIGTERM; the job runs on: cancel it with `contbatch flink cancel program-False "
                "--flink_rest=...`"
            ) in log
            assert cluster.state(one.id) == "RUNNING"
            cluster.cancel(one)


def program(folder: str, *flags: str) -> None:
    """Run the job as its own process."""
    from contbatch.pipelines.stopping import run_until_stopped

    pipeline = beam.Pipeline(options=pipeline_options(flags, streaming=True))
    build(pipeline, Path(folder) / "out")
    run_until_stopped(pipeline)


if __name__ == "__main__":
    program(*sys.argv[1:])
