"""Whether a device that has nothing to do waits for more elements to share the next batch."""

from __future__ import annotations

import math
from collections import deque
from statistics import median

_SEEN = 16
"""Arrivals and deliveries that are remembered."""
_GAPS = 3
"""So many usual gaps without an arrival, and no more is taken to come now."""
_SHARE = 0.5
"""Of what waiting saves, what it may cost."""
_PROMPT = 0.3
"""Callers come back if the usual return is below so many mean gaps; of independent arrivals it is 0.69 of one."""


class Hold:
    """Learns how soon bundles give more, and says how long to wait for it.

    Callers that get their answers together come back together: taking the first of them alone would leave the others
    to the next batch, and so on for ever. So a free device waits while more is likely to come at once. Each bundle that
    comes then saves itself the fixed cost of the batch that it would have to wait for; each that waits loses the gap.
    Arrivals that answers do not bring on, as from users who know nothing of each other, are not waited for.

    A gap is the time from one arrival to the next; a return is the time from a delivery to the first arrival after it.
    """

    def __init__(self) -> None:
        self._arrivals: deque[float] = deque(maxlen=_SEEN)
        self._gaps: deque[float] = deque(maxlen=_SEEN)
        self._returns: deque[float] = deque(maxlen=_SEEN)
        self._open: deque[int] = deque(maxlen=_SEEN)
        self._last = -math.inf
        self._delivered = False

    @property
    def peak(self) -> int:
        """Most bundles that were open together at one of the last deliveries."""
        return max(self._open, default=0)

    def arrived(self, now: float) -> None:
        """Learn that elements came."""
        if self._last > -math.inf:
            (self._returns if self._delivered else self._gaps).append(now - self._last)
        self._last, self._delivered = now, False
        self._arrivals.append(now)

    def delivered(self, now: float, bundles: int) -> None:
        """Learn that results were given to some of so many open bundles."""
        self._last, self._delivered = now, True
        self._open.append(bundles)

    def until(self, waiting: int, giving: int, fixed: float) -> float:
        """Return the time up to which it pays to wait; in the past if it does not.

        Args:
            waiting: bundles that wait.
            giving: bundles that are open and may give more.
            fixed: seconds of a batch that do not depend on its size.
        """
        gaps = self._returns if self._delivered else self._gaps
        if not gaps:
            return -math.inf
        gap, missing = median(gaps), giving
        if self._come_back():
            missing += max(0, self.peak - waiting - giving)
        return self._last + _GAPS * gap if max(1, waiting) * gap <= _SHARE * missing * fixed else -math.inf

    def _come_back(self) -> bool:
        """Whether answers bring on arrivals."""
        mean = (self._arrivals[-1] - self._arrivals[0]) / max(1, len(self._arrivals) - 1)
        return bool(self._returns) and median(self._returns) <= _PROMPT * mean
