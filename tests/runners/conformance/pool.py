"""A pool of workers in a process of its own, whose workers are threads: a job starts in no time."""

from __future__ import annotations

import sys
import threading

from apache_beam.runners.worker.worker_pool_main import BeamFnExternalWorkerPoolServicer

if __name__ == "__main__":
    _, server = BeamFnExternalWorkerPoolServicer.start(port=int(sys.argv[1]))
    threading.Event().wait()
