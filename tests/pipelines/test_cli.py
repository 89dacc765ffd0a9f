"""The command, as a user meets it: quick help, one line of error, never a traceback."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from contbatch.pipelines.cli import main


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    program = [sys.executable, "-m", "contbatch.pipelines.cli", *arguments]
    return subprocess.run(program, capture_output=True, text=True, timeout=120, check=False)


def test_help_needs_no_beam_and_names_every_flag_of_ours() -> None:
    done = command("personalize", "--help")
    assert done.returncode == 0
    for flag in ("--out", "--dataset", "--data", "--max_size", "--max_delay", "--feedback_delay", "--ttl", "--seed"):
        assert flag in done.stdout
    assert "None" not in done.stdout
    assert "(default: movielens 5, flights as in the data)" in " ".join(done.stdout.split())


@pytest.mark.parametrize("arguments", [["personalize"], ["flink"], ["flink", "savepoint"], ["worker-pool"], ["models"]])
def test_help_imports_no_beam(arguments: list[str]) -> None:
    text = (
        "import sys\n"
        "from contbatch.pipelines.cli import main\n"
        "try:\n    main(sys.argv[1:])\n"
        "finally:\n    assert not {'apache_beam', 'numpy', 'grpc'} & {*sys.modules}\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", text, *arguments, "--help"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "usage: " in done.stdout


def test_a_pool_has_no_other_flags(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["worker-pool", "--prot=1"]) == 2
    assert capsys.readouterr().err == "contbatch: unknown argument --prot=1; see `contbatch worker-pool --help`\n"


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["persnalize"], r"invalid choice: 'persnalize' \(choose from .?personalize"),
        (["personalize", "--dataset=trains"], r"invalid choice: 'trains' \(choose from .?movielens"),
        (["personalize", "--max-delay=3"], r"unknown flag --max-delay; did you mean --max_delay\?"),
        (["personalize", "--runer=DirectRunner"], r"unknown flag --runer; did you mean --runner\?"),
        (["personalize", "--zzz"], r"unknown argument --zzz; `contbatch personalize --help` lists ours"),
        (["personalize", "fast"], "unknown argument fast"),
        (["personalize", "--max_size=many"], "argument --max_size: invalid int value: 'many'"),
        (["personalize", "--max_size=0"], "max_size is 0; give a whole number of elements, 1 or more"),
        (["personalize", "--max_delay=nan"], "max_delay is nan; give seconds, 0 or more, or math.inf"),
        (["personalize", "--feedback_delay=-1"], "feedback_delay is -1.0; give a finite number of seconds, 0 or more"),
        (["personalize", "--grace=-1"], "grace is -1.0; give seconds, 0 or more"),
        (["personalize", "--grace=nan"], "grace is nan; give seconds, 0 or more"),
        (
            ["personalize", "--runner=PortableRunner", "--job_endpoint=localhost:1"],
            r"no job server answers at localhost:1 \(\[Errno 111\] Connection refused\); start one, or give its addr",
        ),
        (["personalize", "--freeze=2"], "freeze is 2.0; give a share, 0 to 1"),
        (["personalize", "--ttl=1"], "ttl is 1.0 s; give at least the policy's max_delay, 5.0 s"),
        (["personalize", "--seed=-1"], "seed is -1; give 0 or more"),
        (["personalize", "--runner=FastRunner"], "unknown runner FastRunner"),
    ],
)
def test_what_cannot_be_done_is_one_line_and_exit_code_2(
    arguments: list[str], text: str, ratings: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if arguments[0] == "personalize":
        arguments = [*arguments, "--data", str(ratings), "--out", str(tmp_path / "out")]
    assert main(arguments) == 2
    captured = capsys.readouterr()
    errors = [line for line in captured.err.splitlines() if line.startswith("contbatch: ")]
    assert len(errors) == 1
    assert re.search(text, errors[0])
    assert "Traceback" not in captured.err


def test_a_missing_folder_says_which_file_it_looked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["personalize", "--data", str(tmp_path)]) == 2
    assert f"no file {tmp_path}/ml-100k.inter: give the folder that holds" in capsys.readouterr().err


def test_an_output_that_cannot_be_written_is_said_before_the_run(
    ratings: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    assert main(["personalize", "--data", str(ratings), "--out", str(blocked / "out")]) == 2
    assert f"cannot write to {blocked}/out" in capsys.readouterr().err


def test_a_job_that_breaks_is_one_line_with_the_details_in_a_file(
    ratings: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("contbatch.transforms.learning.store.ModelStore.publish", fail)
    assert main(["personalize", "--data", str(ratings), "--out", str(tmp_path / "out")]) == 1
    captured = capsys.readouterr()
    (error,) = [line for line in captured.err.splitlines() if line.startswith("contbatch: ")]
    assert "disk full" in error
    assert "Traceback" not in captured.err
    assert "Traceback" in (tmp_path / "out" / "error.log").read_text()


def test_without_a_command_it_prints_its_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    assert "personalize" in capsys.readouterr().out
