"""What a batch costs, learned while batches run: ``seconds = a + b * size + c * weight``, none of them negative."""

from __future__ import annotations

import math
from bisect import insort
from collections import deque
from collections.abc import Callable
from copy import deepcopy
from itertools import combinations
from statistics import NormalDist
from typing import Any, NamedTuple

from contbatch.transforms.batching.sizes import SizeTable

Vector = list[float]

_GAIN_OF_HISTORY = 0.5
"""What all batches before a change count for after it, in batches."""
_PRIOR_NOISE, _PRIOR_BATCHES = 0.01, 2.0
"""Relative noise that is assumed before any was seen, and for how many batches it counts."""
_SURPRISE, _LEAST_SURPRISE = 3.0, 0.15
"""A batch surprises beyond so many standard deviations, and so much of its predicted time."""
_LEAST_SECONDS = 1e-9
"""Below what any batch takes: a prediction of 0 divides nothing."""

_EXPORTED = ("information", "evidence", "count", "noise", "noise_count", "last", "surprise")


class _Fit(NamedTuple):
    """Parameters, inverse of the information, quantile of the ratios, and deviations per unit of uncertainty."""

    parameters: tuple[float, float, float]
    inverse: list[Vector]
    factor: float
    doubt: float


class CostModel:
    """Predicts the seconds of a batch, with an upper bound that is wide where nothing is known.

    Recursive least squares with forgetting, in information form (Ljung, *System Identification*, 1999, ch. 11), on
    *relative* errors, since a batch of double the time has double the noise. Where the unconstrained solution has a
    negative part, the best solution without that part is found (never clamped: the others change with it). The upper
    bound has two parts: the quantile of the residuals, and the uncertainty of the parameters, which vanishes with
    data. It never exceeds what running several of the last batch would take (a batch is no slower than its parts).

    Two surprises in a row in the same direction are taken as a change of the device: history is scaled by it and
    discounted to half a batch.

    Args:
        quantile: share of batches that should stay under :meth:`upper`, 0.5 up to below 1.
        forgetting: what a batch counts after the next one, above 0.5 up to 1.
        window: batches whose residuals make the quantile, at least 2.

    Raises:
        ValueError: an argument is outside its range.
    """

    def __init__(self, quantile: float = 0.988, forgetting: float = 0.98, window: int = 400) -> None:
        if not 0.5 <= quantile < 1:
            raise ValueError(f"quantile is {quantile}; give 0.5 up to below 1")
        if not 0.5 < forgetting <= 1:
            raise ValueError(f"forgetting is {forgetting}; give above 0.5 up to 1")
        if window < 2:
            raise ValueError(f"window is {window} batches; give 2 or more")
        self._quantile = quantile
        self._z = NormalDist().inv_cdf(quantile)
        self._forgetting = forgetting
        self._ratios: deque[float] = deque(maxlen=window)
        self._sorted: list[float] = []
        self._information = [[0.0] * 3 for _ in range(3)]
        self._evidence = [0.0] * 3
        self._sizes = SizeTable()
        self._count = 0.0
        self._noise = _PRIOR_BATCHES * _PRIOR_NOISE**2
        self._noise_count = _PRIOR_BATCHES
        self._last: tuple[Vector, float] | None = None
        self._surprise: tuple[Vector, float, float] | None = None
        self._fitted: _Fit | None = None

    @property
    def is_known(self) -> bool:
        """Whether any batch has been seen."""
        return self._last is not None

    @property
    def parameters(self) -> tuple[float, float, float]:
        """``(a, b, c)`` in seconds, seconds per element and seconds per unit of weight; zeros before any batch."""
        return self._fit().parameters

    def observe(self, size: int, seconds: float, weight: float = 0.0) -> None:
        """Learn that a batch of this size and total weight took so many seconds.

        Raises:
            ValueError: the size is below 1, or the seconds are not above 0.
        """
        if size < 1 or not 0 < seconds < math.inf:
            raise ValueError(f"a batch of {size} took {seconds} s; give a size of 1 or more and finite seconds above 0")
        features = [1.0, float(size), weight]
        if self._last is None:
            self._sizes.fine(size, seconds, self._sigma)
            self._add(features, seconds)
            return
        expected = max(self.expected(size, weight), _LEAST_SECONDS)
        spread = math.sqrt(1 + self._variance(size, weight) / expected**2)
        error = (seconds / expected - 1) / spread
        if abs(error) > max(_SURPRISE * self._sigma, _LEAST_SURPRISE):
            if error > 0 and self._sizes.is_cliff(size):
                return
            before, self._surprise = self._surprise, (features, seconds, seconds / expected)
            if before is not None and (before[2] > 1) == (error > 0):
                self._change(before, self._surprise)
            return
        self._surprise = None
        self._sizes.fine(size, seconds, self._sigma)
        self._remember(error)
        self._add(features, seconds)

    def expected(self, size: int, weight: float = 0.0) -> float:
        """Return the seconds to expect; 0 before any batch."""
        a, b, c = self._fit().parameters
        return a + b * size + c * weight

    def upper(self, size: int, weight: float = 0.0) -> float:
        """Return seconds that a batch exceeds with probability 1 - ``quantile``; infinite before any batch."""
        if self._last is None:
            return math.inf
        fit = self._fit()
        a, b, c = fit.parameters
        (_, last_size, last_weight), seconds = self._last
        parts = max(math.ceil(size / last_size), math.ceil(weight / last_weight) if last_weight else 1)
        doubt = fit.doubt * math.sqrt(self._variance(size, weight))
        return min((a + b * size + c * weight) * fit.factor + doubt, parts * seconds * fit.factor)

    def largest(self, seconds: float, limit: int, weight_per_element: float = 0.0) -> int:
        """Return the largest size up to ``limit`` whose :meth:`upper` is within the seconds; at least 1.

        Before any batch it is 1: the smallest there is to learn from.
        """
        if self._last is None:
            return 1

        def fits(size: int) -> bool:
            return self.upper(size, size * weight_per_element) <= seconds

        size = limit if fits(limit) else self._bisect(fits, limit)
        size = self._sizes.usable(size)
        expected = max(self.expected(size, size * weight_per_element), _LEAST_SECONDS)
        return self._sizes.prefer(size, expected, seconds, limit)

    def _bisect(self, fits: Callable[[int], bool], limit: int) -> int:
        """Return the largest size that fits, or 1. ``fits`` holds on an interval: upper() is convex in the size."""
        good = min(int(self._last[0][1]), limit) if self._last else 1
        while good > 1 and not fits(good):
            good //= 2
        bad = limit
        while bad - good > 1:
            middle = (good + bad) // 2
            good, bad = (middle, bad) if fits(middle) else (good, middle)
        return good

    def export(self) -> dict[str, Any]:
        """Return all that has been learned, as JSON values, for :meth:`load` to go on with."""
        learned = {name: deepcopy(getattr(self, f"_{name}")) for name in _EXPORTED}
        return {"ratios": [*self._ratios], "sizes": self._sizes.export(), **learned}

    def load(self, content: dict[str, Any]) -> None:
        """Take over what :meth:`export` returned, instead of what was learned so far.

        Raises:
            ValueError: a part is missing.
        """
        missing = [name for name in ("ratios", "sizes", *_EXPORTED) if name not in content]
        if missing:
            raise ValueError(f"an exported cost model has no {missing[0]!r}; give what export() returned")
        self._sizes.load(content["sizes"])
        self._ratios.clear()
        self._sorted.clear()
        for ratio in content["ratios"]:
            self._keep(ratio)
        for name in _EXPORTED:
            setattr(self, f"_{name}", deepcopy(content[name]))
        self._fitted = None

    @property
    def _sigma(self) -> float:
        return math.sqrt(self._noise / self._noise_count)

    @property
    def _factor(self) -> float:
        """The quantile of the ratios seen; of a normal distribution while they are too few to have one."""
        count = len(self._sorted)
        rank = math.ceil(self._quantile * (count + 1))
        normal = 1 + self._z * self._sigma
        return normal if rank > count else max(self._sorted[rank - 1], 1.0)

    def _remember(self, error: float) -> None:
        self._noise = self._noise * self._forgetting + error * error
        self._noise_count = self._noise_count * self._forgetting + 1
        self._keep(1 + error)

    def _keep(self, ratio: float) -> None:
        if len(self._ratios) == self._ratios.maxlen:
            self._sorted.remove(self._ratios[0])
        self._ratios.append(ratio)
        insort(self._sorted, ratio)

    def _add(self, features: Vector, seconds: float) -> None:
        self._count = self._count * self._forgetting + 1
        for i, left in enumerate(features):
            self._evidence[i] = self._evidence[i] * self._forgetting + left / seconds
            row = self._information[i]
            for j, right in enumerate(features):
                row[j] = row[j] * self._forgetting + left * right / seconds**2
        self._last = features, seconds
        self._fitted = None

    def _change(self, *surprises: tuple[Vector, float, float]) -> None:
        """Scale what was known before the device changed by the surprise, discount it, learn the two batches."""
        scale = math.sqrt(math.prod(ratio for _, _, ratio in surprises))
        gain = _GAIN_OF_HISTORY / self._count
        self._information = [[value * gain / scale**2 for value in row] for row in self._information]
        self._evidence = [value * gain / scale for value in self._evidence]
        self._count, self._surprise = _GAIN_OF_HISTORY, None
        self._sizes = SizeTable()  # nothing is known of single sizes any more
        for features, seconds, _ in surprises:
            self._add(features, seconds)

    def _variance(self, size: float, weight: float) -> float:
        """Return the variance of the expected seconds, in units of the noise."""
        (aa, ab, ac), (_, bb, bc), (_, _, cc) = self._fit().inverse
        constant = aa + 2 * (ab * size + ac * weight)
        return max(0.0, constant + bb * size * size + 2 * bc * size * weight + cc * weight * weight)

    def _fit(self) -> _Fit:
        """Return what follows from the batches so far; computed once between two batches."""
        if self._fitted is None:
            matrix = self._information
            used = [i for i in range(3) if matrix[i][i] > 0]
            best, most = [0.0] * 3, 0.0
            inverses = {}
            for chosen in (c for size in range(len(used), 0, -1) for c in combinations(used, size)):
                inverse = inverses[chosen] = _invert([[matrix[i][j] for j in chosen] for i in chosen])
                parts = [sum(row[k] * self._evidence[j] for k, j in enumerate(chosen)) for row in inverse]
                explained = sum(part * self._evidence[i] for part, i in zip(parts, chosen, strict=True))
                if min(parts) >= 0 and explained > most:
                    best, most = [0.0] * 3, explained
                    for part, i in zip(parts, chosen, strict=True):
                        best[i] = part
                    if len(chosen) == len(used):
                        break  # nothing can be better than the solution without constraints
            full = [[0.0] * 3 for _ in range(3)]
            if used:
                for i, row in zip(used, inverses[tuple(used)], strict=True):
                    for j, value in zip(used, row, strict=True):
                        full[i][j] = value
            self._fitted = _Fit((best[0], best[1], best[2]), full, self._factor, self._z * self._sigma)
        return self._fitted


def _invert(matrix: list[Vector]) -> list[Vector]:
    """Invert a small symmetric positive matrix by Gauss and Jordan; a direction without information stays huge."""
    size = len(matrix)
    rows = [[*row, *(float(i == j) for j in range(size))] for i, row in enumerate(matrix)]
    for i in range(size):
        pivot = max(rows[i][i], matrix[i][i] * 1e-12)
        rows[i] = [value / pivot for value in rows[i]]
        for j in range(size):
            if j != i:
                factor = rows[j][i]
                rows[j] = [value - factor * other for value, other in zip(rows[j], rows[i], strict=True)]
    return [row[size:] for row in rows]
