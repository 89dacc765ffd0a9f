"""Evidence, label by label, that updates have gone wrong: sequential tests in nats of log likelihood."""

from __future__ import annotations

from dataclasses import dataclass

_NEAR = 32
"""Labels over which a local mean is taken: a user's labels come in a row, and are held against each other."""

_MEMORY = 20_000
"""Labels over which a running mean is taken: the few hundred bad ones before an alarm hardly move it."""

_MOST = 1.5
"""Nats that one label can count, so that no handful of labels raises an alarm."""

_LEAST_DEVIATION = 1e-3
"""Of a quantity that did not vary so far, so that its first variation is no surprise."""


@dataclass
class Evidence:
    """A quantity that is positive while all is well, and Page's (1954) test of whether its mean has fallen.

    The test adds up how much likelier each value is under the bad mean than under the good one, both normal with
    the running deviation, and goes on from 0 whenever the sum is below: so a healthy past excuses nothing. At a
    threshold of h nats, independent values raise a false alarm less than once in ``exp(h)`` labels, and a change
    is found about h nats over the divergence of the two means after it.

    Attributes:
        count: values behind the mean and the square, at most the memory.
        mean: running mean of the values.
        square: running mean of their squares.
        level: the sum, in nats.
        since: how many labels there had been when the sum was last 0: whatever is wrong came later.
    """

    count: float = 0.0
    mean: float = 0.0
    square: float = 0.0
    level: float = 0.0
    since: float = 0.0

    @property
    def deviation(self) -> float:
        """The running deviation."""
        return max((max(self.square - self.mean**2, 0.0)) ** 0.5, _LEAST_DEVIATION)

    def add(self, value: float, good: float, bad: float, at: float) -> None:
        """Count a value.

        Args:
            value: the quantity of one label.
            good: its mean while all is well.
            bad: its mean otherwise.
            at: how many labels there have been, with this one.
        """
        self.test(value, good, bad)
        if self.level == 0.0:
            self.since = at
        self.count = min(self.count + 1, _MEMORY)
        self.mean += (value - self.mean) / self.count
        self.square += (value * value - self.square) / self.count

    def test(self, value: float, good: float, bad: float) -> None:
        """Count a value in the test alone: it does not change what is usual."""
        nats = (bad - good) * (value - (good + bad) / 2) / self.deviation**2
        self.level = max(0.0, self.level + min(max(nats, -_MOST), _MOST))

    def clear(self, at: float) -> None:
        """Begin the test anew; what is normal stays known."""
        self.level, self.since = 0.0, at


@dataclass
class Centre:
    """The local mean of labels and scores, which takes out that one user likes more than another.

    Attributes:
        count: labels behind the means, at most those that are near.
        label: mean label.
        score: mean score.
    """

    count: float = 0.0
    label: float = 0.0
    score: float = 0.0

    def covariance(self, label: float, score: float) -> float:
        """Return what this label adds to the covariance of label and score around those before; then include it."""
        value = (label - self.label) * (score - self.score) if self.count else 0.0
        self.count = min(self.count + 1, _NEAR)
        self.label += (label - self.label) / self.count
        self.score += (score - self.score) / self.count
        return value
