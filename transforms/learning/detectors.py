"""Watching a stream of numbers for a change, with River's drift detectors behind one adapter.

River's detectors are sensitive: at their defaults, most of them call a stable stream of losses changed now and then.
So what River reports has to be confirmed by the values, at the report or within ``patience`` values after it: for some
m of 32, 64, 128, ..., the mean of the newest m lies apart from that of the values before. By ``deviations`` standard
errors (Welch, 1947) it is an *alarm*, by half of them a *warning*. A loss counts only if it has risen, since learning
makes it fall.

River's detectors can only be saved by pickling them. So the values since the last alarm are kept, and a detector is
at any time a new one that was fed the kept values: saving them is saving it. When ``keep`` values are there, the older
half goes, and a new detector is fed the newer half.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from enum import IntEnum, StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from contbatch.transforms.learning.learner import Arrays, Columns
from contbatch.transforms.learning.statistics import floats

Floats = NDArray[np.float64]

_LEAST = 32
"""Newest values that are held against those before: a mean of fewer is not near normal."""

_ROUNDING = 1e-9
"""Added to a standard error: values that are all equal, but for rounding, do not differ."""


class Method(StrEnum):
    """River's detectors."""

    ADWIN = "adwin"
    """Bifet and Gavalda (2007): the means of two parts of a window differ. For values of order 1."""
    PAGE_HINKLEY = "page_hinkley"
    """Page (1954): the sum of deviations from the mean has moved far. For values of order 1."""
    KSWIN = "kswin"
    """Raab et al. (2020): the newest values are distributed otherwise. Some 0.3 ms a value, 100 times the others."""
    DDM = "ddm"
    """Gama et al. (2004): more errors than at best. For the loss alone, which it takes as right or wrong."""


class Signal(StrEnum):
    """What is watched."""

    LOSS = "loss"
    """The squared error of the score, 0 to 1; only a rise counts. For DDM, whether it is above 0.25 (a mistake)."""
    CALIBRATION = "calibration"
    """Score minus label, which is 0 on average while scores are calibrated."""
    FEATURE = "feature"
    """A numeric column, divided by the detector's scale."""


class Level(IntEnum):
    """What a detector says."""

    STEADY = 0
    WARNING = 1
    ALARM = 2


@dataclass(frozen=True)
class Detector:
    """What is watched, by which of River's detectors; what changes is in a :class:`Watching`.

    Attributes:
        signal: what is watched.
        method: one of River's detectors.
        feature: the column, for the signal ``FEATURE``.
        scale: by which a feature is divided, such as its standard deviation; 1 for the other signals.
        options: arguments of River's detector, over those that are set here (Page-Hinkley: threshold 10 in place of
            50; KSWIN: alpha 0.0001 in place of 0.005, seed 0).
        deviations: standard errors that confirm a report of River's.
        patience: values within which it has to be confirmed.
        keep: most values kept, 256 or more; 8 bytes each.

    Raises:
        ValueError: an attribute is outside its range.
    """

    signal: Signal = Signal.LOSS
    method: Method = Method.ADWIN
    feature: str | None = None
    scale: float = 1.0
    options: Mapping[str, Any] = field(default_factory=dict, hash=False)
    deviations: float = 5.0
    patience: int = 256
    keep: int = 4096

    def __post_init__(self) -> None:
        if (self.signal is Signal.FEATURE) != (self.feature is not None):
            raise ValueError(f"signal is {self.signal} and feature is {self.feature!r}; give both of them, or neither")
        if self.method is Method.DDM and self.signal is not Signal.LOSS:
            raise ValueError(f"DDM counts mistakes and cannot watch the {self.signal}; give another method")
        if self.method is Method.KSWIN and self.options.get("seed", 0) is None:
            raise ValueError("KSWIN's seed is None, which no restored detector could repeat; give a number")
        for name in ("scale", "deviations"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} is {getattr(self, name)}; give a finite number above 0")
        for name, least in (("patience", 1), ("keep", 256)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)} values; give {least} or more")

    @property
    def only_rises(self) -> bool:
        """Whether a fall is no alarm."""
        return self.signal is Signal.LOSS

    def values(self, columns: Columns, labels: Floats, scores: Floats) -> Floats:
        """Return the watched value of each of n rows, shape (n,); not finite where there is none."""
        if self.feature is not None:
            return floats(columns[self.feature]) / self.scale
        error = scores - labels
        if self.signal is Signal.CALIBRATION:
            return error
        if self.method is Method.DDM:
            return np.where(np.isfinite(error), np.abs(error) > 0.5, math.nan)
        return error * error

    def watch(self) -> Watching:
        """Return a detector that has seen nothing.

        Raises:
            ImportError: River is not installed.
        """
        return Watching(self)


class Watching:
    """A detector at work, a function of the values it was given.

    Attributes:
        skipped: values that were not finite, which nothing else has seen.
    """

    def __init__(self, detector: Detector) -> None:
        self._detector = detector
        self._kept = np.empty(detector.keep)
        self._count = 0
        self._left = 0
        """Values within which the last report can still be confirmed."""
        self.skipped = 0
        self._begin(())

    def add(self, values: Iterable[float]) -> Level:
        """Take values in; returns the highest level on the way."""
        return max(map(self._add, map(float, values)), default=Level.STEADY)

    def _add(self, value: float) -> Level:
        if not math.isfinite(value):
            self.skipped += 1
            return Level.STEADY
        self._kept[self._count] = value
        self._count += 1
        if self._river(value):
            self._left = self._detector.patience
        level = Level.STEADY
        if self._left:
            self._left -= 1
            level = self._judge()
        if level is Level.ALARM:
            self._left = 0
            self._begin(())
        elif self._count == len(self._kept):
            self._begin(self._kept[self._count // 2 :].tolist())
        return level

    def _begin(self, values: Iterable[float]) -> None:
        """Start a new detector of River's and feed it; what it reports on the way has been judged before."""
        self._river = _river(self._detector)
        self._count = 0
        for value in values:
            self._kept[self._count] = value
            self._count += 1
            self._river(value)

    def _judge(self) -> Level:
        """Return by how much the newest values differ from those before."""
        count, most = self._count, 0.0
        values = self._kept[:count] - self._kept[:count].mean()  # small numbers, for the sums of squares
        sums, squares = values.cumsum(), (values * values).cumsum()
        new = _LEAST
        while 2 * new <= count:
            old = count - new
            before, after = sums[old - 1] / old, (sums[-1] - sums[old - 1]) / new
            variance = max(squares[old - 1] / old - before**2, 0.0) / old
            variance += max((squares[-1] - squares[old - 1]) / new - after**2, 0.0) / new
            rise = after - before if self._detector.only_rises else abs(after - before)
            most = max(most, rise / math.sqrt(variance + _ROUNDING**2))
            new *= 2
        if most >= self._detector.deviations:
            return Level.ALARM
        return Level.WARNING if most >= self._detector.deviations / 2 else Level.STEADY

    def export(self) -> Arrays:
        """Return all that :meth:`load` needs to go on exactly from here."""
        return {
            "detector": _described(self._detector),
            "values": self._kept[: self._count].copy(),
            "counts": np.array([self._left, self.skipped]),
        }

    def load(self, arrays: Arrays) -> Watching:
        """Take over what :meth:`export` returned; returns itself.

        Raises:
            ValueError: it was exported by a detector of another configuration.
        """
        described = arrays.get("detector", np.empty(0, np.uint8)).tobytes().decode()
        if described != _described(self._detector).tobytes().decode():
            raise ValueError(
                f"the arrays are of the detector {described or 'None'}, not of {self._detector}; load them with the "
                "configuration that they were exported with"
            )
        self._begin(arrays["values"].tolist())
        self._left, self.skipped = arrays["counts"].tolist()
        return self


def _described(detector: Detector) -> NDArray[np.uint8]:
    return np.frombuffer(json.dumps(asdict(detector), sort_keys=True).encode(), np.uint8)


def _river(detector: Detector) -> Callable[[float], bool]:
    """Return a new detector of River's, as a function that takes a value and tells whether it reports a change."""
    try:
        from river import drift
        from river.drift import binary
    except ImportError:
        raise ImportError("drift detectors need River: run `pip install contbatch[drift]`") from None
    made: Any
    match detector.method:
        case Method.ADWIN:
            adwin: Any = drift.ADWIN  # its constructor has no types
            made = adwin(**detector.options)
        case Method.PAGE_HINKLEY:
            mode = "up" if detector.only_rises else "both"
            made = drift.PageHinkley(**{"threshold": 10.0, "mode": mode, **detector.options})
        case Method.KSWIN:
            made = drift.KSWIN(**{"alpha": 1e-4, "seed": 0, **detector.options})
        case Method.DDM:
            made = binary.DDM(**detector.options)

    def report(value: float) -> bool:
        made.update(value)
        return bool(made.drift_detected)

    return report
