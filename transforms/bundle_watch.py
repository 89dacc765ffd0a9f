"""Start-up checks in the worker: whether bundles come often enough for the deadline, and whether flags got lost.

An element waits at least until its bundle has begun, and its answer until the bundle has ended. A runner that closes
a bundle once a second (Flink's default) makes a deadline of 50 ms meaningless, and nothing else says so.
"""

from __future__ import annotations

import logging
import math
import statistics
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from apache_beam.options.value_provider import RuntimeValueProvider

from contbatch.transforms.batching.policy import BatchPolicy, TimeDomain

EXPERIMENT = "prism_disable_sdf_split"
"""What every stateful transform of ours adds to the options."""

_LOG = logging.getLogger(__name__)
_SAID: set[str] = set()
_LOCK = threading.Lock()


class BundleWatch:
    """Measures how far apart bundles begin, and says so if that is more than elements may wait.

    Only what follows a bundle of several elements counts: where one element comes now and then, bundles are far apart
    and nothing waits. One verdict, by the median, which a few slow bundles of a starting worker do not move.

    Args:
        allowed: seconds that an element may wait; infinite for no watch.
        clock: seconds.
        gaps: how many are measured.
    """

    def __init__(self, allowed: float, clock: Callable[[], float] = time.monotonic, gaps: int = 20) -> None:
        self._allowed = allowed
        self._clock = clock
        self._left = gaps if allowed < math.inf else 0
        self._gaps: list[float] = []
        self._began = 0.0
        self._several = False

    def start(self) -> str | None:
        """Note that a bundle begins; returns a warning, or ``None``."""
        if not self._left:
            return None
        now = self._clock()
        if self._several:
            self._gaps.append(now - self._began)
            self._left -= 1
        self._began, self._several = now, False
        return None if self._left else self._verdict()

    def finish(self, elements: int) -> None:
        """Note that a bundle of so many elements ends."""
        self._several = elements > 1

    def _verdict(self) -> str | None:
        median = statistics.median(self._gaps)
        if median <= self._allowed:
            return None
        return (
            f"bundles begin {median:.3g} s apart (median of {len(self._gaps)}), and elements are to wait "
            f"{self._allowed:g} s at most: on Flink set --max_bundle_time_mills (its default is 1000, which also "
            "counts when the flag got lost on the way); elsewhere the workers are too slow for the load"
        )


def allowed_wait(policy: BatchPolicy) -> float:
    """Return the seconds of the worker's clock that an element may wait by a policy; infinite if it sets none."""
    delay = policy.max_delay if policy.time_domain is TimeDomain.REAL_TIME else math.inf
    return min(delay, policy.latency_slo or math.inf)


def lost_flags(options: Mapping[str, Any] | None) -> str | None:
    """Return a warning if a worker's options lack what our transforms have added to them, or ``None``.

    Args:
        options: what the runner gave the worker; nothing where it gives none, as to a worker in this process.
    """
    if not options or EXPERIMENT in (options.get("experiments") or ()):
        return None
    return (
        f"the experiment {EXPERIMENT}, which the pipeline had set, has not reached the worker: Prism may lose keyed "
        f"state. Give --experiments={EXPERIMENT} to the runner, and see which other flags got lost"
    )


def check_flags() -> None:
    """Warn, once in a process, if flags have been lost."""
    warn("flags", lost_flags(RuntimeValueProvider.runtime_options))


def warn(kind: str, text: str | None) -> None:
    """Log a warning, if there is one and this process has logged none of its kind: a DoFn has many instances."""
    if text is None:
        return
    with _LOCK:
        if kind in _SAID:
            return
        _SAID.add(kind)
    _LOG.warning("%s", text)
