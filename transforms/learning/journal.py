"""Keeps a serial loop durable: ``(snapshot, log)`` in the runner's state, the loop itself only as a cache.

A stretch of events that was processed is appended to a log; when the log is long, a snapshot in the model store
takes its place. The hash chain over that pair says exactly what a loop must have seen, so any instance of a DoFn
may serve any bundle (Prism gives one key to several), and a loop that a failed bundle advanced is noticed and
rebuilt. Rejected: the weights in a state cell, which would be written whole at each firing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from contbatch.transforms.events import END_OF_TIME, Event, pack, unpack
from contbatch.transforms.learning.prequential import PrequentialConfig, PrequentialLoop
from contbatch.transforms.learning.store import ModelStore


@dataclass(frozen=True)
class Position:
    """Where a loop stands.

    Attributes:
        snapshot: digest of the loop's snapshot in the store, or "" for a new loop.
        chain: hash over the snapshot and the log since.
        stretches: stretches in the log.
        events: events in the log.
    """

    snapshot: str = ""
    chain: str = ""
    stretches: int = 0
    events: int = 0


class Journal:
    """The loops that one DoFn instance has at hand, by model.

    Args:
        config: of every loop.
        store: holds the snapshots.
        snapshot_every: events after which a snapshot replaces the log.
    """

    def __init__(self, config: PrequentialConfig[Any], store: ModelStore, snapshot_every: int) -> None:
        self._config = config
        self._store = store
        self._snapshot_every = snapshot_every
        self._cache: dict[str, tuple[str, PrequentialLoop[Any]]] = {}
        self.rebuilt = 0
        """Loops that had to be brought up to date from state, because another instance had gone on with them."""

    def open(self, model: str, position: Position, log: Iterable[bytes]) -> PrequentialLoop[Any]:
        """Return the loop at a position; it leaves the cache until :meth:`record` puts it back.

        Args:
            model: whose loop.
            position: where it must stand.
            log: the stretches since the snapshot, in any order; read only if the cached loop stands elsewhere.

        Raises:
            StoreError: the snapshot is missing or damaged.
            RuntimeError: the log does not lead to the position.
        """
        tag, cached = self._cache.pop(model, ("", None))
        if cached is not None and tag == position.chain:
            return cached
        loop = PrequentialLoop(self._config, model)
        if position.snapshot:
            loop.restore(self._store.read_snapshot(position.snapshot))
        if position.chain:
            self.rebuilt += 1
        chain = position.snapshot
        for stretch in sorted(log):
            upto, events = _decode(stretch)
            for _ in loop.advance(events, upto):
                pass  # it was put out when the stretch was first processed
            chain = _extend(chain, stretch)
        if chain != position.chain:
            raise RuntimeError(f"model {model!r}: the log in state does not lead to the state's own {position}")
        return loop

    def record(
        self, model: str, position: Position, loop: PrequentialLoop[Any], events: Sequence[Event], upto: int
    ) -> tuple[Position, bytes | None]:
        """Note that a loop has advanced over sorted events up to ``upto``.

        Returns:
            the new position, and the stretch to append to the log, or ``None`` if the log is to be cleared.
        """
        logged = position.events + len(events)
        stretch = None
        if logged >= self._snapshot_every or upto == END_OF_TIME:
            digest = self._store.write_snapshot(loop.snapshot())
            position = Position(digest, digest)
        else:
            stretch = _encode(position.stretches, upto, events)
            chain = _extend(position.chain, stretch)
            position = Position(position.snapshot, chain, position.stretches + 1, logged)
        self._cache[model] = position.chain, loop
        return position, stretch


def _encode(number: int, upto: int, events: Sequence[Event]) -> bytes:
    """Encode a stretch so that encoded stretches sort by their number."""
    return number.to_bytes(8, "big") + upto.to_bytes(8, "big", signed=True) + pack(events)


def _decode(stretch: bytes) -> tuple[int, list[Event]]:
    return int.from_bytes(stretch[8:16], "big", signed=True), unpack(stretch[16:])


def _extend(chain: str, stretch: bytes) -> str:
    return hashlib.sha256(chain.encode() + stretch).hexdigest()
