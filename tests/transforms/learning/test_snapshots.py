"""Which snapshots stay: hand-made stores whose files are as old as they are said to be."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from contbatch.transforms import ModelStore
from contbatch.transforms.learning import StoreError
from contbatch.transforms.learning.snapshots import PRUNE_EVERY, PinError

DAY = 86_400.0
NOW = 1_800_000_000.0


class Bench:
    """A store whose files' times are set by hand."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.store = ModelStore(str(folder))
        self.snapshots = self.store.snapshots

    def write(self, number: int) -> str:
        return self.store.write_snapshot({"w": np.array([number])})

    def age(self, days: float, *names: str) -> None:
        for name in names:
            os.utime(self.folder / "snapshots" / name, (NOW - days * DAY, NOW - days * DAY))

    def retired(self, number: int, days: float) -> str:
        """A snapshot that was written 100 days ago and replaced so many days ago."""
        digest = self.write(number)
        self.snapshots.retire(digest)
        self.age(100, f"{digest}.safetensors")
        self.age(days, f"{digest}.replaced")
        return digest

    def left(self) -> set[str]:
        return {one.digest for one in self.snapshots.all()}


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def test_a_snapshot_goes_seven_days_after_it_was_replaced(bench: Bench) -> None:
    """However old it is itself: a checkpoint of yesterday may name it."""
    recent, old = bench.retired(1, 6.9), bench.retired(2, 7.1)
    assert bench.snapshots.prune(NOW) == [old]
    assert bench.left() == {recent}
    assert sorted(path.name for path in (bench.folder / "snapshots").iterdir()) == [
        f"{recent}.replaced",
        f"{recent}.safetensors",
    ]
    assert bench.snapshots.prune(NOW, retain=6.8 * DAY) == [recent]


def test_what_nothing_has_replaced_stays(bench: Bench) -> None:
    """A model may learn nothing for months, and its state still names its last snapshot."""
    digest = bench.write(1)
    bench.age(1000, f"{digest}.safetensors")
    assert bench.snapshots.prune(NOW) == []
    assert bench.left() == {digest}


def test_what_is_read_is_in_use_again(bench: Bench) -> None:
    """A job was restored from a checkpoint before the replacement, and may stay at this snapshot for long."""
    digest = bench.retired(1, 6)
    assert bench.store.read_snapshot(digest)["w"].tolist() == [1]
    assert bench.snapshots.prune(NOW + 100 * DAY) == []
    assert bench.left() == {digest}


def test_what_is_written_again_is_in_use_again(bench: Bench) -> None:
    digest = bench.retired(1, 30)
    assert bench.write(1) == digest
    assert bench.snapshots.prune(NOW) == []


def test_a_pinned_snapshot_stays_until_it_is_unpinned(bench: Bench) -> None:
    digest = bench.retired(1, 5)
    pin = bench.snapshots.pin("before/upgrade")
    assert pin.snapshots == (digest,)
    later = bench.retired(2, 5)
    assert bench.snapshots.prune(NOW + 100 * DAY) == [later]
    assert [(one.digest, one.pins) for one in bench.snapshots.all()] == [(digest, ("before/upgrade",))]
    bench.snapshots.pin("another")
    assert bench.snapshots.unpin("before/upgrade") == pin
    assert bench.snapshots.prune(NOW + 100 * DAY) == []
    bench.snapshots.unpin("another")
    assert bench.snapshots.prune(NOW + 100 * DAY) == [digest]


def test_nothing_is_deleted_while_a_pin_cannot_be_read(bench: Bench) -> None:
    digest = bench.retired(1, 30)
    bench.snapshots.pin("mine")
    (bench.folder / "pins" / "mine.json").write_text("{")
    with pytest.raises(PinError, match=r"mine\.json is no pin that can be read; remove it"):
        bench.snapshots.prune(NOW)
    bench.snapshots.tidy(NOW)
    assert (bench.folder / "snapshots" / f"{digest}.safetensors").exists()


@pytest.mark.parametrize(
    ("name", "text"), [("mine", "the name 'mine' is in use; give another"), ("", "the name '' is empty; give another")]
)
def test_a_pin_needs_a_name_of_its_own(bench: Bench, name: str, text: str) -> None:
    bench.write(1)
    bench.snapshots.pin("mine")
    with pytest.raises(PinError, match=text):
        bench.snapshots.pin(name)


def test_a_pin_of_nothing_and_one_that_is_not_there_are_refused(bench: Bench) -> None:
    with pytest.raises(PinError, match="has no snapshot to pin"):
        bench.snapshots.pin("mine")
    with pytest.raises(PinError, match=r"no pin 'mine' in .*; there is none"):
        bench.snapshots.unpin("mine")
    bench.write(1)
    bench.snapshots.pin("yours")
    with pytest.raises(PinError, match=r"no pin 'mine' in .*; one of 'yours'"):
        bench.snapshots.unpin("mine")


def test_a_process_looks_once_an_hour(bench: Bench) -> None:
    bench.snapshots.tidy(NOW)
    digest = bench.retired(1, 30)
    bench.snapshots.tidy(NOW + PRUNE_EVERY - 1)
    assert bench.left() == {digest}
    bench.snapshots.tidy(NOW + PRUNE_EVERY)
    assert bench.left() == set()


def test_what_a_killed_writer_has_left_goes_as_well(bench: Bench) -> None:
    bench.write(1)
    for name, days in (("a.safetensors.1.tmp", 7.1), ("a.safetensors.2.tmp", 6.9)):
        (bench.folder / "snapshots" / name).write_bytes(b"half")
        bench.age(days, name)
    bench.snapshots.prune(NOW)
    assert [path.name for path in (bench.folder / "snapshots").glob("*.tmp")] == ["a.safetensors.2.tmp"]


def test_a_mark_of_unknown_age_deletes_nothing(bench: Bench) -> None:
    """Some filesystems do not say when a file was written: Beam gives 0."""
    digest = bench.retired(1, 30)
    os.utime(bench.folder / "snapshots" / f"{digest}.replaced", (0, 0))
    assert bench.snapshots.prune(NOW) == []


def test_another_process_may_have_deleted_it_first(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    digest = bench.retired(1, 30)
    listed = bench.snapshots.all()

    def stale(self: Any) -> Any:
        return listed

    bench.snapshots.prune(NOW)
    monkeypatch.setattr(type(bench.snapshots), "all", stale)
    assert bench.snapshots.prune(NOW) == [digest]


def test_a_missing_snapshot_is_said_in_one_sentence(bench: Bench) -> None:
    digest = bench.retired(1, 30)
    bench.snapshots.prune(NOW)
    with pytest.raises(StoreError) as raised:
        bench.store.read_snapshot(digest)
    text = str(raised.value)
    assert f"snapshots/{digest}.safetensors, which cannot be read" in text
    assert text.endswith(
        "one that was replaced is kept for 7 days, or for as long as it is pinned (`contbatch models pin`), so restore "
        "the job from a newer checkpoint, or start it without its state"
    )


def test_a_damaged_snapshot_is_not_called_missing(bench: Bench) -> None:
    digest = bench.write(1)
    (bench.folder / "snapshots" / f"{digest}.safetensors").write_bytes(b"other")
    with pytest.raises(StoreError, match="does not have the digest"):
        bench.store.read_snapshot(digest)


def test_a_pin_says_when_it_was_set(bench: Bench) -> None:
    digest = bench.write(1)
    bench.snapshots.pin("mine")
    file = bench.folder / "pins" / "mine.json"
    os.utime(file, (NOW, NOW))
    assert [(pin.name, pin.since, pin.snapshots) for pin in bench.snapshots.pins()] == [("mine", NOW, (digest,))]
    assert json.loads(file.read_text()) == {"snapshots": [digest]}
