"""What each observation of a late label counts: the losses for delayed labels, as weights on hard labels.

Of a request with features x, let ``p`` be the probability that its label is positive, and ``F`` the probability that
a positive label comes within the wait window (0 without one). A learner then sees, per request,

=============  ===============  ========
observation    probability      label
=============  ===============  ========
``LABEL``      ``p F``          positive
``ASSUMED``    ``1 - p F``      negative
``CORRECTED``  ``p (1 - F)``    positive
``SETTLED``    ``1 - p``        negative
=============  ===============  ========

With ``f`` for the model's score, a positive of weight w has the gradient ``w (f - 1)`` in the logit, a negative
``w f``. A rule is unbiased if the expected sum is ``f - p`` times something above 0: learning then rests at ``f = p``.
Weights are constants: no gradient passes through what they are computed from.

That sum is over a request's whole life, and a stream gives it at once if it is steady. After the start, for a new id
and under drift, positives are still outstanding and scores are too low, except for what a rule says below. What
follows is per rule; a label that is negative and comes late says what ``SETTLED`` says.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from contbatch.transforms.learning.observed import Observed

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]

Head = Literal["prompt", "late", "real"]
"""What a helper predicts: see :func:`targets`."""

TRUST = 0.9
"""Of :func:`hedged` in an assumed negative; the best of four in the benchmark's drifting streams. A lower one learns
better from a steady stream and is slower to follow a drift, since what it adds at the ttl is of requests that old."""


class Rows(NamedTuple):
    """n observations and what the model thinks of them.

    Attributes:
        observed: an :class:`Observed` each, shape (n,).
        positive: whether the label is positive, shape (n,).
        score: the model's own probability of a positive, shape (n,).
        heads: the helpers' probabilities, shape (n,) each.
    """

    observed: NDArray[np.int64]
    positive: Flags
    score: Floats
    heads: dict[str, Floats]

    def are(self, *observed: Observed) -> Flags:
        """Return which rows are one of these, shape (n,)."""
        return (self.observed[:, None] == observed).any(axis=1)


class Rule(NamedTuple):
    """How observations are weighed.

    Attributes:
        weigh: gives a weight per row, shape (n,); 0 for a row that is not learned.
        heads: the helpers that ``weigh`` reads.
        needs_settled: whether it is right only if ``SETTLED`` rows come.
    """

    weigh: Callable[[Rows], Floats]
    heads: tuple[Head, ...] = ()
    needs_settled: bool = False


def targets(head: Head, rows: Rows) -> tuple[Flags, Flags]:
    """Return from which rows a helper learns, and which of them are positives to it, shape (n,) each.

    A helper learns from outcomes, never from what was assumed. ``prompt``: that a positive label came within the wait
    window, ``F``. ``late``: that a request turns out positive after it. ``real``: that a request without a label in
    the window stays negative. Positives are known before the negatives of the same age, by up to the ttl.
    """
    if head == "prompt":
        return rows.positive & rows.are(Observed.LABEL, Observed.CORRECTED), rows.are(Observed.LABEL)
    late = rows.positive & rows.are(Observed.CORRECTED)
    if head == "late":
        return ~rows.are(Observed.ASSUMED), late
    return rows.are(Observed.CORRECTED, Observed.SETTLED), ~late


def naive(rows: Rows) -> Floats:
    """Weigh all that comes before the ttl 1: biased, learning rests at ``f = p / (1 + p (1 - F))``."""
    return (~rows.are(Observed.SETTLED)).astype(float)


def wait(rows: Rows) -> Floats:
    """Take what the wait window shows for the truth: biased, learning rests at ``f = p F``."""
    return rows.are(Observed.LABEL, Observed.ASSUMED).astype(float)


def fnw(rows: Rows) -> Floats:
    """Weigh fake negatives as Ktena et al. (2019): ``1 + p`` for a positive, ``(1 - p) (1 + p)`` for a negative.

    Of the samples of a request without a wait window the share ``q = p / (1 + p)`` is positive; the weights are
    ``p / q`` and ``(1 - p) / (1 - q)``, with ``f`` for ``p``. Three caveats. It is right for a wait window of 0 only:
    with one, scores are too high. Its weights are the model's own opinion, so errors feed on themselves: published
    re-runs found a far worse log loss than with plain learning. And it is biased while labels are outstanding.
    """
    return _until_corrected(rows) * (1 + rows.score) * np.where(rows.positive, 1.0, 1 - rows.score)


def es_dfm(rows: Rows) -> Floats:
    """Weigh by two helpers, as in elapsed-time sampling (Yang et al., 2021).

    A request gives ``1 + d`` samples, with ``d = p (1 - F)`` for a late positive: a positive weighs
    ``p / (p / (1 + d)) = 1 + d``, an assumed negative ``(1 - p) / ((1 - p F) / (1 + d)) = (1 + d) r``, with
    ``r = (1 - p) / (1 - p F)`` for one that is real. ``late`` predicts d, ``real`` predicts r; both need the
    ``SETTLED`` rows, and see nothing but positives until the first of these come.
    """
    real = np.where(rows.are(Observed.ASSUMED), rows.heads["real"], 1.0)
    return _until_corrected(rows) * (1 + rows.heads["late"]) * real


def defer(rows: Rows) -> Floats:
    """Learn real negatives again, and a label of the window twice, so that all x are seen equally (Gu et al., 2021).

    Each request is then two samples. Positives are ``2 p F + p (1 - F) = p (1 + F)`` of them, negatives
    ``(1 - p F) + (1 - p) = 2 - p - p F``. For the weights to add up to ``p`` and ``1 - p``, a positive weighs
    ``1 / (1 + F)``, a negative ``(1 - p) / (2 - p - p F)``, with ``f`` for ``p`` and the helper ``prompt`` for ``F``;
    a label of the window counts for two. Without a window this is 1 and ``(1 - p) / (2 - p)``: the published 2 and
    ``2 (1 - p) / (2 - p)``, halved so that a request counts as one.
    """
    p, prompt = rows.score, rows.heads["prompt"]
    copies = np.where(rows.are(Observed.LABEL), 2.0, 1.0)
    return copies * np.where(rows.positive, 1 / (1 + prompt), (1 - p) / (2 - p - p * prompt))


def exact(rows: Rows) -> Floats:
    """Learn a negative at once, and take it back when the label comes: a correction weighs ``1 / (1 - f)``.

    The gradient of the positive less that of the fake negative is ``(f - 1) - f = -1``, which is ``(f - 1) w`` for
    ``w = 1 / (1 - f)``. The sum is ``p F (f - 1) + (1 - p F) f - p (1 - F) = f - p``, whatever F is: nothing is
    estimated. Clipping the weight leaves scores above ``1 - 1 / limit`` a little low.
    """
    return _trusting(rows, 1.0)


def hedged(rows: Rows) -> Floats:
    """Learn an assumed negative in part, and the rest when the outcome is known.

    With t for the trust in it, an assumed negative is learned as if its label were ``s = f (1 - t) / (1 - t f)``, the
    chance that it is still to come if the share t of positives came in time: a gradient of ``f - s``. The outcome y
    then adds ``s - y``, and the sum is ``f - y`` for each request, whatever t is. As weights these are
    ``t (1 - f) / (1 - t f)`` for ``ASSUMED``, ``1 / (1 - t f)`` for a late positive and ``(1 - t) / (1 - t f)`` for a
    settled negative. t = 1 is :func:`exact`; t = 0 learns outcomes only, a ttl late. No weight is above
    ``1 / (1 - t)``.
    """
    return _trusting(rows, TRUST)


def _trusting(rows: Rows, trust: float) -> Floats:
    rest = 1 - trust * rows.score
    final = rows.are(Observed.SETTLED) | (rows.are(Observed.CORRECTED) & ~rows.positive)
    late = rows.are(Observed.CORRECTED) & rows.positive
    known = [rows.are(Observed.ASSUMED), late, final]
    return np.select(known, [trust * (1 - rows.score) / rest, 1 / rest, (1 - trust) / rest], 1.0)


def _until_corrected(rows: Rows) -> Flags:
    """Return all rows but those that say a second time that a request is negative."""
    return rows.are(Observed.LABEL, Observed.ASSUMED) | (rows.are(Observed.CORRECTED) & rows.positive)


RULES = {
    "naive": Rule(naive),
    "wait": Rule(wait),
    "fnw": Rule(fnw),
    "es-dfm": Rule(es_dfm, ("late", "real"), needs_settled=True),
    "defer": Rule(defer, ("prompt",), needs_settled=True),
    "exact": Rule(exact),
    "hedged": Rule(hedged, needs_settled=True),
}
