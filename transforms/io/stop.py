"""Whether the sources of this process are to come to an end.

Where the workers are threads of the process that runs the pipeline (DirectRunner, Prism, an environment of type
LOOPBACK) this drains it: a source that ends lets everything that was read come out.
"""

from __future__ import annotations

import threading

_STOP = threading.Event()


def stop_sources() -> None:
    """Have every replay of this process end where it is."""
    _STOP.set()


def resume_sources() -> None:
    """Let replays of pipelines to come run again."""
    _STOP.clear()


def stopping() -> bool:
    """Return whether sources are to end."""
    return _STOP.is_set()
