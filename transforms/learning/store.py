"""Model versions and snapshots on any Beam filesystem: safetensors files, digests, JSON manifests. No pickle."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any
from urllib.parse import quote

import safetensors
import safetensors.numpy

from contbatch.transforms.files import matching, read_bytes, replacing
from contbatch.transforms.learning.learner import Arrays


class StoreError(Exception):
    """A version or snapshot is missing or is not what its digest says."""


@dataclass(frozen=True)
class Manifest:
    """What is known of a published version. A version exists once its manifest does.

    Attributes:
        model: which model.
        epoch: counts restores that branched off.
        step: updates since the first weights; versions are ordered by (epoch, step).
        parent: ``epoch.step`` of the version before, or ``None``.
        digest: SHA-256 of the weights file.
        examples: examples learned.
        loss: progressive log loss over them.
        time: event time up to which feedback is learned, microseconds since the epoch.
        config: the learner and policy, in words.
    """

    model: str
    epoch: int
    step: int
    parent: str | None
    digest: str
    examples: int
    loss: float
    time: int
    config: dict[str, str]

    @property
    def version(self) -> str:
        """``epoch.step``, as predictions carry it."""
        return f"{self.epoch}.{self.step}"


class ModelStore:
    """Immutable model versions and content-addressed snapshots under one folder.

    Layout: ``models/model-NAME/EPOCH-STEP/{weights.safetensors,manifest.json}`` and
    ``snapshots/DIGEST.safetensors``. Files are written under a temporary name, then renamed; the manifest comes
    last. Writing the same version again leaves the same bytes, so a replayed bundle does no harm. A version with a
    ``withdrawn.json`` beside its manifest counts as none; delete that file to have it back.

    Args:
        root: a folder on any filesystem that Beam knows.
    """

    def __init__(self, root: str) -> None:
        self._root = root.rstrip("/")

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
        """Return the manifests of a model that can be read and are not withdrawn, oldest first."""
        return list(self.newest(model))[::-1]

    def newest(self, model: str = "") -> Iterator[Manifest]:
        """Yield what :meth:`versions` returns, newest first; a manifest is read when it is asked for."""
        paths = set(matching(f"{self._model_folder(model)}/*/*.json"))
        for path in sorted(paths, reverse=True):
            folder = path.removesuffix("/manifest.json")
            if folder == path or f"{folder}/withdrawn.json" in paths:
                continue
            try:
                manifest = Manifest(**json.loads(read_bytes(path)))
                own = folder.endswith(self._folder(manifest).removeprefix(self._root))
            except (ValueError, TypeError):
                continue  # torn or foreign: not a version
            if own:  # not a copy under another name
                yield manifest

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
        with replacing(self._snapshot(digest)) as file:
            file.write(content)
        return digest

    def read_snapshot(self, digest: str) -> Arrays:
        """Return the arrays of a snapshot.

        Raises:
            StoreError: it is missing, or not what its name says.
        """
        return _arrays(self._snapshot(digest), digest)

    def _folder(self, manifest: Manifest) -> str:
        return f"{self._model_folder(manifest.model)}/{manifest.epoch:06d}-{manifest.step:012d}"

    def _model_folder(self, model: str) -> str:
        return f"{self._root}/models/model-{quote(model, safe='')}"

    def _snapshot(self, digest: str) -> str:
        return f"{self._root}/snapshots/{digest}.safetensors"


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
