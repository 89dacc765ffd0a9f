"""Keeps a serial loop durable: ``(snapshot, log)`` in the runner's state, the loop itself only as a cache.

A stretch of events that was processed is appended to a log, and so is a restore that an operator asked for, so that
no replay learns again what was undone. When the log is long, a snapshot in the model store takes its place. The hash
chain over that pair says exactly what a loop must have seen, so any instance of a DoFn may serve any bundle (Prism
gives one key to several), and a loop that a failed bundle advanced is noticed and rebuilt. Rejected: the weights in a
state cell, which would be written whole at each firing.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from contbatch.transforms.events import END_OF_TIME, Event, pack, unpack
from contbatch.transforms.learning import shelf
from contbatch.transforms.learning.config import PrequentialConfig
from contbatch.transforms.learning.lineage import Version
from contbatch.transforms.learning.manifest import NOTHING, Restore, ordered
from contbatch.transforms.learning.prequential import PrequentialLoop
from contbatch.transforms.learning.shelf import extend
from contbatch.transforms.learning.store import ModelStore, StoreError


@dataclass(frozen=True)
class Position:
    """Where a loop stands.

    Attributes:
        snapshot: digest of the loop's snapshot in the store, or "" for a new loop.
        chain: hash over the snapshot and the log since.
        stretches: entries in the log.
        events: events in the log.
    """

    snapshot: str = ""
    chain: str = ""
    stretches: int = 0
    events: int = 0


class Journal:
    """The loops of one transform in this process, by model.

    Args:
        config: of every loop.
        store: holds the snapshots.
        snapshot_every: events after which a snapshot replaces the log.
        transform: names the transform; journals with the same name share their loops.
        clock: seconds, for what is idle.
    """

    def __init__(
        self,
        config: PrequentialConfig[Any],
        store: ModelStore,
        snapshot_every: int,
        transform: str | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._config = config
        self._store = store
        self._snapshot_every = snapshot_every
        self._transform = transform or uuid.uuid4().hex
        self._clock = clock
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
        loop: PrequentialLoop[Any] | None = shelf.take(self._transform, model, position.chain)
        if loop is not None:
            return loop
        loop = PrequentialLoop(self._config, model)
        if position.snapshot:
            loop.load(self._store.read_snapshot(position.snapshot))
        if position.chain:
            self.rebuilt += 1
        chain = position.snapshot
        for entry in sorted(log):
            if entry[8:9] == _RESTORE:
                self._restore(model, loop, Restore.of(entry[9:].decode()))
            elif entry[8:9] == _BRANCH:
                loop.branch(int(entry[9:]))
            else:
                upto, events = _decode(entry)
                for _ in loop.advance(events, upto, entry[8:9] == _STRETCH):
                    pass  # it was put out when the stretch was first processed
            chain = extend(chain, entry)
        if chain != position.chain:
            raise RuntimeError(f"model {model!r}: the log in state does not lead to the state's own {position}")
        return loop

    def restore(
        self, model: str, position: Position, loop: PrequentialLoop[Any], restore: Restore
    ) -> tuple[Position, bytes, Version]:
        """Let a loop go on from another version.

        Returns:
            the new position, the entry to append to the log, and the version to publish.

        Raises:
            StoreError: there is no such version, or it is damaged.
        """
        version = self._restore(model, loop, restore)
        return *self._decided(model, position, loop, _RESTORE + restore.name.encode()), version

    def branch(self, model: str, position: Position, loop: PrequentialLoop[Any], newest: str) -> tuple[Position, bytes]:
        """Let a loop name its versions by a later epoch than the newest version, which is of a line that was lost.

        Returns:
            the new position, and the entry to append to the log.
        """
        epoch = ordered(newest)[0] + 1
        loop.branch(epoch)
        return self._decided(model, position, loop, _BRANCH + str(epoch).encode())

    def _decided(
        self, model: str, position: Position, loop: PrequentialLoop[Any], decision: bytes
    ) -> tuple[Position, bytes]:
        """Return the position after a decision, and its entry in the log."""
        entry = position.stretches.to_bytes(8, "big") + decision
        chain = extend(position.chain, entry)
        self._keep(model, chain, loop)
        return Position(position.snapshot, chain, position.stretches + 1, position.events), entry

    def _restore(self, model: str, loop: PrequentialLoop[Any], restore: Restore) -> Version:
        if restore.target == NOTHING:
            return loop.restore(restore, None)
        for manifest in self._store.history(model):
            if manifest.version == restore.target:
                return loop.restore(restore, self._store.read(manifest))
        raise StoreError(f"model {model!r}: version {restore.target} is to be restored, and is not in the store")

    def record(
        self,
        model: str,
        position: Position,
        loop: PrequentialLoop[Any],
        events: Sequence[Event],
        upto: int,
        is_complete: bool = True,
    ) -> tuple[Position, bytes | None]:
        """Note that a loop has advanced over sorted events up to ``upto``; see its ``advance``.

        Returns:
            the new position, and the stretch to append to the log, or ``None`` if the log is to be cleared.
        """
        logged = position.events + len(events)
        stretch = None
        if logged >= self._snapshot_every or upto == END_OF_TIME:
            digest = self._store.write_snapshot(loop.snapshot() | {"model": np.frombuffer(model.encode(), np.uint8)})
            self._store.snapshots.replace(position.snapshot, digest)
            if upto == END_OF_TIME:
                self._store.snapshots.retire(digest)  # nobody goes on from the end
            position = Position(digest, digest)
        else:
            stretch = _encode(position.stretches, upto, events, is_complete)
            chain = extend(position.chain, stretch)
            position = Position(position.snapshot, chain, position.stretches + 1, logged)
        if upto < END_OF_TIME:  # else it has come to its end
            self._keep(model, position.chain, loop)
        return position, stretch

    def _keep(self, model: str, chain: str, loop: PrequentialLoop[Any]) -> None:
        shelf.put(self._transform, model, chain, loop, self._clock)


_STRETCH, _ARRIVED, _RESTORE, _BRANCH = b"E", b"A", b"R", b"B"
"""What an entry of the log is, after its number: a stretch that is complete or is not, a restore, or a later epoch."""


def _encode(number: int, upto: int, events: Sequence[Event], is_complete: bool) -> bytes:
    """Encode a stretch so that encoded stretches sort by their number."""
    return (
        number.to_bytes(8, "big")
        + (_STRETCH if is_complete else _ARRIVED)
        + upto.to_bytes(8, "big", signed=True)
        + pack(events)
    )


def _decode(stretch: bytes) -> tuple[int, list[Event]]:
    return int.from_bytes(stretch[9:17], "big", signed=True), unpack(stretch[17:])
