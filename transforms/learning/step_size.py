"""How far a step goes when micro-batches differ in weight: rules over plain numbers.

``k`` is the total weight of a step over the rule's ``reference``, the weight for which the learning rate was tuned.
All rules are for gradients that are the *mean* over the weight of a step. What they say is multiplied into the
optimizer's own settings; ``progress`` is counted in steps of the reference, so that a schedule that is driven by it
does not depend on how examples came together.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple


class Scale(NamedTuple):
    """What a rule says about one step.

    Attributes:
        rate: multiplies the learning rate.
        progress: how many steps of the reference this one stands for.
        decay: moving averages of the optimizer decay by ``beta**decay``.
        epsilon: multiplies the optimizer's epsilon.
    """

    rate: float
    progress: float
    decay: float = 1.0
    epsilon: float = 1.0


class Noise(NamedTuple):
    """What is known about gradients: both values have the same unknown factor, which a ratio does not see.

    Attributes:
        variance: trace of the covariance of a mean gradient over the reference's weight.
        square: squared norm of the true gradient; an estimate can be below 0.
    """

    variance: float = 0.0
    square: float = 0.0


NOTHING = Noise()
"""What is known before the first estimate."""


class Spread(NamedTuple):
    """The gradients of a step's chunks; ``w_c`` is a chunk's weight and ``g_c`` its mean gradient.

    Attributes:
        chunks: how many chunks have weight.
        weight: total weight of the step.
        within: sum of ``w_c * |g_c|**2``.
        whole: squared norm of the step's mean gradient.
    """

    chunks: int
    weight: float
    within: float
    whole: float


@dataclass(frozen=True)
class StepSize:
    """Constant: the same step whatever the weight. The base of the other rules.

    It suits AdaGrad over sparse features and streams of even micro-batches.

    Attributes:
        reference: total weight of the step for which the learning rate was tuned.

    Raises:
        ValueError: an attribute is outside its range.
    """

    reference: float = 32.0

    def __post_init__(self) -> None:
        if not (self.reference > 0 and math.isfinite(self.reference)):
            raise ValueError(f"reference is {self.reference}; give the weight for which the rate was tuned, above 0")

    @property
    def least_chunks(self) -> int:
        """Into how many chunks a step must be cut, so that :meth:`observe` has something to see."""
        return 1

    def observe(self, noise: Noise, spread: Spread) -> Noise:
        """Return what is known after a step's chunks were seen."""
        return noise

    def scale(self, k: float, noise: Noise, progress: float) -> Scale:
        """Return what to do with a step of ``k`` times the reference, ``progress`` steps of the reference in."""
        return Scale(1.0, k)


@dataclass(frozen=True)
class Linear(StepSize):
    """The learning rate grows with k (Goyal et al., 2017), for SGD.

    It holds for independent rows, up to about 8 times a well-tuned reference, and only after a warm-up; a burst of
    one user's events is none of this. Above ``most`` a step counts as ``most``. Prefer :class:`AdaScale`, which
    measures where the rule ends.

    Attributes:
        most: largest k that counts, 1 to 8.
        warm_up: steps of the reference over which a rate above the tuned one comes in.
    """

    most: float = 8.0
    warm_up: float = 100.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.most <= 8:
            raise ValueError(f"most is {self.most}; give 1 to 8: the linear rule is known to fail beyond")
        if not self.warm_up >= 0:
            raise ValueError(f"warm_up is {self.warm_up}; give 0 or more steps of the reference")

    def scale(self, k: float, noise: Noise, progress: float) -> Scale:
        """Return a rate of min(k, most), during the warm-up less."""
        k = min(k, self.most)
        share = 1.0 if progress >= self.warm_up else progress / self.warm_up
        return Scale(1 + (k - 1) * share if k > 1 else k, k)


@dataclass(frozen=True)
class SquareRoot(StepSize):
    """The learning rate grows with the root of k (Malladi et al., 2022), for Adam and RMSProp.

    Moving averages decay by ``beta**k``, which is a decay per example, and epsilon shrinks with the root of k. The
    rule is one of small steps, ``k * (1 - beta)`` far below 1: a k outside of ``1 / most`` to ``most`` counts as the
    nearest one inside. A step far above that learns less than its rows could teach; send smaller ones.

    Attributes:
        most: largest k that counts, 1 to 8; one over it is the smallest.
    """

    most: float = 8.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.most <= 8:
            raise ValueError(f"most is {self.most}; give 1 to 8: beyond, the square root rule does not hold")

    def scale(self, k: float, noise: Noise, progress: float) -> Scale:
        """Return a rate of sqrt(k), a decay of k and an epsilon of 1 / sqrt(k), k within its bounds."""
        k = min(max(k, 1 / self.most), self.most)
        return Scale(math.sqrt(k), k, k, 1 / math.sqrt(k))


@dataclass(frozen=True)
class AdaScale(StepSize):
    """The learning rate grows by the gain (Johnson et al., 2020), for SGD.

    ``gain = (variance + square) / (variance / k + square)``: k where gradients are mostly noise, 1 where they agree.
    Both are estimated from the chunks of a step and averaged with a decay of ``theta**k``. The estimates are the
    usual ones of a weighted mean, unbiased for chunks of any weight where the variance of a row is one over its
    weight. Before the first estimate the gain is min(k, 1).

    Attributes:
        theta: how much of an average stays after one step of the reference, 0 to 1, 1 not included.
        pieces: chunks into which a step is cut at least, 2 or more; each costs a backward pass.
    """

    theta: float = 0.99
    pieces: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.theta < 1:
            raise ValueError(f"theta is {self.theta}; give 0 or more, below 1")
        if self.pieces < 2:
            raise ValueError(f"pieces is {self.pieces}; give 2 or more: one gradient shows no variance")

    @property
    def least_chunks(self) -> int:
        """The pieces."""
        return self.pieces

    def observe(self, noise: Noise, spread: Spread) -> Noise:
        """Return the averages with this step's estimates; a step of one chunk has none."""
        if spread.chunks < 2:
            return noise
        unit = (spread.within - spread.weight * spread.whole) / (spread.chunks - 1)  # variance at a weight of 1
        keep = self.theta ** (spread.weight / self.reference)
        return Noise(
            keep * noise.variance + (1 - keep) * unit / self.reference,
            keep * noise.square + (1 - keep) * (spread.whole - unit / spread.weight),
        )

    def scale(self, k: float, noise: Noise, progress: float) -> Scale:
        """Return the gain as rate and as progress."""
        variance, square = max(noise.variance, 0.0), max(noise.square, 0.0)
        known = variance + square > 0
        gain = (variance + square) / (variance / k + square) if known else min(k, 1.0)
        gain = min(max(gain, min(k, 1.0)), max(k, 1.0))  # the formula's own bounds, to the last bit
        return Scale(gain, gain)
