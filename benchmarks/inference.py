"""``ContinuousInference`` beside all ways of ``RunInference``: the same handlers, runners and process, in turns.

Costs and pipelines run on Beam's FnApiRunner and on Prism. Where bundles have to be of a given size, or come at given
times, threads drive the DoFns of both as a runner's workers do; ``RunInference``'s then gets each bundle as one batch,
which is its stateless path at its best. The parts are in ``benchmarks/inference_parts``.
"""

from __future__ import annotations

import sys

from benchmarks.harness import Report
from benchmarks.inference_parts.bundles import bundles_of_one, idle, slow_device
from benchmarks.inference_parts.cost import cost
from benchmarks.inference_parts.decoder import decoder
from benchmarks.inference_parts.encoder import encoder
from benchmarks.inference_parts.paced import paced
from benchmarks.inference_parts.swaps import swaps

PARTS = (idle, cost, bundles_of_one, slow_device, paced, encoder, decoder, swaps)


def main() -> int:
    """Run everything and return the exit code."""
    return Report("inference", ("apache-beam", "torch")).run(PARTS)


if __name__ == "__main__":
    sys.exit(main())
