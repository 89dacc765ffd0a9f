from __future__ import annotations

import hashlib
import os
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from contbatch.transforms import ModelStore
from contbatch.transforms.engine.versions import FileVersions, StoreVersions, Version, Versions
from contbatch.transforms.learning import StoreError, store


def publish(root: Path, *steps: int, epoch: int = 0, model: str = "") -> None:
    for step in steps:
        about = {"epoch": epoch, "parent": None, "examples": 0, "loss": 0.5, "time": 0, "config": {}}
        ModelStore(str(root)).publish({"w": np.full(3, step)}, model=model, step=step, **about)


def write(path: Path, content: bytes, changed: float) -> None:
    path.write_bytes(content)
    os.utime(path, (changed, changed))


def names(versions: Versions) -> list[str]:
    return [version.name.rpartition("/")[2] for version in versions.candidates()]


def test_the_store_has_the_highest_epoch_and_step_first(tmp_path: Path) -> None:
    publish(tmp_path, 9, 20)
    publish(tmp_path, 3, epoch=1)
    publish(tmp_path, 99, model="another")
    versions = StoreVersions(str(tmp_path))
    assert names(versions) == ["1.3", "0.20", "0.9"]
    assert names(StoreVersions(ModelStore(str(tmp_path)), "another")) == ["0.99"]
    newest = next(versions.candidates())
    (weights,) = tmp_path.glob("models/*/000001-*/weights.safetensors")
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    assert newest == Version("1.3", 3, str(weights), digest)
    versions.check(newest)


def test_the_store_reads_no_more_manifests_than_it_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(tmp_path, *range(20))
    ModelStore(str(tmp_path)).withdraw("0.19", "worse")
    read: list[str] = []
    original = store.read_bytes
    monkeypatch.setattr(store, "read_bytes", lambda path: read.append(path) or original(path))
    assert next(StoreVersions(str(tmp_path)).candidates()).name == "0.18"
    assert len(read) == 1


def test_the_store_has_no_torn_or_withdrawn_versions(tmp_path: Path) -> None:
    publish(tmp_path, 1, 2, 3)
    (torn,) = tmp_path.glob("models/*/*-000000000003/manifest.json")
    torn.write_text("{")
    ModelStore(str(tmp_path)).withdraw("0.2", "worse")
    assert names(StoreVersions(str(tmp_path))) == ["0.1"]


@pytest.mark.parametrize("damage", [lambda b: b[:-1], lambda b: b[:-1] + bytes([b[-1] ^ 1])])
def test_weights_that_are_not_what_the_manifest_says_fail_the_check(
    tmp_path: Path, damage: Callable[[bytes], bytes]
) -> None:
    publish(tmp_path, 1)
    versions = StoreVersions(str(tmp_path))
    version = next(versions.candidates())
    weights = Path(version.path)
    weights.write_bytes(damage(weights.read_bytes()))
    with pytest.raises(StoreError, match="does not have the digest"):
        versions.check(version)
    weights.unlink()
    with pytest.raises(StoreError, match="no weights at"):
        versions.check(version)


def test_files_are_ordered_by_time_then_name(tmp_path: Path) -> None:
    same = [f"{letter}.pt" for letter in "ecbfgd"]
    for name, changed in (("a.pt", 30.5), ("h.txt", 40.0), *((name, 10.0) for name in same)):
        write(tmp_path / name, b"abc", changed)
    versions = FileVersions(f"{tmp_path}/*.pt")
    assert names(versions) == ["a.pt", *sorted(same, reverse=True)]
    path = str(tmp_path / "a.pt")
    assert next(versions.candidates()) == Version(path, 30, path, "3:30.5")
    assert names(FileVersions(path)) == ["a.pt"]
    assert names(FileVersions(str(tmp_path / "none.pt"))) == []


@pytest.mark.parametrize(("content", "changed"), [(b"abcd", 10.0), (b"abd", 11.0)])
def test_a_file_that_changed_since_then_fails_the_check(tmp_path: Path, content: bytes, changed: float) -> None:
    path = tmp_path / "[a].pt"  # no pattern
    write(path, b"abc", 10.0)
    versions = FileVersions(f"{tmp_path}/*.pt")
    version = next(versions.candidates())
    versions.check(version)
    write(path, content, changed)
    with pytest.raises(StoreError, match="is still being written"):
        versions.check(version)
    path.unlink()
    with pytest.raises(StoreError, match="or was removed"):
        versions.check(version)


def test_an_empty_file_fails_the_check(tmp_path: Path) -> None:
    write(tmp_path / "a.pt", b"", 10.0)
    versions = FileVersions(f"{tmp_path}/*.pt")
    with pytest.raises(StoreError, match=r"a\.pt is empty"):
        versions.check(next(versions.candidates()))


@pytest.mark.parametrize("make", [StoreVersions, lambda root: FileVersions(f"{root}/models/*/*/weights.safetensors")])
def test_versions_travel_to_the_workers(tmp_path: Path, make: Callable[[str], Versions]) -> None:
    publish(tmp_path, 1)
    versions = make(str(tmp_path))
    travelled = pickle.loads(pickle.dumps(versions))  # noqa: S301
    assert list(travelled.candidates()) == list(versions.candidates()) != []
