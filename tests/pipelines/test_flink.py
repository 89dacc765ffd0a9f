"""``contbatch flink`` and the pool check, against an invented cluster; ``tests/runners`` has a real one."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from apache_beam.options.pipeline_options import PipelineOptions

from contbatch.pipelines.cli import main
from contbatch.pipelines.errors import JobError, UsageError
from contbatch.pipelines.flink import Flink, reason, rest_address
from contbatch.pipelines.runner_flags import check_pool
from tests.pipelines.flink_server import FakeFlink, fake_flink
from tests.pipelines.job_server import job_server


@pytest.fixture
def flink() -> Iterator[FakeFlink]:
    with fake_flink() as server:
        yield server


def said(flink: FakeFlink, capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = main(["flink", *arguments, f"--flink_rest={flink.address}"])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_running_jobs_are_listed_the_latest_first(flink: FakeFlink, capsys: pytest.CaptureFixture[str]) -> None:
    assert said(flink, capsys, "list") == (0, f"no jobs on http://{flink.address}\n", "")
    old, done, new = flink.add("old"), flink.add("done", "FINISHED"), flink.add("new")
    code, out, _ = said(flink, capsys, "list")
    assert (code, [line.split()[0] for line in out.splitlines()]) == (0, [new, old])
    assert re.fullmatch(rf"{new}  RUNNING     \d{{4}}-\d\d-\d\d \d\d:\d\d:\d\d  new", out.splitlines()[0])
    _, out, _ = said(flink, capsys, "list", "--all")
    assert [line.split()[0] for line in out.splitlines()] == [new, done, old]


def test_a_job_is_found_by_id_by_its_beginning_and_by_name(flink: FakeFlink) -> None:
    gone, one, two = flink.add("mine", "FAILED"), flink.add("mine"), flink.add("other")
    cluster = Flink(flink.address)
    assert [cluster.find(given).id for given in (two, two[:8], "other", "mine")] == [two, two, two, one]
    assert cluster.find(gone).state == "FAILED"
    with pytest.raises(UsageError, match="no job 000 on"):  # too short to be the beginning of an id
        cluster.find("000")


def test_cancelling_is_waited_for(flink: FakeFlink, capsys: pytest.CaptureFixture[str]) -> None:
    job = flink.add("mine")
    assert said(flink, capsys, "cancel", "mine") == (0, f"mine ({job}) is CANCELED\n", "")
    text = f"contbatch: the job mine ({job}) is CANCELED and does not run; nothing was done\n"
    assert said(flink, capsys, "cancel", "mine") == (2, "", text)


def test_two_jobs_of_one_name_are_told_apart_by_id(flink: FakeFlink, capsys: pytest.CaptureFixture[str]) -> None:
    one, two = flink.add("mine"), flink.add("mine")
    text = f"contbatch: 2 jobs run as mine: {two}, {one}; give an id\n"
    assert said(flink, capsys, "cancel", "mine") == (2, "", text)
    assert set(flink.states.values()) == {"RUNNING"}


def test_a_savepoint_prints_where_it_is_and_how_to_go_on(flink: FakeFlink, capsys: pytest.CaptureFixture[str]) -> None:
    job = flink.add("mine")
    code, out, _ = said(flink, capsys, "savepoint", "mine", "--folder=s3://there")
    path = f"s3://there/savepoint-{job[:6]}"
    assert (code, out) == (0, f"{path}\nresume the same pipeline with --savepoint_path={path}\n")
    assert flink.asked == [{"cancel-job": False, "target-directory": "s3://there"}]
    assert flink.states[job] == "RUNNING"
    assert said(flink, capsys, "savepoint", "mine", "--folder=s3://there", "--cancel")[0] == 0
    assert flink.states[job] == "CANCELED"


def test_how_a_savepoint_goes_is_said_about_once_a_second(flink: FakeFlink, capsys: pytest.CaptureFixture[str]) -> None:
    flink.add("mine")
    flink.polls = 16  # at 0.1 s: 1.5 s
    _, _, err = said(flink, capsys, "savepoint", "mine", "--folder=s3://there")
    assert err == "savepoint of mine: 1 s\n"


def test_a_savepoint_that_fails_says_the_innermost_cause(flink: FakeFlink, capsys: pytest.CaptureFixture[str]) -> None:
    flink.add("mine")
    flink.savepoint = "fails"
    text = "contbatch: the savepoint of mine failed: java.io.IOException: disk full\n"
    assert said(flink, capsys, "savepoint", "mine", "--folder=s3://there") == (1, "", text)
    flink.savepoint = "hangs"
    text = "contbatch: the savepoint of mine was not complete in 0.2 s; the job goes on\n"
    assert said(flink, capsys, "savepoint", "mine", "--folder=s3://there", "--timeout=0.2") == (1, "", text)


def test_what_the_cluster_refuses_is_passed_on(flink: FakeFlink, capsys: pytest.CaptureFixture[str]) -> None:
    flink.add("mine")
    text = f"contbatch: http://{flink.address} has no state.savepoints.dir; give --folder, where it can write\n"
    assert said(flink, capsys, "savepoint", "mine") == (2, "", text)
    flink.savepoint = "refused"
    text = f"contbatch: Flink at http://{flink.address} says 500: c.D: inner\n"
    assert said(flink, capsys, "savepoint", "mine", "--folder=s3://x") == (1, "", text)
    with pytest.raises(JobError, match=r"says 404: Not found\.$"):
        Flink(flink.address)._call("GET", "/nothing")


def test_an_address_without_flink_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    advice = "give the REST address of its JobManager with --flink_rest\n"
    assert main(["flink", "list", "--flink_rest=localhost:1"]) == 2
    said = capsys.readouterr().err
    assert said == f"contbatch: no Flink answers at http://localhost:1 ([Errno 111] Connection refused); {advice}"
    with job_server({}) as address:
        assert main(["flink", "list", f"--flink_rest={address}"]) == 2
    assert capsys.readouterr().err == f"contbatch: what answers at http://{address} is not Flink; {advice}"
    assert main(["flink", "list", "--flink_rest=ftp://x"]) == 2
    assert capsys.readouterr().err == (
        "contbatch: the address of Flink is ftp://x; give one as localhost:8081 or https://flink.example\n"
    )


def test_a_slip_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["flink", "list", "--al"]) == 2
    assert capsys.readouterr().err == "contbatch: unknown argument --al; see `contbatch flink list --help`\n"
    assert main(["flink"]) == 2
    assert "the following arguments are required: COMMAND" in capsys.readouterr().err


def test_one_pool_serves_one_job(flink: FakeFlink) -> None:
    flink.add("over", "FINISHED", "localhost:50000")
    job = flink.add("live", pool="localhost:50000")
    cluster = Flink(flink.address)

    def options(*flags: str) -> PipelineOptions:
        return PipelineOptions([*flags])

    check_pool(options("--environment_type=EXTERNAL", "--environment_config=localhost:50001"), cluster)
    check_pool(options("--environment_type=LOOPBACK"), cluster)
    with pytest.raises(UsageError) as refused:
        check_pool(options("--environment_type=EXTERNAL", "--environment_config=localhost:50000"), cluster)
    assert str(refused.value) == (
        f"the pool of workers localhost:50000 serves the job live ({job}); start one for this job with "
        "`contbatch worker-pool --port=0`, and name it with --environment_config"
    )
    flink.states[job] = "CANCELED"
    check_pool(options("--environment_type=EXTERNAL", "--environment_config=localhost:50000"), cluster)


@pytest.mark.parametrize(
    ("given", "master", "found"),
    [(None, "[auto]", None), (None, "[local]", None), (None, "a:1", "a:1"), ("b:2", "a:1", "b:2"), (None, None, None)],
)
def test_the_master_is_where_rest_is(given: str | None, master: str | None, found: str | None) -> None:
    assert rest_address(given, master) == found


def test_the_innermost_cause_of_a_trace() -> None:
    assert reason("a.B: x\n\tat c\nCaused by: d.E: y\n\tat f\nCaused by: g.H: z\n\t... 2 more") == "g.H: z"
    assert reason("a.B: x\n\tat c") == "a.B: x"
    assert reason("") == ""
