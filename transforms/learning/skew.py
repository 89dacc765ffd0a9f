"""Whether features are learned as they were served: a fingerprint of each row, taken on both sides.

Training on features that differ from those at serving is a silent failure: the model learns, its loss looks well, and
it predicts on something else. Here both sides run the same code on what was kept with the request, so a difference
means that this has been broken: by a codec or a preprocessing that was changed while requests were waiting for their
labels, by an example that went through a store which rounds, or by features that were computed anew.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

_TOLERATED = 1e-3
"""Share of rows that may differ while all is well; the test is against ten times as many."""


@dataclass
class SkewMonitor:
    """Counts rows whose features differ from those served, and trips when it is no accident.

    The test is Page's, as in :class:`~contbatch.transforms.learning.evidence.Evidence`, of one row in a thousand
    against one in a hundred: each row that differs is worth ``log(10)`` nats, each other one costs .009. It trips at
    ``alarm`` nats: on the fourth row if all differ, after some 600 if one in a hundred does.

    Attributes:
        alarm: nats.
        rows: compared so far.
        skewed: rows that differed.
        level: evidence, in nats.
        has_tripped: whether the level has reached the alarm.
    """

    alarm: float = 8.0
    rows: int = 0
    skewed: int = 0
    level: float = 0.0
    has_tripped: bool = False

    def compare(self, served: Iterable[int], learned: Iterable[int]) -> bool:
        """Compare fingerprints row by row; returns whether it trips now, for the first time.

        A row that was served without one, 0, is not compared.
        """
        tripped = self.has_tripped
        for ours, theirs in zip(served, learned, strict=True):
            if not ours:
                continue
            self.rows += 1
            self.skewed += ours != theirs
            self.level = max(0.0, self.level + (_DIFFERENT if ours != theirs else _EQUAL))
            self.has_tripped = self.has_tripped or self.level >= self.alarm
        return self.has_tripped and not tripped


_DIFFERENT = math.log(10)
_EQUAL = math.log((1 - 10 * _TOLERATED) / (1 - _TOLERATED))
