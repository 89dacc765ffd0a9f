from __future__ import annotations

import json
import math
import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from contbatch.transforms import ModelStore
from contbatch.transforms.learning import StoreError
from contbatch.transforms.learning.manifest import ordered, superfluous

WEIGHTS = {"w": np.arange(6.0).reshape(2, 3), "slots": np.array([1, 5])}


def publish(store: ModelStore, step: int, model: str = "", **about: Any) -> Any:
    given = {"epoch": 0, "parent": None, "examples": step, "loss": 0.5, "time": 0, "config": {}, **about}
    return store.publish({name: array + step for name, array in WEIGHTS.items()}, model=model, step=step, **given)


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_a_version_comes_back_as_it_was(tmp_path: Path) -> None:
    store = ModelStore(str(tmp_path))
    manifest = publish(store, 7)
    assert store.versions() == [manifest]
    assert manifest.version == "0.7"
    arrays = store.read(manifest)
    assert {name: array.tolist() for name, array in arrays.items()} == {
        "w": (WEIGHTS["w"] + 7).tolist(),
        "slots": [8, 12],
    }


def test_versions_are_ordered_by_epoch_then_step(tmp_path: Path) -> None:
    store = ModelStore(str(tmp_path))
    for epoch, step in ((1, 3), (0, 20), (0, 9)):
        publish(store, step, epoch=epoch)
    assert [manifest.version for manifest in store.versions()] == ["0.9", "0.20", "1.3"]
    latest = store.latest()
    assert latest is not None
    assert latest[0].version == "1.3"


def test_publishing_again_leaves_the_same_bytes(tmp_path: Path) -> None:
    store = ModelStore(str(tmp_path))
    publish(store, 1)
    before = {name: (tmp_path / name).read_bytes() for name in files(tmp_path)}
    publish(store, 1)
    assert {name: (tmp_path / name).read_bytes() for name in files(tmp_path)} == before


@pytest.mark.parametrize("damage", [lambda b: b[:-1], lambda b: b[:-1] + bytes([b[-1] ^ 1]), lambda b: b""])
def test_damaged_weights_are_refused_and_the_version_before_stands(tmp_path: Path, damage: Any) -> None:
    store = ModelStore(str(tmp_path))
    publish(store, 1)
    newest = publish(store, 2)
    (weights,) = tmp_path.glob("models/*/*-000000000002/weights.safetensors")
    weights.write_bytes(damage(weights.read_bytes()))
    with pytest.raises(StoreError, match=f"does not have the digest {newest.digest}"):
        store.read(newest)
    latest = store.latest()
    assert latest is not None
    assert latest[0].version == "0.1"


@pytest.mark.parametrize("content", ["", "{", "[]", '{"model": ""}'])
def test_a_torn_or_foreign_manifest_is_no_version(tmp_path: Path, content: str) -> None:
    store = ModelStore(str(tmp_path))
    publish(store, 1)
    publish(store, 2)
    (manifest,) = tmp_path.glob("models/*/*-000000000002/manifest.json")
    manifest.write_text(content)
    assert [manifest.version for manifest in store.versions()] == ["0.1"]


def test_weights_without_manifest_are_no_version(tmp_path: Path) -> None:
    store = ModelStore(str(tmp_path))
    publish(store, 1)
    (manifest,) = tmp_path.glob("models/*/*/manifest.json")
    manifest.unlink()
    assert store.latest() is None


def test_a_snapshot_is_named_by_its_content(tmp_path: Path) -> None:
    store = ModelStore(str(tmp_path))
    digest = store.write_snapshot(WEIGHTS)
    assert files(tmp_path) == [f"snapshots/{digest}.safetensors"]
    assert np.array_equal(store.read_snapshot(digest)["w"], WEIGHTS["w"])
    with pytest.raises(StoreError, match=r"goes on from the snapshot .*0000\.safetensors, which cannot be read"):
        store.read_snapshot("0" * 64)


@pytest.mark.parametrize("model", ["", "a/b", "../../../../x", "*", "..", ".", "ä b", "%2e%2e", "C:\\x"])
def test_a_model_by_any_name_stays_under_the_root(tmp_path: Path, model: str) -> None:
    root = tmp_path / "deep" / "root"
    store = ModelStore(str(root))
    publish(store, 1, model)
    assert files(root) == files(tmp_path / "deep" / "root")
    assert len(files(tmp_path)) == len(files(root)) == 2
    assert [manifest.model for manifest in store.versions(model)] == [model]
    assert store.versions("another") == []


def test_a_manifest_holds_what_is_known_of_the_version(tmp_path: Path) -> None:
    publish(ModelStore(str(tmp_path)), 3, parent="0.2", config={"learner": "L"})
    (path,) = tmp_path.glob("models/*/*/manifest.json")
    content = json.loads(path.read_text())
    assert (content["parent"], content["examples"], content["config"]) == ("0.2", 3, {"learner": "L"})
    assert len(content["digest"]) == 64


def test_a_withdrawn_version_counts_as_none(tmp_path: Path) -> None:
    store = ModelStore(str(tmp_path))
    for step in (1, 2):
        publish(store, step)
    store.withdraw("0.2", "worse")
    publish(store, 2)  # a replayed bundle
    assert [manifest.version for manifest in store.versions()] == ["0.1"]
    latest = store.latest()
    assert latest is not None
    assert latest[0].version == "0.1"
    (path,) = tmp_path.glob("models/*/*/withdrawn.json")
    assert json.loads(path.read_text()) == {"reason": "worse"}
    path.unlink()
    assert [manifest.version for manifest in store.versions()] == ["0.1", "0.2"]


def test_a_withdrawn_version_can_be_readmitted_once(tmp_path: Path) -> None:
    store = ModelStore(str(tmp_path))
    for model in ("", "another"):
        publish(store, 1, model)
        store.withdraw("0.1", "worse", model)
    store.readmit("0.1", "another")
    assert [manifest.version for manifest in store.versions("another")] == ["0.1"]
    assert store.versions() == []
    for version in ("0.1", "0.2", "x"):
        with pytest.raises(StoreError, match=f"model 'another' has no version {version} that is withdrawn"):
            store.readmit(version, "another")


@pytest.mark.parametrize("version", ["0.3", "x", "0.2"])
def test_only_a_version_can_be_withdrawn(tmp_path: Path, version: str) -> None:
    store = ModelStore(str(tmp_path))
    publish(store, 2)
    publish(store, 3, "another")
    store.withdraw("0.2", "worse")
    with pytest.raises(StoreError, match=f"no version {version} to withdraw"):
        store.withdraw(version, "worse")
    store.withdraw("0.3", "worse", "another")
    assert store.versions("another") == []


def test_a_copy_of_a_folder_is_no_version(tmp_path: Path) -> None:
    store = ModelStore(str(tmp_path))
    publish(store, 2)
    (folder,) = tmp_path.glob("models/*/*")
    shutil.copytree(folder, f"{folder}.bak")
    store.withdraw("0.2", "worse")
    assert store.versions() == []


def versions(store: ModelStore) -> list[str]:
    return [manifest.version for manifest in store.versions()]


def test_after_a_restore_what_was_published_later_no_longer_counts(tmp_path: Path) -> None:
    store = ModelStore(str(tmp_path))
    for step in (1, 2, 3):
        publish(store, step)
    assert store.restore("0.2", "worse") == store.restores()[0]
    assert versions(store) == ["0.1", "0.2"]
    publish(store, 4)  # by a trainer that does not know of it
    assert versions(store) == ["0.1", "0.2"]
    publish(store, 4, epoch=store.restores()[0].ended + 1, parent="0.2")
    assert versions(store) == ["0.1", "0.2", "2.4"]
    assert [manifest.version for manifest in store.history()] == ["0.1", "0.2", "0.3", "0.4", "2.4"]


def test_what_no_longer_counted_can_be_restored(tmp_path: Path) -> None:
    store = ModelStore(str(tmp_path))
    for step in (1, 2, 3):
        publish(store, step)
    store.restore("0.1", "worse")
    store.restore("0.3", "it was the data")
    assert versions(store) == ["0.1", "0.3"]
    store.restore("0.1", "no, it was not")
    assert versions(store) == ["0.1"]
    assert [restore.ended for restore in store.restores()] == [1, 2, 3]


def test_nothing_can_be_restored_and_only_what_there_is(tmp_path: Path) -> None:
    store = ModelStore(str(tmp_path))
    publish(store, 1)
    store.restore("0.0", "all is wrong")
    assert versions(store) == []
    with pytest.raises(StoreError, match=r"no version '0\.2' to restore"):
        store.restore("0.2", "worse")


def test_models_are_listed(tmp_path: Path) -> None:
    store = ModelStore(str(tmp_path))
    for model in ("", "a/b", "ä"):
        publish(store, 1, model)
    store.restore("0.1", "worse", "a/b")
    assert store.models() == ["", "a/b", "ä"]


def thinned(versions: list[str]) -> list[str]:
    gone = set(superfluous(versions))
    return [version for version in versions if version not in gone]


@given(st.integers(1, 3_000), st.integers(1, 500))
def test_the_older_versions_are_the_fewer_are_kept(count: int, every: int) -> None:
    kept: list[str] = []
    for step in range(1, count + 1):
        kept.append(f"0.{step}")
        if step % every == 0 or step == count:
            kept = thinned(kept)
    assert thinned(kept) == kept
    steps = [ordered(version)[1] for version in kept]
    assert steps[0] == 1
    assert steps[-128:] == list(range(max(1, count - 127), count + 1))
    assert len(kept) <= 128 + 64 * math.log2(1 + count / 64)
    assert all(b - a <= max(1, (count - a) / 16) for a, b in pairwise(steps))


def test_thinning_deletes_old_versions_but_what_a_restore_names(tmp_path: Path) -> None:
    store = ModelStore(str(tmp_path))
    for step in range(1, 201):
        publish(store, step)
    store.restore("0.2", "was good")
    publish(store, 201, epoch=2, parent="0.2")
    store.thin()
    assert [one.version for one in store.versions()] == ["0.1", "0.2", "2.201"]
    left = [one.version for one in store.history()]
    assert len(left) < 180
    assert left[-100:-1] == [f"0.{step}" for step in range(102, 201)]
    assert len(list(tmp_path.glob("models/*/*/weights.safetensors"))) == len(left)
