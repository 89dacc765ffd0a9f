"""The model that serves, and how a newer version takes its place meanwhile."""

from __future__ import annotations

import copy
import logging
import os
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from apache_beam.ml.inference.base import ModelHandler
from apache_beam.utils.multi_process_shared import MultiProcessShared

from contbatch.transforms.engine.versions import Version, Versions

_LOG = logging.getLogger(__name__)


class Loaded(NamedTuple):
    """A model, ready to serve.

    Attributes:
        handler: what runs it.
        model: what the handler loaded.
        version: which version it is, ``None`` if it is the handler's own.
    """

    handler: ModelHandler
    model: Any
    version: Version | None

    def __str__(self) -> str:
        return f"version {self.version.name}" if self.version else "the handler's own model"


@dataclass(frozen=True)
class SlotStatistics:
    """What a slot has done.

    Attributes:
        version: the name of the version that serves, ``None`` if it is the handler's own model.
        swaps: how often another version took over; the first load is none.
        refused: versions that were damaged, or failed to load or to warm up.
    """

    version: str | None
    swaps: int
    refused: int


class ModelSlot:
    """Holds the model that serves, and replaces it by the newest version that loads.

    A version is loaded and warmed up beside the one that serves, so memory must hold both; what the serving one needs
    is never touched. A version that fails is refused until its mark changes, or until the process restarts.

    Args:
        handler: loads and runs models. It is copied for every version.
        versions: where versions come from; ``None``: the handler's own model serves for ever.
        warm_up: called with what was loaded before it serves; refuses it by raising.
        tag: names a model that the handler wants to be shared among the processes of a machine (``large_model``,
            ``model_copies``); it serves no versions, as nobody knows when the last process has left one.
    """

    def __init__(
        self,
        handler: ModelHandler,
        versions: Versions | None = None,
        warm_up: Callable[[Loaded], None] = lambda loaded: None,
        tag: str = "",
    ) -> None:
        self._handler = handler
        self._versions = versions
        self._warm_up = warm_up
        self._tag = tag
        self._current = Loaded(handler, None, None)
        self._replaced: Loaded | None = None
        self._refused: dict[str, str] = {}
        self._refusals = 0
        self._troubled = ""
        self._swaps = 0
        self._stop: Callable[[], object] = lambda: None

    @property
    def current(self) -> Loaded:
        """What serves. Only to be asked for after :meth:`load`."""
        return self._current

    def load(self) -> None:
        """Load the newest version that is good, else the handler's own model.

        Raises:
            RuntimeError: the handler asks for a GPU that is not there, or cannot be given versions.
        """
        _require_gpu(self._handler)
        handler = self._handler
        if self._versions is not None:
            _require_paths(handler)
            if handler.share_model_across_processes():
                raise RuntimeError(
                    "a model that processes share cannot serve versions; leave out large_model and model_copies"
                )
            handler = self._copy()
        self._current = self._newer() or self._ready(handler, None)

    def poll(self) -> bool:
        """Load a version that is newer than the current one, or any if that was rolled back; return whether one was.

        Only one thread may call it at a time. The model that was replaced is kept until the next call: to free it takes
        time, which the device thread would lose.
        """
        self._replaced = None
        loaded = self._newer()
        if loaded is None:
            return False
        self._replaced, self._current = self._current, loaded
        self._swaps += 1
        return True

    def start(self, interval: float) -> None:
        """Poll every ``interval`` seconds, on a thread that ends with :meth:`stop` or when nobody holds the slot."""
        self.stop()
        stop = threading.Event()
        self._stop = weakref.finalize(self, stop.set)
        watch = threading.Thread(target=_watch, args=(weakref.ref(self), interval, stop), name="versions", daemon=True)
        watch.start()

    def stop(self) -> None:
        """Poll no more; a load under way is not waited for."""
        self._stop()

    def statistics(self) -> SlotStatistics:
        """Return what the slot has done."""
        version = self._current.version
        return SlotStatistics(version.name if version else None, self._swaps, self._refusals)

    def _newer(self) -> Loaded | None:
        versions, current = self._versions, self._current.version
        if versions is None:
            return None
        for version in versions.candidates():
            if version == current:
                return None
            if self._refused.get(version.name) != version.mark:
                try:
                    return self._load(versions, version)
                except Exception as error:
                    self._failed(version, error)
            if current and version.name == current.name:
                return None  # it is being replaced, not rolled back
        return None

    def _failed(self, version: Version, error: Exception) -> None:
        """Refuse a version, or say once that it cannot be read now: then it is tried again."""
        if not (isinstance(error, OSError) or isinstance(error.__cause__, OSError)):
            self._refused[version.name] = version.mark
            self._refusals += 1
            _LOG.warning("version %s (%s) is refused, %s stays: %r", version.name, version.path, self.current, error)
        elif self._troubled != version.name:
            self._troubled = version.name
            _LOG.warning("version %s (%s) cannot be read and is tried again: %r", version.name, version.path, error)

    def _load(self, versions: Versions, version: Version) -> Loaded:
        versions.check(version)
        handler = self._copy()
        handler.update_model_path(version.path)
        loaded = self._ready(handler, version)
        if version not in versions.candidates():
            raise OSError("it was changed or rolled back while it was loaded")
        return loaded

    def _ready(self, handler: ModelHandler, version: Version | None) -> Loaded:
        wanted = _gpus(handler)
        loaded = Loaded(handler, self._model(handler), version)
        if _gpus(handler) < wanted:
            raise RuntimeError("the model was loaded on the CPU and not on the GPU; is there room for another one?")
        self._warm_up(loaded)
        return loaded

    def _model(self, handler: ModelHandler) -> Any:
        if not handler.share_model_across_processes():
            return handler.load_model()
        tag = f"{self._tag}{os.getpid() % handler.model_copies()}"
        return MultiProcessShared(handler.load_model, tag=tag, always_proxy=True).acquire()

    def _copy(self) -> ModelHandler:
        try:
            return copy.deepcopy(self._handler)
        except Exception as error:
            raise RuntimeError(f"{self._handler!r} cannot be copied, so it cannot serve versions: {error!r}") from error


def _watch(slot: weakref.ref[ModelSlot], interval: float, stop: threading.Event) -> None:
    failing = False
    while not stop.wait(interval):
        live = slot()
        if live is None:
            return
        try:
            live.poll()
            failing = False
        except Exception as error:  # whatever a filesystem raises
            if not failing:
                _LOG.warning("versions cannot be listed, %s stays: %r", live.current, error)
            failing = True
        del live


def _inner(handler: ModelHandler) -> Iterator[ModelHandler]:
    """Yield the handlers under Beam's wrappers."""
    inside = [getattr(handler, "_unkeyed", None), getattr(handler, "_base", None)]
    inside += getattr(handler, "_id_to_mh_map", {}).values()
    wrapped = [one for one in inside if isinstance(one, ModelHandler)]
    if not wrapped:
        yield handler
    for one in wrapped:
        yield from _inner(one)


def _gpus(handler: ModelHandler) -> int:
    """Return how many handlers ask for CUDA; Beam's PyTorch handlers do so until they fall back to the CPU."""
    return sum(str(getattr(one, "_device", None)).startswith("cuda") for one in _inner(handler))


def _require_gpu(handler: ModelHandler) -> None:
    torch = sys.modules.get("torch")
    if torch is not None and _gpus(handler) and not torch.cuda.is_available():
        raise RuntimeError("the model handler asks for a GPU and PyTorch finds none: install its driver, or give 'CPU'")


def _require_paths(handler: ModelHandler) -> None:
    """Raise where Beam's base class would ignore the path, and every version would be the same model."""
    for one in _inner(handler):
        if type(one).update_model_path is ModelHandler.update_model_path:
            raise RuntimeError(f"{one!r} does not implement update_model_path, so it cannot serve versions")
