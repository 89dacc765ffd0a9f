"""Keeping one user's burst from filling an update."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from contbatch.transforms.learning.learner import Around, Arrays, Columns, Learner, prefixed, unprefixed
from contbatch.transforms.learning.statistics import floats

Floats = NDArray[np.float64]

State = TypeVar("State")


class BurstState(NamedTuple, Generic[State]):
    """The stretch that goes on, totals, and the inner learner's state.

    Attributes:
        seen: rows of each key in this stretch, by the key's text.
        rows: rows in this stretch.
        number: of this stretch, its event time over the stretch's length; minus infinity before the first.
        capped: rows that had less than their weight, since the start.
        given: the sum of the weights of all rows.
        learned: the sum of the weights that the inner learner was given.
        inner: the inner learner's state.
    """

    seen: dict[str, int]
    rows: int
    number: float
    capped: int
    given: float
    learned: float
    inner: State


@dataclass(frozen=True)
class BurstCapped(Around, Generic[State]):
    """Lets the first ``most`` rows of a key in a stretch count fully, and those beyond less and less.

    Row j of a key has ``min(1, most / j)`` times its weight: it is learned at once like any other, and 1,000 rows of a
    user count as ``most * (1 + log(1000 / most))`` or so. No row is dropped: every row reaches the inner learner, and
    what was given less what was learned is what the cap took.

    A stretch ends when a row's event time is in a later one, or after ``rows`` rows, whichever is first. So no more
    than ``rows`` keys are remembered. A row from before the stretch counts in it.

    Attributes:
        learner: the inner learner.
        key_field: the column whose bursts are capped, such as the user's id.
        most: rows of a key in a stretch that count fully.
        seconds: length of a stretch in event time; ``math.inf`` for stretches by ``rows`` alone.
        rows: most rows in a stretch.
        time_field: the column of event times, in seconds; not read if ``seconds`` is infinite.

    Raises:
        ValueError: an attribute is outside its range.
    """

    learner: Learner[State]
    key_field: str
    most: int
    seconds: float = math.inf
    rows: int = 10_000
    time_field: str = "event_time"

    def __post_init__(self) -> None:
        for name in ("most", "rows"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)} rows; give 1 or more")
        if not self.seconds > 0:
            raise ValueError(f"seconds is {self.seconds}; give seconds above 0, or math.inf")

    @property
    def fields(self) -> tuple[str, ...]:
        """The inner learner's columns, the key's and, for stretches of event time, the time's."""
        time = (self.time_field,) if math.isfinite(self.seconds) else ()
        return tuple(dict.fromkeys((*self.learner.fields, self.key_field, *time)))

    def init(self) -> BurstState[State]:
        """Return an empty stretch and the inner learner's first state."""
        return BurstState({}, 0, -math.inf, 0, 0.0, 0.0, self.learner.init())

    def predict(self, state: BurstState[State], columns: Columns) -> Floats:
        """Return the inner learner's scores, shape (n,)."""
        return self.learner.predict(state.inner, columns)

    def step(self, state: BurstState[State], columns: Columns, labels: Floats, weights: Floats) -> BurstState[State]:
        """Learn all rows, those beyond the cap with less weight."""
        seen, rows, number, capped, given, learned, inner = state
        numbers = self._numbers(columns, len(labels))
        shares = np.ones(len(labels))
        for row, (value, later) in enumerate(zip(columns[self.key_field], numbers, strict=True)):
            if later > number or rows >= self.rows:
                seen, rows, number = {}, 0, max(number, later)
            key = str(value)
            rows += 1
            seen[key] = count = seen.get(key, 0) + 1
            shares[row] = min(1.0, self.most / count)
        scaled = weights * shares
        return BurstState(
            seen,
            rows,
            number,
            capped + int((shares < 1).sum()),
            given + float(weights.sum()),
            learned + float(scaled.sum()),
            self.learner.step(inner, columns, labels, scaled),
        )

    def export(self, state: BurstState[State]) -> Arrays:
        """Return the stretch, the totals and, under ``inner/``, the inner learner's arrays."""
        return {
            "keys": np.frombuffer(json.dumps(list(state.seen)).encode(), np.uint8),
            "seen": np.array(list(state.seen.values()), np.int64),
            "counts": np.array([state.rows, state.capped]),
            "sums": np.array([state.number, state.given, state.learned]),
            **prefixed(self.learner.export(state.inner), "inner/"),
        }

    def load(self, arrays: Arrays) -> BurstState[State]:
        """Return the exported state."""
        seen = dict(zip(json.loads(arrays["keys"].tobytes()), arrays["seen"].tolist(), strict=True))
        rows, capped = arrays["counts"].tolist()
        number, given, learned = arrays["sums"].tolist()
        return BurstState(seen, rows, number, capped, given, learned, self.learner.load(unprefixed(arrays, "inner/")))

    def _numbers(self, columns: Columns, size: int) -> list[float]:
        """Return the number of each row's stretch; minus infinity where the time is not known or does not count."""
        if not math.isfinite(self.seconds):
            return [-math.inf] * size
        times = floats(columns[self.time_field])
        return np.floor(np.where(np.isfinite(times), times, -math.inf) / self.seconds).tolist()
