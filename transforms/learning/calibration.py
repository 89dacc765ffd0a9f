"""Whether scores are as high as the labels turn out to be, over several spans of time."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from contbatch.transforms.learning.learner import Arrays

Floats = NDArray[np.float64]


class CalibrationState(NamedTuple):
    """Fading sums, as of ``time``, one per horizon: a value, which :meth:`CalibrationMonitor.learn` does not change.

    Attributes:
        scores: weighted sum of the scores, shape (k,).
        labels: weighted sum of the labels, shape (k,). With so many positives a ratio is uncertain by about
            ``1 / sqrt(labels)``.
        skipped: rows with a score, label, time or weight that is no finite number; they are in none of the above.
        time: the latest event time, in seconds; minus infinity before the first row.
    """

    scores: Floats
    labels: Floats
    skipped: int
    time: float


@dataclass(frozen=True)
class CalibrationMonitor:
    """Mean prediction over mean label: 1 is right, below 1 the model promises too little.

    This is the check that a delayed-label loss needs: while labels are outstanding, a model that takes them for
    negatives drifts below 1, and its log loss on such labels does not show it.

    Give it a request once, with the score that was served, **when its label is final**: a label when it comes, a
    negative at the ttl, never one that is only assumed. Of two requests of one age the positive is then known first:
    over a horizon that is short beside the ttl, a growing or shrinking stream shows as a ratio below or above 1.

    Attributes:
        horizons: seconds of event time after which a row counts half, each once. A short one shows a jump soon, a long
            one a small error.

    Raises:
        ValueError: ``horizons`` is empty, or holds what is no finite number above 0 or the same twice.
    """

    horizons: tuple[float, ...] = (60.0, 3600.0, 86400.0)

    def __post_init__(self) -> None:
        right = all(math.isfinite(horizon) and horizon > 0 for horizon in self.horizons)
        if not self.horizons or not right or len(set(self.horizons)) < len(self.horizons):
            raise ValueError(f"horizons is {self.horizons}; give finite numbers of seconds above 0, each once")

    def init(self) -> CalibrationState:
        """Return the sums of no rows."""
        zeros = np.zeros(len(self.horizons))
        return CalibrationState(zeros, zeros, 0, -math.inf)

    def learn(
        self,
        state: CalibrationState,
        scores: Floats,
        labels: Floats,
        times: Floats,
        weights: Floats | None = None,
    ) -> CalibrationState:
        """Return the sums with n rows more, in any order.

        Args:
            state: the sums so far.
            scores: what was served, shape (n,).
            labels: final, shape (n,).
            times: event times in seconds at which the labels became final, shape (n,).
            weights: importance weights, shape (n,); 1 if there are none.
        """
        rows = np.stack([scores, labels, times, np.ones(len(scores)) if weights is None else weights])
        usable = np.isfinite(rows).all(axis=0)
        scores, labels, times, weights = rows[:, usable]
        time = float(times.max(initial=state.time))
        skipped = state.skipped + int((~usable).sum())
        if time == -math.inf:
            return state._replace(skipped=skipped)
        horizons = np.array(self.horizons)
        fade = np.exp2((state.time - time) / horizons)
        counts = weights * np.exp2((times - time) / horizons[:, None])
        return CalibrationState(
            state.scores * fade + counts.dot(scores),
            state.labels * fade + counts.dot(labels),
            skipped,
            time,
        )

    def ratios(self, state: CalibrationState) -> dict[float, float]:
        """Return mean prediction over mean label per horizon.

        Infinite where no label was above 0, not a number where there is nothing (any more).
        """
        with np.errstate(divide="ignore", invalid="ignore"):
            return dict(zip(self.horizons, (state.scores / state.labels).tolist(), strict=True))

    def export(self, state: CalibrationState) -> Arrays:
        """Return all that :meth:`load` needs to go on exactly from here."""
        return {
            "horizons": np.array(self.horizons),
            "scores": state.scores.copy(),
            "labels": state.labels.copy(),
            "skipped": np.array([state.skipped]),
            "time": np.array([state.time]),
        }

    def load(self, arrays: Arrays) -> CalibrationState:
        """Return the exported state.

        Raises:
            ValueError: the arrays are of other horizons.
        """
        horizons = tuple(arrays["horizons"].tolist()) if "horizons" in arrays else ()
        if horizons != self.horizons:
            raise ValueError(
                f"the arrays are of horizons {horizons}, not {self.horizons}; load them with the configuration that "
                "they were exported with"
            )
        scores, labels = arrays["scores"].copy(), arrays["labels"].copy()
        return CalibrationState(scores, labels, int(arrays["skipped"][0]), float(arrays["time"][0]))
