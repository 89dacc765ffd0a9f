"""``contbatch models``, as an operator meets it: a store filled by hand, a command, what it prints and what serves."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from contbatch.pipelines.cli import main
from contbatch.pipelines.model_diff import Change, Slots, compare
from contbatch.transforms import ModelStore

DAY = 86_400_000_000
WEIGHTS = {"w": np.array([3.0, 4.0])}

Capture = pytest.CaptureFixture[str]


def publish(store: ModelStore, step: int, arrays: dict[str, Any] | None = None, model: str = "", **about: Any) -> Any:
    """The parent of 0.n is 0.n-1; 10 examples an update; the last event is n days after 1970-01-01."""
    given = {
        "epoch": 0,
        "parent": f"0.{step - 1}" if step > 1 else None,
        "examples": 10 * step,
        "loss": 0.5,
        "time": step * DAY,
        "config": {},
        "metrics": {"log_loss": 0.25, "auc": 0.75},
        **about,
    }
    return store.publish(WEIGHTS if arrays is None else arrays, model=model, step=step, **given)


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    """Versions 0.1, 0.2 and 0.3 of the model ""."""
    store = ModelStore(str(tmp_path))
    for step in (1, 2, 3):
        publish(store, step)
    return store


def models(action: str, *arguments: str, store: Path, code: int = 0) -> None:
    assert main(["models", action, *arguments, f"--store={store}"]) == code


def listed(store: Path, capsys: Capture, *arguments: str) -> dict[str, tuple[str, str]]:
    """The state of each version, and why, newest first."""
    capsys.readouterr()
    models("list", "--json", *arguments, store=store)
    return {row["version"]: (row["state"], row["why"]) for row in json.loads(capsys.readouterr().out)}


def serving(store: ModelStore, model: str = "") -> str | None:
    return next((manifest.version for manifest in store.newest(model)), None)


def cells(text: str) -> list[list[str]]:
    """The rows of the tables in a text."""
    return [[cell.strip() for cell in line.strip("│┃").split("│")] for line in text.splitlines() if "│" in line]


def spoil(root: Path, version: int, file: str = "weights.safetensors") -> Path:
    (path,) = root.glob(f"models/*/000000-{version:012d}/{file}")
    path.write_bytes(path.read_bytes()[:-1])
    return path


def test_help_imports_neither_beam_nor_numpy() -> None:
    program = (
        "import sys; from contbatch.pipelines.cli import main\n"
        "try: main(['models', 'rollback', '--help'])\n"
        "finally: print([name for name in ('apache_beam', 'numpy', 'rich') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False)
    assert "--reason" in done.stdout
    assert "None" not in done.stdout
    assert done.stdout.endswith("[]\n")


def test_list_shows_a_row_per_version_newest_first(store: ModelStore, tmp_path: Path, capsys: Capture) -> None:
    publish(store, 4, gate="kept: loss 0.2 against 0.3", metrics={"log_loss": 0.125, "auc": None})
    written = time.time() - 3 * 3600
    for path in tmp_path.glob("models/*/*/manifest.json"):
        os.utime(path, (written, written))
    models("list", store=tmp_path)
    rows = cells(capsys.readouterr().out)
    size = f"{len((next(tmp_path.glob('models/*/*/weights.safetensors'))).read_bytes())} B"
    assert rows[0] == [
        *("0.4", "0.3", "serves", "40", "1970-01-01 00:00:00 to 1970-01-05 00:00:00", "0.1250", "-"),
        *("kept: loss 0.2 against 0.3", size, "3 h"),
    ]
    assert [row[:4] for row in rows[1:]] == [
        ["0.3", "0.2", "counts", "30"],
        ["0.2", "0.1", "counts", "20"],
        ["0.1", "-", "counts", "10"],
    ]


def test_list_says_why_a_version_does_not_count(store: ModelStore, tmp_path: Path, capsys: Capture) -> None:
    publish(store, 4)
    store.restore("0.2", "it drifted")
    store.withdraw("0.2", "wrong data")
    spoil(tmp_path, 3, "manifest.json")
    assert listed(tmp_path, capsys) == {
        "0.4": ("restored", "to 0.2: it drifted"),
        "0.3": ("unreadable", "its manifest.json is torn, or of another version"),
        "0.2": ("withdrawn", "wrong data"),
        "0.1": ("serves", ""),
    }
    models("list", store=tmp_path)
    assert "restored to 0.2: it drifted" in capsys.readouterr().out


def test_the_last_restore_is_the_reason(store: ModelStore, tmp_path: Path, capsys: Capture) -> None:
    store.restore("0.2", "one")
    store.restore("0.3", "two")
    store.restore("0.1", "three")
    assert listed(tmp_path, capsys) == {
        "0.3": ("restored", "to 0.1: three"),
        "0.2": ("restored", "to 0.1: three"),
        "0.1": ("serves", ""),
    }


def test_list_reads_weights_when_asked(store: ModelStore, tmp_path: Path, capsys: Capture) -> None:
    path = spoil(tmp_path, 3)
    assert listed(tmp_path, capsys)["0.3"] == ("serves", "")
    found = listed(tmp_path, capsys, "--verify")
    assert found["0.3"][0] == "damaged"
    assert found["0.3"][1].startswith(f"{path} does not have the digest ")
    assert found["0.2"] == ("serves", "")


def test_list_shows_all_models_or_one(store: ModelStore, tmp_path: Path, capsys: Capture) -> None:
    publish(store, 9, model="[b]a/b")
    models("list", store=tmp_path)
    out = capsys.readouterr().out
    assert f"Model (unnamed) in {tmp_path}" in out
    assert f"Model [b]a/b in {tmp_path}" in out
    assert list(listed(tmp_path, capsys, "--model=[b]a/b")) == ["0.9"]
    assert list(listed(tmp_path, capsys, "--model=")) == ["0.3", "0.2", "0.1"]


def test_a_copy_of_a_version_is_none(store: ModelStore, tmp_path: Path, capsys: Capture) -> None:
    (folder,) = tmp_path.glob("models/*/*-000000000003")
    for name in ("000000-000000000003.bak", "0-3"):
        shutil.copytree(folder, folder.parent / name)
    models("list", store=tmp_path)
    assert [row[0] for row in cells(capsys.readouterr().out)] == ["0.3", "0.2", "0.1"]


def test_json_holds_no_nan(store: ModelStore, tmp_path: Path, capsys: Capture) -> None:
    publish(store, 4, loss=float("nan"))
    models("list", "--json", store=tmp_path)
    row = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)[0]
    assert row["loss"] is None
    assert (row["model"], row["last_event"]) == ("", "1970-01-05T00:00:00+00:00")
    assert row["metrics"] == {"log_loss": 0.25, "auc": 0.75}


def test_show_is_the_whole_manifest(store: ModelStore, tmp_path: Path, capsys: Capture) -> None:
    manifest = publish(
        store,
        4,
        weight=41.5,
        gate="kept",
        config={"learner": "SparseLearner(bits=18)"},
        batch_sizes={"16-31": 1, "2-3": 4},
        staleness={"0": 40},
    )
    models("show", "0.4", store=tmp_path)
    out = capsys.readouterr().out
    fields = {row[0]: row[1] for row in cells(out) if len(row) == 2}
    published = fields.pop("published (UTC)")
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d, \d+ s ago", published)
    assert re.fullmatch(r"\d+ B", fields.pop("weights"))
    assert fields == {
        "state": "serves",
        "model": "(unnamed)",
        "parent": "0.3",
        "lineage": "0.4 < 0.3 < 0.2 < 0.1 (root)",
        "examples": "40",
        "importance weight": "41.5",
        "event time (UTC)": "1970-01-01 00:00:00 to 1970-01-05 00:00:00",
        "log loss, all examples": "0.5000",
        "auc, since the parent": "0.7500",
        "log_loss, since the parent": "0.2500",
        "gate": "kept",
        "config: learner": "SparseLearner(bits=18)",
        "digest": f"{manifest.digest} (verified against the weights file)",
    }
    histograms = [row for row in cells(out) if len(row) == 3]
    assert histograms == [["2-3", "4", "█" * 40], ["16-31", "1", "█" * 10], ["0", "40", "█" * 40]]
    assert "Restores" not in out


def test_show_says_that_weights_are_damaged(store: ModelStore, tmp_path: Path, capsys: Capture) -> None:
    path = spoil(tmp_path, 2)
    models("show", "0.2", store=tmp_path)
    out = capsys.readouterr().out
    assert "(DAMAGED, see state)" in out
    assert f"damaged: {path} does not have" in out.replace("\n", "")
    path.unlink()
    models("show", "0.2", "--json", store=tmp_path)
    shown = json.loads(capsys.readouterr().out)
    assert (shown["verified"], shown["bytes"]) == (False, None)
    assert "no weights at" in shown["why"]


def test_show_tells_the_restores_that_touch_a_version(store: ModelStore, tmp_path: Path, capsys: Capture) -> None:
    store.restore("0.1", "one")
    store.restore("0.3", "two")
    models("show", "0.2", store=tmp_path)
    assert ["0.1", "1", "no longer counts", "one"] in cells(capsys.readouterr().out)
    models("show", "0.3", store=tmp_path)
    rows = cells(capsys.readouterr().out)
    assert rows[-2:] == [["0.1", "1", "no longer counts", "one"], ["0.3", "2", "serves again", "two"]]
    models("show", "0.2", "--json", store=tmp_path)
    assert json.loads(capsys.readouterr().out)["restores"] == [{"ended": 1, "target": "0.1", "reason": "one"}]


@pytest.mark.parametrize(
    ("parent", "lineage", "end"),
    [
        (None, ["0.4"], "root"),
        ("0.2", ["0.4", "0.2", "0.1"], "root"),
        ("0.0", ["0.4", "0.0"], "missing"),
        ("0.4", ["0.4", "0.4"], "loop"),
    ],
)
def test_lineage_ends_at_the_root_or_where_a_version_is_missing(
    parent: str | None, lineage: list[str], end: str, store: ModelStore, tmp_path: Path, capsys: Capture
) -> None:
    publish(store, 4, parent=parent)
    models("show", "0.4", "--json", store=tmp_path)
    shown = json.loads(capsys.readouterr().out)
    assert (shown["lineage"], shown["lineage_end"]) == (lineage, end)


def test_a_long_lineage_is_cut_in_the_middle(store: ModelStore, tmp_path: Path, capsys: Capture) -> None:
    for step in range(4, 21):
        publish(store, step)
    models("show", "0.20", store=tmp_path)
    assert "0.16 < 0.15 < ... 8 more ... < 0.6 < 0.5" in capsys.readouterr().out


def test_diff_puts_manifests_side_by_side(store: ModelStore, tmp_path: Path, capsys: Capture) -> None:
    publish(store, 4, {"w": np.array([3.0, 5.0])}, config={"learner": "new"}, metrics={"log_loss": 0.5, "auc": None})
    models("diff", "0.2", "0.4", store=tmp_path)
    rows = cells(capsys.readouterr().out)
    assert ["examples", "20", "40", "+20"] in rows
    assert ["log_loss, since the parent", "0.250000", "0.500000", "+0.250000"] in rows
    assert ["auc, since the parent", "0.750000", "-", "-"] in rows
    assert ["last event (UTC)", "1970-01-03 00:00:00", "1970-01-05 00:00:00", "+172,800 s"] in rows
    assert ["config: learner", "-", "new", ""] in rows
    # (3, 4) to (3, 5): one of two entries, by 1; the norm of the change is 1, that of A is 5.
    assert rows[-1] == ["w", "(2,)", "50.00%", "1", "0.5", "0.2"]


def test_diff_aligns_rows_by_slot(store: ModelStore, tmp_path: Path, capsys: Capture) -> None:
    a = {"slots": np.array([2, 5, 7]), "weights": np.array([[1.0, 1], [2, 2], [3, 4]]), "refused": np.array(0)}
    b = {
        "slots": np.array([5, 7, 8, 9]),
        "weights": np.array([[2.0, 2], [3, 1], [9, 9], [9, 9]]),
        "refused": np.array(0),
    }
    assert compare(a, b) == (
        Slots(common=2, added=2, removed=1),
        [
            Change("refused", (), (), 0.0, 0.0, 0.0, 0.0),
            # Slots 5 and 7: (2, 2) stays, (3, 4) becomes (3, 1); |A|^2 = 4 + 4 + 9 + 16 = 33.
            Change("weights", (3, 2), (4, 2), 0.25, 3.0, 0.75, 3 / 33**0.5),
        ],
    )
    publish(store, 4, a)
    publish(store, 5, b)
    models("diff", "0.4", "0.5", store=tmp_path)
    out = capsys.readouterr().out
    assert "rows by slot: 2 in both, 2 added, 1 removed" in out
    assert cells(out)[-1] == ["weights", "(3, 2) to (4, 2)", "25.00%", "3", "0.75", "0.5222"]


def test_arrays_that_cannot_be_compared_are_named() -> None:
    a = {"old": np.zeros(2), "w": np.zeros((2, 3)), "zero": np.zeros(1), "nan": np.array([np.nan, 1.0])}
    b = {"new": np.zeros(2), "w": np.zeros((2, 4)), "zero": np.ones(1), "nan": np.array([np.nan, 1.0])}
    assert compare(a, b) == (
        None,
        [
            Change("nan", (2,), (2,), 0.0, 0.0, 0.0, 0.0),
            Change("new", None, (2,)),
            Change("old", (2,), None),
            Change("w", (2, 3), (2, 4)),
            Change("zero", (1,), (1,), 1.0, 1.0, 1.0, np.inf),
        ],
    )


def test_rollback_goes_to_the_version_before(store: ModelStore, tmp_path: Path, capsys: Capture) -> None:
    models("rollback", "--reason=it drifted", store=tmp_path)
    assert serving(store) == "0.2"
    out = capsys.readouterr().out
    assert out.startswith("version 0.3 served until now; from now on version 0.2 serves (it drifted).")
    assert "running trainer goes on from it at its next look" in out
    assert f"Undo: contbatch models promote 0.3 --store={tmp_path}\n" in out
    assert listed(tmp_path, capsys)["0.3"] == ("restored", "to 0.2: it drifted")


def test_the_command_that_undoes_a_rollback_does(store: ModelStore, tmp_path: Path, capsys: Capture) -> None:
    publish(store, 1, model="my model")
    publish(store, 2, model="my model")
    for undone in (["rollback"], ["rollback", "0.0"], ["promote", "0.1"]):
        assert main(["models", *undone, "--model=my model", f"--store={tmp_path}"]) == 0
        assert serving(store, "my model") != "0.2"
        undo = capsys.readouterr().out.splitlines()[-1]
        assert undo == f"Undo: contbatch models promote 0.2 '--model=my model' --store={tmp_path}"
        assert main(["models", "promote", "0.2", f"--store={tmp_path}", "--model=my model"]) == 0
        assert serving(store, "my model") == "0.2"
        capsys.readouterr()
    assert serving(store) == "0.3"


def test_all_learning_can_be_rolled_back(store: ModelStore, tmp_path: Path, capsys: Capture) -> None:
    models("rollback", "0.0", store=tmp_path)
    assert serving(store) is None
    assert "from now on no version serves" in capsys.readouterr().out
    models("promote", "0.2", store=tmp_path)
    assert serving(store) == "0.2"
    out = capsys.readouterr().out
    assert out.startswith("no version served until now")
    assert "Undo: contbatch models rollback 0.0" in out


def test_what_serves_already_is_left_alone(store: ModelStore, tmp_path: Path, capsys: Capture) -> None:
    for action in ("rollback", "promote"):
        models(action, "0.3", store=tmp_path)
        assert capsys.readouterr().out == "version 0.3 serves already; nothing changes\n"
    assert store.restores() == []


def test_promote_readmits_what_was_withdrawn(store: ModelStore, tmp_path: Path, capsys: Capture) -> None:
    store.withdraw("0.3", "worse")
    store.withdraw("0.2", "worse")
    for version in ("0.2", "0.3"):
        models("promote", version, store=tmp_path)
        assert serving(store) == version
        assert f"from now on version {version} serves (by hand)" in capsys.readouterr().out
    assert not [*tmp_path.rglob("withdrawn.json")]


def test_a_trainer_goes_on_from_what_was_chosen(store: ModelStore, tmp_path: Path) -> None:
    models("rollback", store=tmp_path)
    publish(store, 4)  # by a trainer that has not looked yet
    assert serving(store) == "0.2"
    publish(store, 3, epoch=store.restores()[-1].ended + 1, parent="0.2")
    assert serving(store) == "2.3"


@pytest.mark.parametrize("action", ["rollback", "promote"])
def test_damaged_weights_are_not_let_serve(action: str, store: ModelStore, tmp_path: Path, capsys: Capture) -> None:
    spoil(tmp_path, 1)
    store.withdraw("0.2", "worse")
    models(action, "0.1", store=tmp_path, code=2)
    assert "version 0.1 cannot be read: " in capsys.readouterr().err
    spoil(tmp_path, 2)
    models("promote", "0.2", store=tmp_path, code=2)
    assert serving(store) == "0.3"
    assert store.restores() == []
    assert [*tmp_path.rglob("withdrawn.json")]


@given(
    steps=st.lists(
        st.tuples(st.sampled_from(["rollback", "promote", "publish", "withdraw"]), st.integers(1, 4)), max_size=6
    )
)
@settings(max_examples=15)
def test_what_was_chosen_last_is_what_serves(steps: list[tuple[str, int]]) -> None:
    with TemporaryDirectory() as folder:
        store = ModelStore(folder)
        for step in (1, 2, 3, 4):
            publish(store, step)
        for action, which in steps:
            known = [manifest.version for manifest in store.history()]
            before, version = serving(store), known[which % len(known)]
            if action == "publish":
                publish(store, which, epoch=max([0, *(restore.ended + 1 for restore in store.restores())]))
            elif action == "withdraw":
                if version in [manifest.version for manifest in store.newest()]:
                    store.withdraw(version, "worse")
            elif main(["models", action, version, f"--store={folder}"]) == 0:
                assert serving(store) == version
            else:
                assert action == "rollback"  # a version can always be promoted
                assert serving(store) == before


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["show", "0.33"], r"no version 0\.33 of model '' in \S+; close to it: 0\.3$"),
        (["show", "x"], r"no version x of model '' in \S+; the newest: 0\.3, 0\.2, 0\.1$"),
        (["diff", "0.1", "0.33"], r"no version 0\.33 "),
        (["promote", "0.33"], r"no version 0\.33 "),
        (["rollback", "0.33"], r"no version 0\.33 "),
        (["list", "--model=b"], r"no model 'b' in \S+; give --model, one of ''$"),
        (["list", "--verfy"], r"unknown argument --verfy; see `contbatch models list --help`$"),
        (["rollback", "0.2", "0.1"], r"unknown argument 0\.1; see"),
        (["remove"], r"invalid choice: 'remove'"),
        ([], r"the following arguments are required: ACTION; see `contbatch models --help`$"),
    ],
)
def test_what_cannot_be_done_is_one_line_and_exit_code_2(
    arguments: list[str], text: str, store: ModelStore, tmp_path: Path, capsys: Capture
) -> None:
    where = [f"--store={tmp_path}"] if arguments and arguments != ["remove"] else []
    assert main(["models", *arguments, *where]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    assert re.search(f"^contbatch: .*{text}", line)
    assert store.restores() == []


@pytest.mark.parametrize("root", ["missing", "nowhere://bucket"])
def test_no_store_is_said(root: str, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["models", "list", f"--store={root}"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert root in line


def test_a_store_that_cannot_be_written_is_said(store: ModelStore, tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "models" / "model-" / "restores").write_text("in the way")
    models("rollback", store=tmp_path, code=2)
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(r"^contbatch: .*restores", line)
    assert serving(store) == "0.3"


def test_several_models_want_a_name(store: ModelStore, tmp_path: Path, capsys: Capture) -> None:
    publish(store, 1, model="b")
    models("rollback", store=tmp_path, code=2)
    assert "several models" in (err := capsys.readouterr().err)
    assert "give --model, one of '', 'b'" in err


def test_nothing_to_roll_back_to_is_said(store: ModelStore, tmp_path: Path, capsys: Capture) -> None:
    store.restore("0.1", "worse")
    models("rollback", store=tmp_path, code=2)
    assert "nothing to roll back to: only 0.1 counts" in capsys.readouterr().err
    store.restore("0.0", "worse")
    models("rollback", store=tmp_path, code=2)
    assert "nothing to roll back to: no version counts" in capsys.readouterr().err


def test_rollback_to_what_promote_is_for_says_so(store: ModelStore, tmp_path: Path, capsys: Capture) -> None:
    store.restore("0.2", "worse")
    models("rollback", "0.3", store=tmp_path, code=2)
    err = capsys.readouterr().err
    assert f"is not older than 0.2, which serves; `contbatch models promote 0.3 --store={tmp_path}` lets it" in err
    store.withdraw("0.1", "worse")
    models("rollback", "0.1", store=tmp_path, code=2)
    assert "version 0.1 is withdrawn; `contbatch models promote 0.1" in capsys.readouterr().err


@pytest.fixture
def snapshots(store: ModelStore, tmp_path: Path) -> tuple[str, str]:
    """One that was replaced two days ago, five days after it was written, and the one in its place."""
    old, new = (store.write_snapshot({"w": np.array([number])}) for number in (1, 2))
    store.snapshots.replace(old, new)
    for digest, file, days in ((old, "safetensors", 7), (old, "replaced", 2), (new, "safetensors", 3)):
        at = time.time() - days * 86_400 - 60
        os.utime(tmp_path / "snapshots" / f"{digest}.{file}", (at, at))
    return old, new


def test_snapshots_are_listed_with_what_will_become_of_them(
    snapshots: tuple[str, str], tmp_path: Path, capsys: Capture
) -> None:
    old, new = snapshots
    size = f"{(tmp_path / 'snapshots' / f'{old}.safetensors').stat().st_size} B"
    models("snapshots", store=tmp_path)
    assert cells(capsys.readouterr().out) == [
        [new, size, "3 d", "-", "-", "-"],
        [old, size, "7 d", "2 d ago", "in 5 d", "-"],
    ]
    models("pin", "before-upgrade", store=tmp_path)
    models("snapshots", store=tmp_path)
    assert cells(capsys.readouterr().out) == [
        [new, size, "3 d", "-", "-", "before-upgrade"],
        [old, size, "7 d", "2 d ago", "when unpinned", "before-upgrade"],
        ["before-upgrade", "0 s", "2", "0"],
    ]
    models("snapshots", "--json", store=tmp_path)
    content = json.loads(capsys.readouterr().out)
    assert {one["digest"]: one["replaced"] is None for one in content["snapshots"]} == {old: False, new: True}
    assert [(pin["name"], set(pin["snapshots"])) for pin in content["pins"]] == [("before-upgrade", {old, new})]


def test_the_listing_says_what_is_pinned(snapshots: tuple[str, str], tmp_path: Path, capsys: Capture) -> None:
    models("list", store=tmp_path)
    assert "Snapshots: 2, none pinned; `contbatch models snapshots` lists them" in capsys.readouterr().out
    models("pin", "before-upgrade", store=tmp_path)
    models("list", store=tmp_path)
    assert "Snapshots: 2, pinned by before-upgrade;" in capsys.readouterr().out


def test_a_pin_says_how_it_is_undone(
    store: ModelStore, snapshots: tuple[str, str], tmp_path: Path, capsys: Capture
) -> None:
    models("pin", "before-upgrade", store=tmp_path)
    out = capsys.readouterr().out
    assert "Pin before-upgrade keeps 2 snapshots: a savepoint that was taken until now can be restored" in out
    assert f"Undo: contbatch models unpin before-upgrade --store={tmp_path}" in out
    models("unpin", "before-upgrade", store=tmp_path)
    assert "Pin before-upgrade is gone; of its 2 snapshots those go" in capsys.readouterr().out
    assert store.snapshots.pins() == []


def test_pins_that_cannot_be_are_refused(snapshots: tuple[str, str], tmp_path: Path, capsys: Capture) -> None:
    models("unpin", "mine", store=tmp_path, code=2)
    assert "no pin 'mine'" in capsys.readouterr().err
    models("pin", "mine", store=tmp_path)
    models("pin", "mine", store=tmp_path, code=2)
    assert "the name 'mine' is in use" in capsys.readouterr().err
