"""Objects at hand in this process that a runner's state can bring back: a cache, and never more than that.

They are not kept in a DoFn: some runners make one for every bundle, and any instance may serve any key.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from typing import Any

_IDLE = 60.0
"""Seconds after which an object that nobody has asked for is forgotten."""

_SHELF: dict[tuple[str, object], tuple[float, str, Any]] = {}


def take(owner: str, key: object, tag: str) -> Any | None:
    """Return the object of a key and remove it, or ``None`` if it is not as state says.

    Args:
        owner: names the transform.
        key: whose object.
        tag: what the object must have been put back with.
    """
    _, found, kept = _SHELF.pop((owner, key), (0.0, "", None))
    return kept if found == tag else None


def put(owner: str, key: object, tag: str, kept: Any, clock: Callable[[], float] = time.monotonic) -> None:
    """Put an object back, as it is now; those that are idle go."""
    now = clock()
    for other, (used, _, _) in list(_SHELF.items()):
        if now - used > _IDLE:
            _SHELF.pop(other, None)
    _SHELF[owner, key] = now, tag, kept


def extend(chain: str, entry: bytes) -> str:
    """Return the hash over a chain and the next entry of its log: the tag of what an object has seen."""
    return hashlib.sha256(chain.encode() + entry).hexdigest()
