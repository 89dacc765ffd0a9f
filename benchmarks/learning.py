"""Online learning beside Vowpal Wabbit, River, scikit-learn and PyTorch: accuracy, speed and what is promised.

Accuracy is on MovieLens 100k by time, with scores that were given before the label was learned. The parts are in
``benchmarks/learning_parts``.
"""

from __future__ import annotations

import sys

from benchmarks.harness import Report
from benchmarks.learning_parts.accuracy import any_batch_size, deadline_and_one_by_one
from benchmarks.learning_parts.bad_updates import bad_updates
from benchmarks.learning_parts.freshness import freshness
from benchmarks.learning_parts.kills import kills
from benchmarks.learning_parts.speed import speed
from benchmarks.learning_parts.staleness import staleness
from benchmarks.learning_parts.weights import importance, negatives

PARTS = (
    speed,
    freshness,
    any_batch_size,
    deadline_and_one_by_one,
    kills,
    bad_updates,
    staleness,
    importance,
    negatives,
)


def main() -> int:
    """Run everything and return the exit code."""
    return Report("learning", ("apache-beam", "torch")).run(PARTS)


if __name__ == "__main__":
    sys.exit(main())
