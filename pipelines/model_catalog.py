"""What is in a model store, by version: which one serves, and why others do not."""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Iterable
from enum import StrEnum
from itertools import islice
from typing import Any, NamedTuple
from urllib.parse import quote

from apache_beam.io.filesystems import FileSystems

from contbatch.pipelines.errors import UsageError
from contbatch.transforms.files import read_bytes
from contbatch.transforms.learning import Manifest, ModelStore, Restore, StoreError
from contbatch.transforms.learning.manifest import counts, folder_of, version_of
from contbatch.transforms.learning.store import verified


class State(StrEnum):
    """What a version is to those who read the store."""

    SERVES = "serves"
    COUNTS = "counts"
    RESTORED = "restored"
    """An older version, or another, was restored: it no longer counts."""
    WITHDRAWN = "withdrawn"
    DAMAGED = "damaged"
    """The weights are missing, or not those of the manifest."""
    UNREADABLE = "unreadable"
    """The manifest cannot be read."""


class Row(NamedTuple):
    """One version.

    Attributes:
        version: ``epoch.step``.
        manifest: ``None`` if it cannot be read.
        state: what it is.
        why: the reason for a state in which it does not count, else "".
        size: bytes of the weights, or ``None`` if there are none.
        published: when the manifest was written, seconds since the epoch.
    """

    version: str
    manifest: Manifest | None
    state: State
    why: str
    size: int | None
    published: float


class Catalog:
    """Reads a model store for people.

    Args:
        root: of the store.

    Raises:
        UsageError: there is no model.
    """

    def __init__(self, root: str) -> None:
        self.root = root.rstrip("/")
        self.store = ModelStore(root)
        try:
            self.models = self.store.models()
        except ValueError as error:  # a filesystem that Beam does not know
            raise UsageError(str(error)) from error
        if not self.models:
            raise UsageError(f"no models under {root}; give --store, the folder `store` in the --out of a run")

    def model(self, name: str | None) -> str:
        """Return the model of this name, or the only one.

        Raises:
            UsageError: there is none, or several.
        """
        if name is None and len(self.models) == 1:
            return self.models[0]
        if name in self.models:
            return str(name)
        what = "several models" if name is None else f"no model {name!r}"
        raise UsageError(f"{what} in {self.root}; give --model, one of {', '.join(map(repr, self.models))}")

    def rows(self, model: str, verify: Callable[[str], bool] = lambda version: False) -> list[Row]:
        """Return all versions of a model, newest first.

        Args:
            model: which model.
            verify: of which versions the weights are compared with their digest; reads them.
        """
        manifests = {manifest.version: manifest for manifest in self.store.history(model)}
        restores = self.restores(model)
        found = FileSystems.match([f"{self._folder(model)}/*/*"])[0].metadata_list
        files = {tuple(file.path.split("/")[-2:]): file for file in found}
        rows: list[Row] = []
        serves = False
        for folder, name in sorted(files, reverse=True):
            version = _version_of(folder) if name == "manifest.json" else None
            if version is None:
                continue
            manifest = manifests.get(version)
            if manifest is None:
                state, why = State.UNREADABLE, "its manifest.json is torn, or of another version"
            elif verify(version) and (damage := self._damage(manifest)):
                state, why = State.DAMAGED, damage
            elif (folder, "withdrawn.json") in files:
                state, why = State.WITHDRAWN, self._reason(model, f"{folder}/withdrawn.json")
            elif not counts(version, restores):
                last = max(ending(version, restores), key=lambda restore: restore.ended)
                state, why = State.RESTORED, f"to {last.target}: {restores[last]}"
            else:
                state, why = State.COUNTS if serves else State.SERVES, ""
                serves = True
            weights = files.get((folder, "weights.safetensors"))
            size = None if weights is None else weights.size_in_bytes
            rows.append(Row(version, manifest, state, why, size, files[folder, name].last_updated_in_seconds))
        return rows

    def row(self, model: str, version: str, verify: bool = False) -> Row:
        """Return one version.

        Raises:
            UsageError: there is no such version.
        """
        rows = self.rows(model, lambda one: verify and one == version)
        for row in rows:
            if row.version == version:
                return row
        known = [row.version for row in rows]
        close = difflib.get_close_matches(version, known, 3)
        hint = f"close to it: {', '.join(close)}" if close else f"the newest: {', '.join(known[:3])}"
        raise UsageError(f"no version {version} of model {model!r} in {self.root}; {hint}")

    def readable(self, model: str, version: str) -> Manifest:
        """Return the manifest of a version whose weights are as published.

        Raises:
            UsageError: there is no such version, or it is damaged.
        """
        row = self.row(model, version, verify=True)
        if row.manifest is None or row.state is State.DAMAGED:
            raise UsageError(f"version {version} cannot be read: {row.why}")
        return row.manifest

    def serving(self, model: str, count: int = 1) -> list[str]:
        """Return the newest versions that count; the first serves."""
        return [manifest.version for manifest in islice(self.store.newest(model), count)]

    def restores(self, model: str) -> dict[Restore, str]:
        """Return all restores of a model, in their order, with their reasons."""
        return {restore: self._reason(model, f"restores/{restore.name}.json") for restore in self.store.restores(model)}

    def lineage(self, model: str, version: str) -> tuple[list[str], str]:
        """Return a version and those that it descends from, and how that ends: ``root``, ``missing`` or ``loop``."""
        manifests = {manifest.version: manifest for manifest in self.store.history(model)}
        chain = [version]
        while chain[-1] in manifests:
            parent = manifests[chain[-1]].parent
            if parent is None:
                return chain, "root"
            chain.append(parent)
            if parent in chain[:-1]:
                return chain, "loop"
        return chain, "missing"

    def _damage(self, manifest: Manifest) -> str:
        try:
            verified(self.store.weights(manifest), manifest.digest)
        except StoreError as error:
            return str(error)
        return ""

    def _reason(self, model: str, file: str) -> str:
        try:
            content: Any = json.loads(read_bytes(f"{self._folder(model)}/{file}"))
            return str(content["reason"])
        except (OSError, ValueError, TypeError, KeyError):
            return "no reason can be read"

    def _folder(self, model: str) -> str:
        return f"{self.root}/models/model-{quote(model, safe='')}"


def ending(version: str, restores: Iterable[Restore]) -> list[Restore]:
    """Return the restores each of which has put another version in the place of this one."""
    return [restore for restore in restores if not counts(version, [restore])]


def _version_of(folder: str) -> str | None:
    """Return the version of a folder, or ``None`` for one that is foreign, such as a copy."""
    try:
        version = version_of(folder)
    except ValueError:
        return None
    return version if folder_of(version) == folder else None
