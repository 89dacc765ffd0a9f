"""How long the snapshots of a model store are kept.

A runner's state names the snapshot that it goes on from, and a checkpoint of that state the one that it went on from
then. Age alone says nothing: a model that learns little keeps its snapshot for months. So whoever puts another in its
place leaves a mark, and so long after *that* the snapshot goes: a job can be restored from every checkpoint that is
younger. Who reads a snapshot takes the mark away, as after a restore it is in use again. What nothing has replaced
stays, and so does what is pinned.
"""

from __future__ import annotations

import json
import logging
import time
from typing import NamedTuple
from urllib.parse import quote, unquote

from contbatch.transforms.files import matching, read_bytes, replacing

_LOG = logging.getLogger(__name__)

RETAIN = 7 * 86_400.0
"""Seconds for which a replaced snapshot is kept."""

PRUNE_EVERY = 3_600.0
"""Seconds between two looks of a process for what may go."""

_WEIGHTS, _REPLACED = ".safetensors", ".replaced"

_PRUNED: dict[str, float] = {}
"""When this process has last looked, by root."""


class PinError(Exception):
    """A pin cannot be set, removed or read."""


class Pin(NamedTuple):
    """Snapshots that stay.

    Attributes:
        name: what it is called.
        since: when it was set, seconds since the epoch.
        snapshots: digests of all that there were.
    """

    name: str
    since: float
    snapshots: tuple[str, ...]


class Snapshot(NamedTuple):
    """A snapshot in the store.

    Attributes:
        digest: its name.
        size: bytes.
        written: seconds since the epoch.
        replaced: since when another is in its place, seconds since the epoch; ``None`` while it may be in use.
        pins: names of the pins that hold it.
    """

    digest: str
    size: int
    written: float
    replaced: float | None
    pins: tuple[str, ...]


class Snapshots:
    """What is known of the snapshots of a store: ``snapshots/DIGEST.replaced`` and ``pins/NAME.json``.

    Args:
        root: of the store.
    """

    def __init__(self, root: str) -> None:
        self._root = root

    def path(self, digest: str) -> str:
        """Return where a snapshot is."""
        return f"{self._root}/snapshots/{digest}{_WEIGHTS}"

    def all(self) -> list[Snapshot]:
        """Return the snapshots that there are, by their digest.

        Raises:
            PinError: a pin cannot be read.
        """
        files = _files(f"{self._root}/snapshots/*")
        pins = self.pins()  # after the files: a pin that is set meanwhile holds what is listed
        return [
            Snapshot(
                digest,
                size,
                written,
                files.get(f"{digest}{_REPLACED}", (0, None))[1],
                tuple(pin.name for pin in pins if digest in pin.snapshots),
            )
            for name, (size, written) in sorted(files.items())
            if name.endswith(_WEIGHTS)
            for digest in [name.removesuffix(_WEIGHTS)]
        ]

    def retire(self, digest: str) -> None:
        """Note that nobody goes on from a snapshot any more, but who goes back to an earlier checkpoint."""
        with replacing(self._mark(digest)) as file:
            file.write(b"replaced\n")

    def keep(self, digest: str) -> None:
        """Note that a snapshot is in use, also if it had been retired."""
        _delete(self._mark(digest))

    def replace(self, old: str, new: str) -> None:
        """Retire a snapshot, or none if ``old`` is "", in whose place a job's state will name another; tidy up."""
        if old not in ("", new):
            self.retire(old)
        self.tidy(time.time())

    def tidy(self, now: float) -> None:
        """Prune if this process has not done so for an hour; trouble is logged, as a job can do without."""
        if now - _PRUNED.get(self._root, -PRUNE_EVERY) < PRUNE_EVERY:
            return
        _PRUNED[self._root] = now
        try:
            self.prune(now)
        except Exception as error:  # whatever a filesystem raises
            _LOG.warning("old snapshots in %s stay: %r", self._root, error)

    def prune(self, now: float, retain: float = RETAIN) -> list[str]:
        """Delete what was retired too long ago and is not pinned; return the digests.

        What a writer that was killed has left half written goes after the same time. A file of unknown age stays.

        Args:
            now: seconds since the epoch.
            retain: seconds for which a retired snapshot is kept.

        Raises:
            PinError: a pin cannot be read: nothing is deleted.
        """
        before = now - retain
        gone = [one.digest for one in self.all() if one.replaced and one.replaced < before and not one.pins]
        for digest in gone:
            _delete(self.path(digest))
            _delete(self._mark(digest))
        for name, (_, written) in _files(f"{self._root}/snapshots/*.tmp").items():
            if 0 < written < before:
                _delete(f"{self._root}/snapshots/{name}")
        return gone

    def pin(self, name: str) -> Pin:
        """Keep all snapshots that there are until :meth:`unpin`, for a savepoint that was just taken.

        Raises:
            PinError: there is no snapshot, or the name is empty or in use.
        """
        found = tuple(one.digest for one in self.all())
        if not name or name in [pin.name for pin in self.pins()]:
            raise PinError(f"the name {name!r} is {'in use' if name else 'empty'}; give another one for the pin")
        if not found:
            raise PinError(f"{self._root} has no snapshot to pin: a state from before the first one needs none")
        with replacing(self._pin(name)) as file:
            file.write(json.dumps({"snapshots": found}).encode())
        return next(pin for pin in self.pins() if pin.name == name)

    def unpin(self, name: str) -> Pin:
        """Remove a pin and return what it was.

        Raises:
            PinError: there is none of this name.
        """
        pins = {pin.name: pin for pin in self.pins()}
        if name not in pins:
            known = f"one of {', '.join(map(repr, pins))}" if pins else "there is none"
            raise PinError(f"no pin {name!r} in {self._root}; {known}")
        _delete(self._pin(name))
        return pins[name]

    def pins(self) -> list[Pin]:
        """Return all pins by their name.

        Raises:
            PinError: one cannot be read.
        """
        found = []
        for file, (_, since) in sorted(_files(f"{self._root}/pins/*.json").items()):
            try:
                snapshots = tuple(map(str, json.loads(read_bytes(f"{self._root}/pins/{file}"))["snapshots"]))
            except (OSError, ValueError, TypeError, KeyError) as error:
                raise PinError(f"{self._root}/pins/{file} is no pin that can be read; remove it: {error!r}") from error
            found.append(Pin(unquote(file.removesuffix(".json")), since, snapshots))
        return found

    def _mark(self, digest: str) -> str:
        return f"{self._root}/snapshots/{digest}{_REPLACED}"

    def _pin(self, name: str) -> str:
        return f"{self._root}/pins/{quote(name, safe='')}.json"


def _files(pattern: str) -> dict[str, tuple[int, float]]:
    """Return size and time of the files that match, by their name."""
    from apache_beam.io.filesystems import FileSystems

    found = FileSystems.match([pattern])[0].metadata_list
    return {file.path.rpartition("/")[2]: (file.size_in_bytes, file.last_updated_in_seconds) for file in found}


def _delete(path: str) -> None:
    """Delete a file, if it is there: another process may do the same."""
    from apache_beam.io.filesystem import BeamIOError
    from apache_beam.io.filesystems import FileSystems

    if not matching(path):
        return
    try:
        FileSystems.delete([path])
    except BeamIOError:
        if matching(path):
            raise
