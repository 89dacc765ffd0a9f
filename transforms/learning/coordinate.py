"""Step sizes per coordinate: AdaGrad, and FTRL-Proximal for linear weights."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def adagrad(weights: Floats, squares: Floats, gradient: Floats, rates: Floats) -> None:
    """Move weights in place by ``rates * gradient / sqrt(squares)``; uses ``gradient`` up.

    Duchi, Hazan and Singer (2011). All of one shape; ``squares`` already holds this gradient's square.
    """
    gradient *= rates
    gradient /= np.sqrt(squares)
    weights -= gradient


@dataclass(frozen=True)
class Ftrl:
    """FTRL-Proximal per coordinate (McMahan et al., 2013, Ad Click Prediction, Algorithm 1).

    With ``n`` the sum of squared gradients and ``z`` the sum of gradients less ``sigma * w``, where ``sigma`` is
    the growth of ``sqrt(n) / alpha``, a weight is 0 while ``abs(z) <= l1``, else
    ``-(z - sign(z) * l1) / ((beta + sqrt(n)) / alpha + l2)``.

    Attributes:
        alpha: learning rate.
        beta: keeps the first steps small.
        l1: weights with less evidence than this are exactly 0.
        l2: pulls towards 0, once per weight, however many examples used it.

    Raises:
        ValueError: an attribute is outside its range.
    """

    alpha: float = 0.5
    beta: float = 1.0
    l1: float = 0.0
    l2: float = 0.0

    def __post_init__(self) -> None:
        for name in ("alpha", "beta"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} is {getattr(self, name)}; give a finite number above 0")
        for name in ("l1", "l2"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} is {getattr(self, name)}; give a finite number, 0 or more")

    def weight(self, z: Floats, n: Floats) -> Floats:
        """Return the weights that ``z`` and ``n`` stand for; 0 where nothing has been learned."""
        scale = (self.beta + np.sqrt(n)) / self.alpha + self.l2
        return np.sign(z) * np.minimum(self.l1 - np.abs(z), 0.0) / scale

    def advance(self, z: Floats, weight: Floats, gradient: Floats, before: Floats, after: Floats) -> Floats:
        """Return the new ``z``, from the sums of squared gradients before and after this one."""
        return z + gradient - (np.sqrt(after) - np.sqrt(before)) / self.alpha * weight
