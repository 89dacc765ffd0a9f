"""The versions of a model that learns: which one descends from which, and what is known of each. Pure."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

from contbatch.transforms.learning.learner import Arrays
from contbatch.transforms.learning.manifest import NOTHING, Restore, ordered
from contbatch.transforms.learning.metrics import auc, log_loss, mean_log_loss

_REMEMBERED = 256
"""Published versions among which the one is found that a rollback goes back to."""


class Version(NamedTuple):
    """Weights to publish.

    Attributes:
        arrays: the exported learner state.
        about: the fields of :class:`~contbatch.transforms.learning.Manifest` that are known where it was learned.
    """

    arrays: Arrays
    about: dict[str, Any]


class Lineage:
    """Counts the updates of a model, and names its versions.

    Args:
        epoch: of the first version.
    """

    def __init__(self, epoch: int = 0) -> None:
        self.epoch = epoch
        self.step = 0
        """Updates since the first weights."""
        self.examples = 0
        self.published: list[str] = []
        """Versions from which the next one descends, oldest first."""
        self._weight = 0.0
        self._loss = 0.0
        self._judged = 0
        self._since: int | None = None
        self._time = 0
        self._published_examples = 0
        self._published_time: int | None = None
        self._gate = ""
        self._recent: list[tuple[float, float]] = []
        self._sizes: Counter[str] = Counter()
        self._staleness: Counter[str] = Counter()

    def name(self, step: int | None = None) -> str:
        """Return the version of the weights after so many updates, by default of all."""
        return f"{self.epoch}.{self.step if step is None else step}"

    def learned(
        self,
        labels: Sequence[float],
        weights: Sequence[float],
        scores: Sequence[float],
        served_by: Sequence[str],
        time: int,
        assumed: Sequence[bool] = (),
    ) -> None:
        """Note an update.

        Args:
            labels: what was learned.
            weights: importance weights.
            scores: what had been predicted.
            served_by: the versions that had predicted it.
            time: event time of the update.
            assumed: which labels are only assumed, and say nothing of a score; none by default.
        """
        for version in served_by:
            self._staleness[_bucket(self.step - ordered(version)[1])] += 1
        self._sizes[_bucket(len(labels))] += 1
        self.step += 1
        self.examples += len(labels)
        self._weight += sum(weights)
        for score, label, is_assumed in zip(scores, labels, assumed or [False] * len(labels), strict=True):
            if not is_assumed:
                self._recent.append((score, label))
                self._loss += log_loss(score, label)
                self._judged += 1
        self._time = time
        if self._since is None:
            self._since = time

    def is_due(self, examples: int, micros: float) -> bool:
        """Return whether so many examples, or so much event time, have passed since the last version.

        Where the time is bounded the first version is due at once: whoever serves has none.
        """
        fresh = self.examples - self._published_examples
        if not fresh or fresh >= examples or micros == math.inf:
            return fresh >= examples
        return self._published_time is None or self._time - self._published_time >= micros

    def judged(self, why: str) -> None:
        """Note what the gate said."""
        self._gate = why

    def version(self, arrays: Arrays, step: int) -> Version:
        """Return the version of these weights, and start to count anew.

        Args:
            arrays: the exported weights.
            step: updates that are in them.
        """
        scores, labels = zip(*self._recent, strict=True) if self._recent else ((), ())
        metrics = {"log_loss": mean_log_loss(scores, labels), "auc": auc(scores, labels)}
        about = {
            "epoch": self.epoch,
            "step": step,
            "parent": self.published[-1] if self.published else None,
            "examples": self.examples,
            "loss": self._loss / max(1, self._judged),
            "time": self._time,
            "weight": self._weight,
            "since": self._since or 0,
            "batch_sizes": dict(self._sizes),
            "staleness": dict(self._staleness),
            "metrics": {name: None if math.isnan(value) else value for name, value in metrics.items()},
            "gate": self._gate,
        }
        self.published = [*self.published, self.name(step)][-_REMEMBERED:]
        self._published_examples, self._published_time = self.examples, self._time
        self._recent, self._sizes, self._staleness = [], Counter(), Counter()
        return Version(arrays, about)

    def roll_back(self, step: int) -> Restore:
        """Go back to weights of so many updates: a new epoch begins, from the last version that is no later."""
        while self.published and ordered(self.published[-1])[1] > step:
            self.published.pop()
        restore = Restore(self.epoch, self.published[-1] if self.published else NOTHING)
        self.epoch += 1
        return restore

    def restore(self, restore: Restore) -> None:
        """Go on from a version that an operator has chosen."""
        self.epoch = restore.ended + 1
        self.published = [] if restore.target == NOTHING else [restore.target]
        self._gate = f"restored {restore.target}"

    def dump(self) -> dict[str, Any]:
        """Return the content as JSON values."""
        return vars(self) | {"_recent": [list(pair) for pair in self._recent]}

    def load(self, content: dict[str, Any]) -> None:
        """Fill a fresh lineage with what :meth:`dump` returned."""
        vars(self).update(content)
        self._recent = [(score, label) for score, label in self._recent]
        self._sizes, self._staleness = Counter(self._sizes), Counter(self._staleness)


def _bucket(count: int) -> str:
    """Return the power of two range that a count is in: ``0``, ``1``, ``2-3``, ``4-7``."""
    low = 1 << max(count, 1).bit_length() - 1
    return str(max(count, 0)) if low <= 1 else f"{low}-{2 * low - 1}"
