"""The engines of this process: each is there while somebody uses it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from contbatch.transforms.engine.engine import Engine


@dataclass(eq=False)
class _Entry:
    lock: threading.Lock = field(default_factory=threading.Lock)
    engine: Engine | None = None
    users: int = 0


_LOCK = threading.RLock()  # a lease may be forgotten while another one is made
_ENTRIES: dict[str, _Entry] = {}


class Lease:
    """The use of an engine. The engine ends when the last one is released, or forgotten.

    Args:
        key: names the engine, not its kind: two transforms of equal handlers have an engine each.
        make: makes the engine, with its model loaded, for the first user; the others wait for it. What it raises
            reaches the user, and the next one tries again.
    """

    def __init__(self, key: str, make: Callable[[], Engine]) -> None:
        self._key = key
        self._held = False
        with _LOCK:
            self._entry = _ENTRIES.setdefault(key, _Entry())
            self._entry.users += 1
            self._held = True
        try:
            with self._entry.lock:
                if self._entry.engine is None:
                    self._entry.engine = make()
                self.engine = self._entry.engine
        except BaseException:
            self.release()
            raise

    def release(self) -> None:
        """Give it back; a second time does nothing."""
        with _LOCK:
            if not self._held:
                return
            self._held = False
            self._entry.users -= 1
            last = not self._entry.users
            if last:
                del _ENTRIES[self._key]
        if last and self._entry.engine is not None:
            self._entry.engine.stop()

    def __del__(self) -> None:
        self.release()


def leased() -> dict[str, int]:
    """Return the keys of the engines that are there, and how many use each."""
    with _LOCK:
        return {key: entry.users for key, entry in _ENTRIES.items()}
