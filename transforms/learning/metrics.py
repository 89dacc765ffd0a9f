"""Scores of a stream of predictions."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike


def log_loss(score: float, label: float) -> float:
    """Return the negative log-likelihood of a label in [0, 1], in nats.

    The score is clipped to [1e-12, 1 - 1e-12], so that one certain mistake stays finite.
    """
    score = min(max(score, 1e-12), 1 - 1e-12)
    return -(label * math.log(score) + (1 - label) * math.log1p(-score))


def mean_log_loss(scores: ArrayLike, labels: ArrayLike) -> float:
    """Return the mean of :func:`log_loss` over rows; not a number without rows."""
    pairs = list(zip(np.asarray(scores, float).tolist(), np.asarray(labels, float).tolist(), strict=True))
    return math.fsum(log_loss(score, label) for score, label in pairs) / len(pairs) if pairs else math.nan


def auc(scores: ArrayLike, labels: ArrayLike) -> float:
    """Return the area under the ROC curve; not a number when only one class is present.

    It is the probability that a positive row scores above a negative one, ties counting half: the rank statistic
    of Mann and Whitney (1947), with labels above 0.5 as positive.
    """
    positive = np.asarray(labels, float) > 0.5
    _, inverse, counts = np.unique(np.asarray(scores, float), return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    ones = int(positive.sum())
    zeros = len(positive) - ones
    if ones == 0 or zeros == 0:
        return float("nan")
    return float((ranks[positive].sum() - ones * (ones + 1) / 2) / (ones * zeros))
