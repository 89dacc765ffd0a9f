"""How many requests this process has answered: what a progress bar shows while a job runs in the same process."""

from __future__ import annotations

import threading

_lock = threading.Lock()
_done = 0


def add(count: int) -> None:
    """Count answered requests."""
    global _done  # noqa: PLW0603
    with _lock:
        _done += count


def done() -> int:
    """Return the requests answered in this process since it started."""
    return _done
