"""The package on real runners, beside Beam's own ways: latency of live streams on Prism and on a Flink cluster.

The source lets each element go when it is due; latency is from then to the sink. All paths have the same device, the
same source and sink, and run one after the other. The parts are in ``benchmarks/runners_parts``.
"""

from __future__ import annotations

import sys

from benchmarks.harness import Report
from benchmarks.runners_parts.latency import on_flink, on_prism

PARTS = (on_prism, on_flink)


def main() -> int:
    """Run everything and return the exit code."""
    return Report("runners", ("apache-beam",)).run(PARTS)


if __name__ == "__main__":
    sys.exit(main())
