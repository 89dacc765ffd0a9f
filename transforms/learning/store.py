"""Model versions and snapshots on any Beam filesystem: safetensors files, digests, JSON manifests. No pickle."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from typing import Any
from urllib.parse import quote, unquote

import safetensors
import safetensors.numpy

from contbatch.transforms.files import matching, read_bytes, replacing
from contbatch.transforms.learning.learner import Arrays
from contbatch.transforms.learning.manifest import (
    NOTHING,
    Manifest,
    Restore,
    counts,
    folder_of,
    superfluous,
    version_of,
)
from contbatch.transforms.learning.snapshots import RETAIN, Snapshots


class StoreError(Exception):
    """A version or snapshot is missing or is not what its digest says."""


class ModelStore:
    """Immutable model versions and content-addressed snapshots under one folder.

    Layout: ``models/model-NAME/EPOCH-STEP/{weights.safetensors,manifest.json}`` and
    ``snapshots/DIGEST.safetensors``. Files are written under a temporary name, then renamed; the manifest comes
    last. Writing the same version again leaves the same bytes, so a replayed bundle does no harm. A version with a
    ``withdrawn.json`` beside its manifest counts as none; :meth:`readmit` has it back. So do versions after one
    that was restored, by the files in ``models/model-NAME/restores/``: also those that a trainer, which does not know
    of it yet, is still to write.

    Args:
        root: a folder on any filesystem that Beam knows.
    """

    def __init__(self, root: str) -> None:
        self._root = root.rstrip("/")
        self.snapshots = Snapshots(self._root)
        """How long snapshots are kept."""

    def publish(self, arrays: Arrays, **about: Any) -> Manifest:
        """Write a version; ``about`` is every field of :class:`Manifest` but the digest."""
        content = safetensors.numpy.save(arrays)
        manifest = Manifest(digest=hashlib.sha256(content).hexdigest(), **about)
        with replacing(self.weights(manifest)) as file:
            file.write(content)
        with replacing(f"{self._folder(manifest)}/manifest.json") as file:
            file.write(json.dumps(asdict(manifest), indent=2, sort_keys=True).encode())
        return manifest

    def versions(self, model: str = "") -> list[Manifest]:
        """Return the manifests of a model that can be read and count, oldest first."""
        return list(self.newest(model))[::-1]

    def newest(self, model: str = "") -> Iterator[Manifest]:
        """Yield what :meth:`versions` returns, newest first; a manifest is read when it is asked for."""
        paths = set(matching(f"{self._model_folder(model)}/*/*.json"))
        restores = _restores(paths)

        def serves(path: str) -> bool:
            folder, _, file = path.rpartition("/")
            if file != "manifest.json" or f"{folder}/withdrawn.json" in paths:
                return False
            try:
                return counts(version_of(folder.rpartition("/")[2]), restores)
            except ValueError:
                return False  # foreign

        yield from self._manifests(filter(serves, paths))

    def history(self, model: str = "") -> list[Manifest]:
        """Return the manifests of all versions that can be read, oldest first, those that no longer count included."""
        return list(self._manifests(matching(f"{self._model_folder(model)}/*/*.json")))[::-1]

    def models(self) -> list[str]:
        """Return the names of the models that have a version."""
        found = matching(f"{self._root}/models/*/*/manifest.json")
        return sorted({unquote(path.split("/")[-3].removeprefix("model-")) for path in found})

    def _manifests(self, paths: Iterable[str]) -> Iterator[Manifest]:
        """Yield what can be read, newest first."""
        for path in sorted(paths, reverse=True):
            folder = path.removesuffix("/manifest.json")
            if folder == path:
                continue
            try:
                manifest = Manifest(**json.loads(read_bytes(path)))
                own = folder.endswith(self._folder(manifest).removeprefix(self._root))
            except (ValueError, TypeError):
                continue  # torn or foreign: not a version
            if own:  # not a copy under another name
                yield manifest

    def restore(self, version: str, reason: str, model: str = "", ended: int | None = None) -> Restore:
        """Let a version serve again; what was published after it no longer counts, and a trainer goes on from it.

        Args:
            version: ``epoch.step``, one that counts or not; :data:`~contbatch.transforms.learning.manifest.NOTHING`
                for none.
            reason: why; kept in the record.
            model: which model.
            ended: the last epoch that this ends; by default all that there are.

        Raises:
            StoreError: there is no such version.
        """
        known = self.history(model)
        if version != NOTHING and version not in [manifest.version for manifest in known]:
            raise StoreError(f"model {model!r} has no version {version!r} to restore; see history()")
        if ended is None:
            epochs = [manifest.epoch for manifest in known] + [restore.ended for restore in self.restores(model)]
            ended = max(epochs, default=0) + 1
        restore = Restore(ended, version)
        with replacing(f"{self._model_folder(model)}/restores/{restore.name}.json") as file:
            file.write(json.dumps({"reason": reason}).encode())
        return restore

    def thin(self, model: str = "") -> None:
        """Delete versions that nobody will miss: see :func:`~contbatch.transforms.learning.manifest.superfluous`.

        What a restore names stays, and so do the newest versions.
        """
        from apache_beam.io.filesystems import FileSystems

        named = {restore.target for restore in self.restores(model)}
        folders = {path.rpartition("/")[0] for path in matching(f"{self._model_folder(model)}/*/manifest.json")}
        versions = {version_of(folder.rpartition("/")[2]): folder for folder in folders}
        gone = [versions[version] for version in superfluous(versions) if version not in named]
        if gone:
            FileSystems.delete([f"{folder}/manifest.json" for folder in gone])  # from here on they are no versions
            FileSystems.delete(gone)

    def restores(self, model: str = "") -> list[Restore]:
        """Return all restores of a model, in their order."""
        return _restores(matching(f"{self._model_folder(model)}/restores/*.json"))

    def withdraw(self, version: str, reason: str, model: str = "") -> None:
        """Roll a version back: from now on the one before it is the latest.

        Args:
            version: ``epoch.step``.
            reason: why; kept in ``withdrawn.json``.
            model: which model.

        Raises:
            StoreError: there is no such version, or it is withdrawn already.
        """
        manifest = next((manifest for manifest in self.newest(model) if manifest.version == version), None)
        if manifest is None:
            raise StoreError(f"model {model!r} has no version {version} to withdraw; see versions()")
        with replacing(f"{self._folder(manifest)}/withdrawn.json") as file:
            file.write(json.dumps({"reason": reason}).encode())

    def readmit(self, version: str, model: str = "") -> None:
        """Undo :meth:`withdraw`.

        Args:
            version: ``epoch.step``.
            model: which model.

        Raises:
            StoreError: there is no such version, or it is not withdrawn.
        """
        from apache_beam.io.filesystems import FileSystems

        folder = next((self._folder(known) for known in self.history(model) if known.version == version), None)
        if folder is None or not FileSystems.exists(f"{folder}/withdrawn.json"):
            raise StoreError(f"model {model!r} has no version {version} that is withdrawn; see history()")
        FileSystems.delete([f"{folder}/withdrawn.json"])

    def weights(self, manifest: Manifest) -> str:
        """Return the path of the weights of a version."""
        return f"{self._folder(manifest)}/weights.safetensors"

    def read(self, manifest: Manifest) -> Arrays:
        """Return the arrays of a version.

        Raises:
            StoreError: the weights are missing or are not those of the manifest.
        """
        return _arrays(self.weights(manifest), manifest.digest)

    def latest(self, model: str = "") -> tuple[Manifest, Arrays] | None:
        """Return the newest version whose weights match their digest, or ``None``."""
        for manifest in self.newest(model):
            try:
                return manifest, self.read(manifest)
            except StoreError:
                continue  # torn: the version before it stands
        return None

    def write_snapshot(self, arrays: Arrays) -> str:
        """Write a snapshot and return its digest, its name."""
        content = safetensors.numpy.save(arrays)
        digest = hashlib.sha256(content).hexdigest()
        with replacing(self.snapshots.path(digest)) as file:
            file.write(content)
        self.snapshots.keep(digest)
        return digest

    def read_snapshot(self, digest: str) -> Arrays:
        """Return the arrays of a snapshot, which is in use from now on.

        Raises:
            StoreError: it is missing, or not what its name says.
        """
        path = self.snapshots.path(digest)
        try:
            arrays = _arrays(path, digest)
        except StoreError as error:
            if error.__cause__ is None:
                raise
            raise StoreError(
                f"the job's state goes on from the snapshot {path}, which cannot be read ({error.__cause__}): one that "
                f"was replaced is kept for {RETAIN / 86_400:g} days, or for as long as it is pinned (`contbatch models "
                "pin`), so restore the job from a newer checkpoint, or start it without its state"
            ) from error
        self.snapshots.keep(digest)
        return arrays

    def _folder(self, manifest: Manifest) -> str:
        return f"{self._model_folder(manifest.model)}/{folder_of(manifest.version)}"

    def _model_folder(self, model: str) -> str:
        return f"{self._root}/models/model-{quote(model, safe='')}"


def _restores(paths: Iterable[str]) -> list[Restore]:
    found = []
    for path in paths:
        folder, name = path.split("/")[-2:]
        if folder == "restores":
            try:
                found.append(Restore.of(name.removesuffix(".json")))
            except ValueError:
                continue  # foreign
    return sorted(found)


def verified(path: str, digest: str) -> bytes:
    """Return the content of a file.

    Raises:
        StoreError: it is missing, or does not have this SHA-256.
    """
    try:
        content = read_bytes(path)
    except OSError as error:
        raise StoreError(f"no weights at {path}; they were removed while still referred to: {error}") from error
    if hashlib.sha256(content).hexdigest() != digest:
        raise StoreError(f"{path} does not have the digest {digest}; remove it and restore a good copy")
    return content


def _arrays(path: str, digest: str) -> Arrays:
    arrays: Arrays = safetensors.numpy.load(verified(path, digest))
    return arrays
