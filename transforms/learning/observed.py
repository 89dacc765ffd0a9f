"""What is known of a row when it is learned: labels come late, and some never come."""

from __future__ import annotations

from enum import IntEnum

FIELD = "observed"
"""Column that tells a learner what each row is; absent where every row is a :attr:`Observed.LABEL`."""


class Observed(IntEnum):
    """A row's standing. A request is learned first as ``LABEL``, or as ``ASSUMED`` and then at most once more.

    Further labels of other names, such as a purchase after a click, are each a ``LABEL``.
    """

    LABEL = 0
    """Its label came within the wait window."""
    ASSUMED = 1
    """None came within the wait window: taken for a negative until further notice."""
    CORRECTED = 2
    """Its first label came after it had been taken for a negative."""
    SETTLED = 3
    """None came within the ttl: a negative for good, which had been assumed to be one before."""
