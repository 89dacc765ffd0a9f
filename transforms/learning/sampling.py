"""Learning a part of the negatives, with scores that are corrected for the others."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import blake2b
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from contbatch.transforms.learning.learner import (
    Arrays,
    Columns,
    Learner,
    prefixed,
    prepare,
    prepared_fields,
    select,
    unprefixed,
)
from contbatch.transforms.learning.observed import FIELD

Floats = NDArray[np.float64]

State = TypeVar("State")


@dataclass(frozen=True)
class Downsampled(Generic[State]):
    """Lets a learner see every positive and a part of the negatives (labels below 0.5).

    Which negatives are learned is decided by a hash of their id, so a replay learns the same ones. The inner learner
    finds the odds of a positive too high by ``1 / rate``; a prediction takes that back by adding ``log(rate)`` to
    the logit (King and Zeng, 2001; He et al., 2014). The scores are then calibrated as if all rows were learned.

    The state is the inner learner's. The rate is exported with it, because the correction is right only for weights
    that were learned at this rate.

    Attributes:
        learner: the inner learner; its scores are probabilities.
        rate: part of the negatives to learn, above 0 and at most 1.
        id_field: the column that decides, different in every row.

    Raises:
        ValueError: the rate is outside its range.
    """

    learner: Learner[State]
    rate: float
    id_field: str = "request_id"

    def __post_init__(self) -> None:
        if not 0 < self.rate <= 1:
            raise ValueError(f"rate is {self.rate}; give a number above 0 and at most 1")

    @property
    def fields(self) -> tuple[str, ...]:
        """The inner learner's columns and the id."""
        return tuple(dict.fromkeys((*self.learner.fields, self.id_field)))

    def init(self) -> State:
        """Return the inner learner's first state."""
        return self.learner.init()

    @property
    def prepared(self) -> tuple[str, ...]:
        """What the inner learner prepares."""
        return prepared_fields(self.learner)

    def prepare(self, state: State, columns: Columns) -> Columns:
        """Return what the inner learner prepares."""
        columns = prepare(self.learner, state, columns)
        return {name: columns[name] for name in self.prepared}

    def predict(self, state: State, columns: Columns) -> Floats:
        """Return the inner learner's probability, corrected: ``p / (p + (1 - p) / rate)``, shape (n,)."""
        score = self.learner.predict(state, columns)
        return score / (score + (1 - score) / self.rate)

    def step(self, state: State, columns: Columns, labels: Floats, weights: Floats) -> State:
        """Learn the positives and the chosen negatives, in their order."""
        kept = [
            row
            for row, (value, label) in enumerate(zip(columns[self.id_field], labels.tolist(), strict=True))
            if label >= 0.5 or uniform(value) < self.rate
        ]
        if not kept:
            return state
        columns = prepare(self, state, columns)
        names = (*self.learner.fields, *self.prepared, *([FIELD] if FIELD in columns else []))
        part = select({name: columns[name] for name in names}, kept)
        return self.learner.step(state, part, labels[kept], weights[kept])

    def export(self, state: State) -> Arrays:
        """Return the rate and, under ``inner/``, the inner learner's arrays."""
        return {"rate": np.array([self.rate]), **prefixed(self.learner.export(state), "inner/")}

    def load(self, arrays: Arrays) -> State:
        """Return the exported state."""
        rate = float(arrays["rate"][0]) if "rate" in arrays else None
        if rate != self.rate:
            raise ValueError(
                f"the arrays were learned at rate {rate}, not {self.rate}: their scores would be corrected wrongly; "
                "load them with that rate, or learn from the start"
            )
        return self.learner.load(unprefixed(arrays, "inner/"))


def uniform(value: object) -> float:
    """Return a number from 0 to below 1 that depends on the text of ``value`` alone."""
    digest = blake2b(str(value).encode(), digest_size=8, person=b"downsample").digest()
    return (int.from_bytes(digest, "big") >> 11) / (1 << 53)  # the 53 bits that a float holds
