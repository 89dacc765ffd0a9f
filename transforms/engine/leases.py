"""The engines of this process: each is there while somebody uses it."""

from __future__ import annotations

import sys
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
        _let_go(self._key, self._entry)

    def __del__(self) -> None:
        if self._held and not sys.is_finalizing():
            # wherever the garbage collector runs, locks may be held that stopping an engine needs
            threading.Thread(target=_let_go, args=(self._key, self._entry), daemon=True).start()


def _let_go(key: str, entry: _Entry) -> None:
    with _LOCK:
        entry.users -= 1
        last = not entry.users
        if last and _ENTRIES.get(key) is entry:
            del _ENTRIES[key]
    if last and entry.engine is not None:
        entry.engine.stop()


def leased() -> dict[str, int]:
    """Return the keys of the engines that are there, and how many use each."""
    with _LOCK:
        return {key: entry.users for key, entry in _ENTRIES.items()}
