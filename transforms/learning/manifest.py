"""What is written beside a model's weights: the manifest of a version, and which versions no longer count."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple


@dataclass(frozen=True)
class Manifest:
    """What is known of a published version. A version exists once its manifest does.

    Attributes:
        model: which model.
        epoch: counts restores that branched off.
        step: updates since the first weights; versions are ordered by (epoch, step).
        parent: the version that this one has learned on from, or ``None``.
        digest: SHA-256 of the weights file.
        examples: examples learned.
        loss: progressive log loss over them.
        time: event time up to which feedback is learned, microseconds since the epoch.
        config: the learner and policy, in words.
        weight: sum of the examples' importance weights.
        since: event time of the first feedback learned, microseconds since the epoch.
        batch_sizes: how many updates had how many examples, since the version before.
        staleness: of how many examples the prediction was made so many updates before they were learned, since the
            version before.
        metrics: progressive metrics of the examples since the version before: ``log_loss`` and ``auc``.
        gate: what the gate said last, or "".
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
    weight: float = 0.0
    since: int = 0
    batch_sizes: dict[str, int] = field(default_factory=dict)
    staleness: dict[str, int] = field(default_factory=dict)
    metrics: dict[str, float | None] = field(default_factory=dict)
    gate: str = ""

    @property
    def version(self) -> str:
        """``epoch.step``, as predictions carry it."""
        return f"{self.epoch}.{self.step}"


class Restore(NamedTuple):
    """A version is to serve again, and what was published after it no longer counts.

    Attributes:
        ended: the last epoch that it ends; what is learned from here on has a later one.
        target: the version, ``epoch.step``; :data:`NOTHING` for the weights before all learning.
    """

    ended: int
    target: str

    @property
    def name(self) -> str:
        """How it is named in a store; names sort as restores do."""
        return f"{self.ended:06d}-{folder_of(self.target)}"

    @classmethod
    def of(cls, name: str) -> Restore:
        """Return the restore of a :attr:`name`.

        Raises:
            ValueError: it is none.
        """
        ended, _, target = name.partition("-")
        return cls(int(ended), version_of(target))


NOTHING = "0.0"
"""The version before all learning."""


def ordered(version: str) -> tuple[int, int]:
    """Return ``epoch.step`` as a pair that sorts.

    Raises:
        ValueError: it is no version.
    """
    epoch, step = map(int, version.split("."))
    return epoch, step


def folder_of(version: str) -> str:
    """Return how a version is named in a store; names sort as versions do."""
    epoch, step = ordered(version)
    return f"{epoch:06d}-{step:012d}"


def version_of(folder: str) -> str:
    """Return the version that is so named in a store.

    Raises:
        ValueError: none is.
    """
    epoch, step = map(int, folder.split("-"))
    return f"{epoch}.{step}"


_DENSE = 64
"""Of versions with an age of twice so many updates or less all are kept, and further back about half as many for each
time that the age doubles."""


def superfluous(versions: Iterable[str]) -> list[str]:
    """Return the versions that a store need not keep: the older they are, the fewer are kept.

    Of n updates with a version each, some ``64 * log2(n / 64)`` versions stay.
    """
    places = sorted(map(ordered, versions))
    newest = max((step for _, step in places), default=0)
    kept, gone = set(), []
    for epoch, step in places:
        width = 1 << max(0, ((newest - step) // _DENSE).bit_length() - 1)
        if (epoch, width, step // width) in kept:
            gone.append(f"{epoch}.{step}")
        kept.add((epoch, width, step // width))
    return gone


def counts(version: str, restores: Iterable[Restore]) -> bool:
    """Return whether a version still counts: no restore has put an older one in its place, or a later one names it."""
    place = ordered(version)
    last = Restore(-1, version)
    for restore in restores:
        if restore.target == version or (place[0] <= restore.ended and place > ordered(restore.target)):
            last = max(last, restore, key=lambda one: one.ended)
    return last.target == version
