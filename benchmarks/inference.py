"""``ContinuousInference`` beside all ways of ``RunInference``: the same handlers, runners and process, in turns.

Costs and pipelines run on Beam's FnApiRunner and on Prism. Where bundles have to be of a given size, or come at given
times, threads drive the DoFns of both as a runner's workers do; ``RunInference``'s then gets each bundle as one batch,
which is its stateless path at its best. The parts are in ``benchmarks/inference_parts``.
"""

from __future__ import annotations

import logging
import sys
import time

from benchmarks.harness import Report
from benchmarks.inference_parts.bundles import bundles_of_one, idle, slow_device
from benchmarks.inference_parts.cost import cost
from benchmarks.inference_parts.decoder import decoder
from benchmarks.inference_parts.driving import progress
from benchmarks.inference_parts.encoder import encoder
from benchmarks.inference_parts.paced import paced
from benchmarks.inference_parts.swaps import swaps

PARTS = (idle, cost, bundles_of_one, slow_device, paced, encoder, decoder, swaps)


def main() -> int:
    """Run everything and return the exit code."""
    logging.disable(logging.WARNING)
    report = Report("inference", ("apache-beam", "torch"))
    for part in PARTS:
        started = time.perf_counter()
        progress(str(part.__doc__))
        part(report)
        progress(f"({time.perf_counter() - started:.0f} s)")
    return report.finish()


if __name__ == "__main__":
    sys.exit(main())
