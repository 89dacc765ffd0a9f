from __future__ import annotations

import gc
import logging
import os
import sys
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from apache_beam.ml.inference.base import KeyedModelHandler, KeyModelMapping, MaybeKeyedModelHandler, ModelHandler
from apache_beam.ml.inference.pytorch_inference import PytorchModelHandlerTensor

from contbatch.transforms import ModelStore
from contbatch.transforms.engine.slot import Loaded, ModelSlot, SlotStatistics
from contbatch.transforms.engine.versions import FileVersions, StoreVersions, Version

PATIENCE = 30.0
"""Seconds after which a test that waits for a thread fails."""


class Words(ModelHandler):
    """Its model is the text of a file, and cannot be damaged."""

    def __init__(self, path: str = "", device: str = "cpu") -> None:
        super().__init__()
        self.path = path
        self._device = device

    def load_model(self) -> str:
        text = Path(self.path).read_text() if self.path else "own"
        if text == "damaged":
            raise ValueError(text)
        if text == "large":  # what Beam's PyTorch handlers do where there is no memory
            self._device = "cpu"
        return text

    def run_inference(self, batch: Sequence[Any], model: str, inference_args: Any = None) -> list[str]:
        return [model] * len(batch)

    def update_model_path(self, model_path: str | None = None) -> None:
        self.path = model_path or self.path


class Folder:
    """A folder of models; each that is written is newer than those before."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.now = 0
        self.versions = FileVersions(f"{path}/*")

    def write(self, name: str, text: str) -> None:
        self.now += 1
        (self.path / name).write_text(text)
        os.utime(self.path / name, (self.now, self.now))

    def slot(self, handler: ModelHandler | None = None, **given: Any) -> ModelSlot:
        slot = ModelSlot(handler or Words(), self.versions, **given)
        slot.load()
        return slot


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    folder = Folder(tmp_path)
    folder.write("a", "one")
    return folder


def test_without_versions_the_own_model_serves() -> None:
    handler, warmed = Words(), list[Loaded]()
    slot = ModelSlot(handler, warm_up=warmed.append)
    slot.load()
    assert slot.current == Loaded(handler, "own", None)
    assert warmed == [slot.current]
    assert not slot.poll()
    assert slot.statistics() == SlotStatistics(None, 0, 0)


def test_the_own_model_serves_until_there_is_a_version(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    slot = folder.slot()
    assert slot.current.model == "own"
    folder.write("a", "one")
    assert slot.poll()
    assert slot.current.model == "one"
    (tmp_path / "a").unlink()
    assert not slot.poll()  # nothing to take its place
    assert slot.current.model == "one"


def test_a_newer_version_takes_over_and_the_handler_that_serves_is_not_touched(folder: Folder) -> None:
    handler = Words()
    slot = folder.slot(handler)
    before = slot.current
    assert (before.model, slot.statistics().swaps) == ("one", 0)
    assert not slot.poll()
    folder.write("b", "two")
    assert slot.poll()
    after = slot.current
    assert (after.model, after.handler.path) == ("two", str(folder.path / "b"))
    assert (before.handler.path, handler.path) == (str(folder.path / "a"), "")
    assert slot.statistics() == SlotStatistics(str(folder.path / "b"), 1, 0)


def test_the_handler_that_serves_its_own_model_is_not_touched(tmp_path: Path) -> None:
    folder, handler = Folder(tmp_path), Words()
    slot = folder.slot(handler)
    before = slot.current
    folder.write("a", "one")
    assert slot.poll()
    assert before.handler is not handler
    assert (before.handler.path, handler.path) == ("", "")


def test_a_damaged_version_is_refused_once_until_its_mark_changes(
    folder: Folder, caplog: pytest.LogCaptureFixture
) -> None:
    slot = folder.slot()
    folder.write("b", "damaged")
    for _ in range(3):
        assert not slot.poll()
    assert slot.current.model == "one"
    assert slot.statistics().refused == 1
    (record,) = caplog.records
    for part in (str(folder.path / "b"), f"version {folder.path / 'a'} stays", "ValueError('damaged')"):
        assert part in record.getMessage()
    folder.write("b", "two")
    assert slot.poll()
    assert slot.current.model == "two"


def test_the_first_load_takes_the_newest_version_that_is_good(folder: Folder, caplog: pytest.LogCaptureFixture) -> None:
    folder.write("b", "damaged")
    folder.write("c", "")
    slot = folder.slot()
    assert slot.current.model == "one"
    assert [record.levelno for record in caplog.records] == [logging.WARNING] * 2
    folder.write("a", "damaged")
    assert folder.slot().current.model == "own"


def test_of_several_newer_versions_the_newest_good_one_takes_over(folder: Folder) -> None:
    slot = folder.slot()
    for name, text in (("b", "two"), ("c", "three"), ("d", "damaged")):
        folder.write(name, text)
    assert slot.poll()
    assert slot.current.model == "three"
    assert not slot.poll()


def test_a_file_that_is_being_written_again_is_not_rolled_back(folder: Folder) -> None:
    folder.write("b", "two")
    slot = folder.slot()
    for text in ("", "damaged"):
        folder.write("b", text)
        assert not slot.poll()
        assert not slot.poll()
        assert slot.current.model == "two"
    folder.write("b", "three")
    assert slot.poll()
    assert slot.current.model == "three"


def test_deleting_a_file_rolls_it_back(folder: Folder) -> None:
    folder.write("b", "two")
    slot = folder.slot()
    assert slot.current.model == "two"
    (folder.path / "b").unlink()
    assert slot.poll()
    assert slot.current.model == "one"


def test_a_version_that_fails_to_warm_up_is_refused(folder: Folder) -> None:
    def warm_up(loaded: Loaded) -> None:
        if loaded.model == "two":
            raise ValueError("does not fit")

    slot = folder.slot(warm_up=warm_up)
    folder.write("b", "two")
    assert not slot.poll()
    assert slot.current.model == "one"
    assert slot.statistics().refused == 1


@pytest.mark.parametrize("change", [lambda path: path.unlink(), lambda path: path.write_text("another")])
def test_a_version_that_changes_while_it_is_loaded_is_refused(folder: Folder, change: Callable[[Path], None]) -> None:
    slot = folder.slot(warm_up=lambda loaded: change(folder.path / "b") if loaded.model == "two" else None)
    folder.write("b", "two")
    assert not slot.poll()
    assert slot.current.model == "one"


def test_candidates_are_read_no_further_than_the_current_one(folder: Folder) -> None:
    class Lazy(FileVersions):
        taken = 0

        def candidates(self) -> Iterator[Version]:
            for version in super().candidates():
                Lazy.taken += 1
                yield version

    folder.write("b", "two")
    folder.versions = Lazy(f"{folder.path}/*")
    slot = folder.slot()
    Lazy.taken = 0
    assert not slot.poll()
    assert Lazy.taken == 1


def test_what_serves_can_be_asked_for_while_another_is_loaded(folder: Folder) -> None:
    loading, go_on = threading.Event(), threading.Event()

    def warm_up(loaded: Loaded) -> None:
        if loaded.model == "two":
            loading.set()
            assert go_on.wait(PATIENCE)

    slot = folder.slot(warm_up=warm_up)
    folder.write("b", "two")
    thread = threading.Thread(target=slot.poll)
    thread.start()
    assert loading.wait(PATIENCE)
    assert slot.current.model == "one"
    go_on.set()
    thread.join(PATIENCE)
    assert slot.current.model == "two"


class Linear(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(1, 1, bias=False)

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        return self.layer(batch)


def save(path: Path, weight: float) -> None:
    torch.save({"layer.weight": torch.full((1, 1), weight)}, path)


def predicted(loaded: Loaded) -> tuple[float, str | None]:
    (result,) = loaded.handler.run_inference([torch.ones(1)], loaded.model)
    return result.inference.item(), result.model_id


@pytest.mark.parametrize("wrap", [lambda handler: handler, lambda handler: handler.with_preprocess_fn(str)])
def test_a_torch_model_is_swapped(tmp_path: Path, wrap: Callable[[ModelHandler], ModelHandler]) -> None:
    save(tmp_path / "1.pt", 1.0)
    os.utime(tmp_path / "1.pt", (1, 1))
    own = PytorchModelHandlerTensor(str(tmp_path / "1.pt"), Linear)
    slot = ModelSlot(wrap(own), FileVersions(f"{tmp_path}/*.pt"))
    slot.load()
    first = slot.current
    save(tmp_path / "2.pt", 2.0)
    os.utime(tmp_path / "2.pt", (2, 2))
    assert slot.poll()
    assert predicted(slot.current) == (2.0, str(tmp_path / "2.pt"))
    assert predicted(first) == (1.0, str(tmp_path / "1.pt"))
    content = (tmp_path / "2.pt").read_bytes()
    (tmp_path / "3.pt").write_bytes(content[: len(content) // 2])
    assert not slot.poll()
    assert predicted(slot.current)[0] == 2.0


def test_withdrawing_a_version_of_a_store_rolls_it_back(tmp_path: Path) -> None:
    class Weights(Words):
        def load_model(self) -> bytes:  # type: ignore[override]
            return Path(self.path).read_bytes() if self.path else b""

    store = ModelStore(str(tmp_path))

    def publish(step: int) -> None:
        about = {"model": "", "epoch": 0, "parent": None, "examples": 0, "loss": 0.5, "time": 0, "config": {}}
        store.publish({"w": np.full(3, step)}, step=step, **about)

    publish(1)
    slot = ModelSlot(Weights(), StoreVersions(store))
    slot.load()
    publish(2)
    assert slot.poll()
    publish(3)
    (weights,) = tmp_path.glob("models/*/*-000000000003/weights.safetensors")
    weights.write_bytes(weights.read_bytes()[:-1] + b"?")
    assert not slot.poll()
    assert slot.statistics() == SlotStatistics("0.2", 1, 1)
    store.withdraw("0.2", "worse")
    assert slot.poll()
    assert slot.statistics() == SlotStatistics("0.1", 2, 1)


class Fixed(ModelHandler):
    """Loads the same, whatever the path."""

    def load_model(self) -> str:
        return "fixed"

    def run_inference(self, batch: Sequence[Any], model: str, inference_args: Any = None) -> list[str]:
        return [model]


@pytest.mark.parametrize("wrap", [lambda handler: handler, KeyedModelHandler])
def test_a_handler_that_ignores_the_path_cannot_serve_versions(
    folder: Folder, wrap: Callable[[ModelHandler], ModelHandler]
) -> None:
    with pytest.raises(RuntimeError, match="does not implement update_model_path"):
        folder.slot(wrap(Fixed()))
    ModelSlot(wrap(Fixed())).load()


def test_a_handler_that_cannot_be_copied_cannot_serve_versions(folder: Folder) -> None:
    handler = Words()
    handler.lock = threading.Lock()  # type: ignore[attr-defined]
    with pytest.raises(RuntimeError, match="cannot be copied, so it cannot serve versions"):
        folder.slot(handler)
    ModelSlot(handler).load()


WRAPPERS: list[Callable[[ModelHandler], ModelHandler]] = [
    lambda handler: handler,
    KeyedModelHandler,
    MaybeKeyedModelHandler,
    lambda handler: KeyedModelHandler([KeyModelMapping(["a"], Words()), KeyModelMapping(["b"], handler)]),
    lambda handler: KeyedModelHandler(handler).with_preprocess_fn(str).with_postprocess_fn(str),
    lambda handler: handler.with_no_batching(),
]


@pytest.mark.parametrize("wrap", WRAPPERS)
def test_a_gpu_that_is_absent_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrap: Callable[[ModelHandler], ModelHandler]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    absent = str(tmp_path / "absent.pt")
    with pytest.raises(RuntimeError, match="asks for a GPU and PyTorch finds none"):
        ModelSlot(wrap(PytorchModelHandlerTensor(absent, Linear, device="GPU"))).load()
    ModelSlot(wrap(Words())).load()


def test_a_handler_that_does_not_use_torch_is_not_asked_for_its_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "torch")
    ModelSlot(Words(device="cuda")).load()
    assert "torch" not in sys.modules


def test_a_version_for_which_the_gpu_has_no_room_is_refused(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    slot = folder.slot(Words(device="cuda:0"))
    folder.write("b", "large")
    assert not slot.poll()
    assert slot.current.model == "one"
    with pytest.raises(RuntimeError, match="on the CPU and not on the GPU"):
        ModelSlot(Words(str(folder.path / "b"), "cuda")).load()


def test_the_thread_swaps_and_survives_a_filesystem_that_fails(
    folder: Folder, caplog: pytest.LogCaptureFixture
) -> None:
    again, swapped = threading.Semaphore(0), threading.Event()

    class Flaky(FileVersions):
        fails = False

        def candidates(self) -> Iterator[Version]:
            if Flaky.fails:
                again.release()
                raise OSError("no route")
            return super().candidates()

    folder.versions = Flaky(f"{folder.path}/*")
    slot = folder.slot(warm_up=lambda loaded: swapped.set() if loaded.model == "two" else None)
    Flaky.fails = True
    slot.start(0.001)
    for _ in range(3):
        assert again.acquire(timeout=PATIENCE)
    folder.write("b", "two")
    Flaky.fails = False
    assert swapped.wait(PATIENCE)
    slot.stop()
    assert [record.getMessage() for record in caplog.records] == [
        f"versions cannot be listed, version {folder.path / 'a'} stays: OSError('no route')"
    ]


def watchers() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name == "versions"}


@pytest.mark.parametrize("end", [lambda slots: slots[0].stop(), lambda slots: slots.clear()])
@pytest.mark.parametrize("interval", [0.001, 3600.0])
def test_the_thread_ends_with_its_slot(folder: Folder, end: Callable[[list[ModelSlot]], None], interval: float) -> None:
    polled = threading.Event()

    class Watched(FileVersions):
        def candidates(self) -> Iterator[Version]:
            polled.set()
            return super().candidates()

    folder.versions = Watched(f"{folder.path}/*")
    before, slots = watchers(), [folder.slot()]
    alive = weakref.ref(slots[0])
    slots[0].start(3600.0)
    polled.clear()
    slots[0].start(interval)  # again: still one
    assert interval > PATIENCE or polled.wait(PATIENCE)
    end(slots)
    gc.collect()
    for thread in watchers() - before:
        thread.join(PATIENCE)
    assert watchers() <= before
    assert (alive() is None) == (not slots)


class Tally:
    """A model that says which process and object it is."""

    def who(self) -> tuple[int, int]:
        return os.getpid(), id(self)


class Large(ModelHandler):
    """Wants one copy for a whole machine."""

    def load_model(self) -> Tally:
        return Tally()

    def run_inference(self, batch: Any, model: Any, inference_args: Any = None) -> Any:
        return [model.who() for _ in batch]

    def update_model_path(self, model_path: str | None = None) -> None:
        pass


def test_a_large_model_is_one_for_all_who_name_it(tmp_path: Path) -> None:
    slots = [ModelSlot(Large(large_model=True), tag=tag) for tag in (str(tmp_path), str(tmp_path), f"{tmp_path}-other")]
    for slot in slots:
        slot.load()
    first, second, other = [slot.current.model.who() for slot in slots]
    assert first == second != other
    own = ModelSlot(Large())
    own.load()
    assert type(own.current.model) is Tally


def test_a_large_model_serves_no_versions(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="a model that processes share cannot serve versions"):
        ModelSlot(Large(large_model=True), FileVersions(str(tmp_path / "*"))).load()


class Unreadable(Words):
    """Cannot read some of the words for a while."""

    def load_model(self) -> str:
        text = super().load_model()
        if text == "unreadable":
            raise OSError("503")
        return text


def test_a_version_that_cannot_be_read_is_tried_again(folder: Folder, caplog: pytest.LogCaptureFixture) -> None:
    slot = folder.slot(Unreadable())
    folder.write("b", "unreadable")
    assert not any(slot.poll() for _ in range(3))
    assert (slot.current.model, slot.statistics().refused, len(caplog.records)) == ("one", 0, 1)
    mark = os.stat(folder.path / "b")
    (folder.path / "b").write_text("well again".ljust(mark.st_size)[: mark.st_size])
    os.utime(folder.path / "b", (folder.now, folder.now))  # by its mark it is what it was
    assert slot.poll()
    assert slot.current.model == "well again"


def test_one_that_is_replaced_and_cannot_be_read_is_not_taken_for_rolled_back(folder: Folder) -> None:
    folder.write("b", "two")
    slot = folder.slot(Unreadable())
    folder.write("b", "unreadable")
    assert not slot.poll()
    assert slot.current.model == "two"
