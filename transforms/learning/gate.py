"""Keeps bad updates from serving (first version: no evidence yet, everything is let through)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from contbatch.transforms.learning.learner import Arrays, Columns, Learner

State = TypeVar("State")


@dataclass(frozen=True)
class GatePolicy:
    """When weights serve."""


class Verdict(NamedTuple):
    """What the gate decided."""

    action: str
    step: int
    why: str


class Gate(Generic[State]):
    """Learns, and says which weights serve."""

    def __init__(self, learner: Learner[State], policy: GatePolicy | None, state: State | None = None) -> None:
        self._learner = learner
        self._live = learner.init() if state is None else state
        self.step = 0

    @property
    def serving(self) -> State:
        return self._live

    @property
    def serving_step(self) -> int:
        return self.step

    def learn(
        self, columns: Columns, labels: NDArray[np.float64], weights: NDArray[np.float64], scores: NDArray[np.float64]
    ) -> Verdict | None:
        self._live = self._learner.step(self._live, columns, labels, weights)
        self.step += 1
        return None

    def restore(self, state: State, step: int) -> None:
        self._live, self.step = state, step

    def export(self) -> Arrays:
        arrays: dict[str, Any] = {f"live/{name}": array for name, array in self._learner.export(self._live).items()}
        return arrays | {"step": np.array([self.step])}

    def load(self, arrays: Arrays) -> None:
        self._live = self._learner.load({n.removeprefix("live/"): a for n, a in arrays.items() if n.startswith("live/")})
        self.step = int(arrays["step"][0])
