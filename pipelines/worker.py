"""A worker process of the pool: Beam's own, which ends when the pool does.

Its log goes to the runner, and its warnings to the pool's output as well.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading


def main() -> None:
    """Serve the runner that the environment names, until it has no more to do or the pool is gone."""
    threading.Thread(target=_end_with_the_pool, daemon=True).start()
    warnings = logging.StreamHandler()
    warnings.setLevel(logging.WARNING)
    logging.basicConfig(format="%(asctime)s %(process)d %(levelname)s %(name)s: %(message)s", handlers=[warnings])

    from apache_beam.runners.worker import sdk_worker_main

    sdk_worker_main.main(sys.argv)


def _end_with_the_pool() -> None:
    """Wait for the end of the input, whose other end the pool holds: it comes even if the pool is killed."""
    while os.read(0, 1):
        pass
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    main()
