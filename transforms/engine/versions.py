"""Where versions of a model come from: a model store, or files that match a pattern."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, Protocol

from contbatch.transforms.learning import ModelStore, StoreError
from contbatch.transforms.learning.store import verified


class Version(NamedTuple):
    """A version of a model that could serve.

    Attributes:
        name: what predictions carry.
        number: the name as a number: updates learned, or seconds since the epoch.
        path: its weights file.
        mark: its content, in short: the same name with another mark is another version.
    """

    name: str
    number: int
    path: str
    mark: str


class Versions(Protocol):
    """Where versions come from. Travels to the workers, so it must pickle."""

    def candidates(self) -> Iterator[Version]:
        """Yield the versions there are, newest first, each no earlier than it is asked for.

        Called about once a second. One that is not among them any more has been rolled back.
        """

    def check(self, version: Version) -> None:
        """Make sure that a version's content is what its mark says.

        Raises:
            StoreError: it is not.
        """


class StoreVersions:
    """The versions of a model store, by epoch and step; :meth:`ModelStore.withdraw` rolls one back.

    Args:
        store: the store, or its root.
        model: which model.
    """

    def __init__(self, store: ModelStore | str, model: str = "") -> None:
        self._store = ModelStore(store) if isinstance(store, str) else store
        self._model = model

    def candidates(self) -> Iterator[Version]:
        """See :class:`Versions`."""
        for manifest in self._store.newest(self._model):
            yield Version(manifest.version, manifest.step, self._store.weights(manifest), manifest.digest)

    def check(self, version: Version) -> None:
        """See :class:`Versions`; the mark is the SHA-256."""
        verified(version.path, version.mark)


class FileVersions:
    """The files that match a pattern, by the time they were last changed, then by name; delete one to roll it back.

    Args:
        pattern: of files on any filesystem that Beam knows.
    """

    def __init__(self, pattern: str) -> None:
        self._pattern = pattern

    def candidates(self) -> Iterator[Version]:
        """See :class:`Versions`; the mark is the size and the time, so a file that is changed is another version.

        A file of no bytes is among them, as one that is about to be written again has not been rolled back.
        """
        from apache_beam.io.filesystems import FileSystems

        files = FileSystems.match([self._pattern])[0].metadata_list
        for file in sorted(files, key=lambda file: (file.last_updated_in_seconds, file.path), reverse=True):
            changed = file.last_updated_in_seconds
            yield Version(file.path, int(changed), file.path, f"{file.size_in_bytes}:{changed}")

    def check(self, version: Version) -> None:
        """See :class:`Versions`; a file of no bytes is refused, and so is one that has changed since it was listed."""
        if version.mark.startswith("0:"):
            raise StoreError(f"{version.path} is empty")
        if version not in self.candidates():
            raise StoreError(f"{version.path} is still being written, or was removed")
