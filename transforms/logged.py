"""An object in a runner's state, as a log of what it has seen: appending costs what is new, not what there is.

State per key: ``log``, a bag of entries in their order, of which the first may be the object as it was (``BASE``); and
``head``, which says what the bag must lead to, so that a cached object that a failed bundle has advanced, or that
another instance has left behind, is noticed and built again. The log is cut when it is larger than the object.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Generic, Protocol, TypeVar

from contbatch.transforms.learning import shelf


class Replayable(Protocol):
    """What a log can bring back."""

    def replay(self, entry: bytes) -> None:
        """See an entry again."""

    def dump(self) -> bytes:
        """Return the content."""

    def load(self, content: bytes) -> None:
        """Fill a fresh object with what :meth:`dump` returned."""


Kept = TypeVar("Kept", bound=Replayable)

_LEAST = 1 << 16
"""Bytes of a log that is not worth cutting."""

_BASE, _ENTRY = b"B", b"E"


@dataclass
class _Head:
    chain: str = ""
    entries: int = 0
    base: int = 0  # bytes of the object when the log was last cut
    logged: int = 0  # bytes since


class Logged(Generic[Kept]):
    """Opens and records the objects of one transform.

    Args:
        owner: names the transform; instances with one name share their objects.
        make: an object that has seen nothing.
    """

    def __init__(self, owner: str, make: Callable[[], Kept]) -> None:
        self._owner, self._make = owner, make

    def open(self, key: object, log: Any, head_cell: Any) -> Kept:
        """Return the object of a key; it leaves the cache until :meth:`record` puts it back.

        Raises:
            RuntimeError: the log does not lead to what the head says.
        """
        head = _load_head(head_cell)
        kept: Kept | None = shelf.take(self._owner, key, head.chain)
        if kept is not None:
            return kept
        kept, chain = self._make(), ""
        for entry in sorted(log.read()):
            chain = shelf.extend(chain, entry)
            if entry[8:9] == _BASE:
                kept.load(entry[9:])
            else:
                kept.replay(entry[9:])
        if chain != head.chain:
            raise RuntimeError(f"the log in state of {key!r} does not lead to the state's own {head}")
        return kept

    def record(self, key: object, kept: Kept, entry: bytes, log: Any, head_cell: Any) -> None:
        """Note that an object has seen an entry."""
        head = _load_head(head_cell)
        kind = _ENTRY
        if head.logged + len(entry) > max(_LEAST, head.base):
            log.clear()
            kind, entry, head = _BASE, kept.dump(), _Head()
            head.base = len(entry)
        else:
            head.logged += len(entry)
        line = head.entries.to_bytes(8, "big") + kind + entry
        head.chain, head.entries = shelf.extend(head.chain, line), head.entries + 1
        log.add(line)
        head_cell.write(json.dumps(asdict(head)).encode())
        shelf.put(self._owner, key, head.chain, kept)


def _load_head(cell: Any) -> _Head:
    content = cell.read()
    return _Head(**json.loads(content)) if content else _Head()
