"""A cost model that all threads of a worker process share, and that can be kept in a file."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable

from contbatch.transforms.batching import CostModel
from contbatch.transforms.files import read_bytes, replacing

_LOG = logging.getLogger(__name__)

_SAVE_EVERY = 30.0
"""Seconds between two writes of the file."""


class KeptCostModel(CostModel):
    """A :class:`CostModel` behind a lock.

    Args:
        path: a file on any Beam filesystem, which is read now and written now and then; ``None`` to keep nothing. The
            last worker that writes it wins. One that cannot be read costs a warning: batches start small again.
        clock: seconds.
    """

    def __init__(self, path: str | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._lock = threading.RLock()
        self._path = path
        self._clock = clock
        self._saved = clock()
        self._unsaved = False
        if path:
            try:
                content = json.loads(read_bytes(path))
                tried = CostModel()
                tried.load(content)
                tried.observe(1, tried.upper(1) or 1.0)
            except FileNotFoundError:
                pass
            except Exception as error:  # whatever a filesystem raises, and whatever is in the file
                _LOG.warning("the cost model in %s is not used: %r", path, error)
            else:
                self.load(content)

    @property
    def parameters(self) -> tuple[float, float, float]:
        """See :class:`CostModel`."""
        with self._lock:
            return super().parameters

    def observe(self, size: int, seconds: float, weight: float = 0.0) -> None:
        """See :class:`CostModel`."""
        with self._lock:
            super().observe(size, seconds, weight)
            self._unsaved = True

    def expected(self, size: int, weight: float = 0.0) -> float:
        """See :class:`CostModel`."""
        with self._lock:
            return super().expected(size, weight)

    def upper(self, size: int, weight: float = 0.0) -> float:
        """See :class:`CostModel`."""
        with self._lock:
            return super().upper(size, weight)

    def largest(self, seconds: float, limit: int, weight_per_element: float = 0.0) -> int:
        """See :class:`CostModel`."""
        with self._lock:
            return super().largest(seconds, limit, weight_per_element)

    def save(self, now: bool = False) -> None:
        """Write the file if there is something new, and not more often than every half minute unless asked to."""
        if not (self._path and self._unsaved and (now or self._clock() - self._saved >= _SAVE_EVERY)):
            return
        with self._lock:
            content = json.dumps(self.export()).encode()
            self._saved, self._unsaved = self._clock(), False
        try:
            with replacing(self._path) as file:
                file.write(content)
        except Exception as error:  # whatever a filesystem raises: batches go on
            self._unsaved = True
            _LOG.warning("the cost model is not kept in %s: %r", self._path, error)
