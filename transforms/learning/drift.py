"""A learner that notices when the world has changed, and reacts."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from contbatch.transforms.learning.detectors import Detector, Level, Signal, Watching
from contbatch.transforms.learning.learner import Around, Arrays, Columns, Learner, prefixed, prepare, unprefixed
from contbatch.transforms.learning.observed import FIELD, Observed
from contbatch.transforms.learning.reactions import Background, Boost, Reaction, Refresh, Replay
from contbatch.transforms.learning.replay_buffer import Rows, due

Floats = NDArray[np.float64]

State = TypeVar("State")

_LEAST = 32
"""Rows on which two models are compared at the least."""


class Rival(NamedTuple, Generic[State]):
    """A new model that learns beside the live one.

    Attributes:
        inner: its state.
        age: rows it was scored on.
        gains: the live model's squared error less its own, on the last rows.
    """

    inner: State
    age: int
    gains: Floats


class Replaying(NamedTuple):
    """Rows since an alarm, which are learned again.

    Attributes:
        rows: what is kept of them.
        left: new rows for which this goes on.
    """

    rows: Rows
    left: int


class DriftState(NamedTuple, Generic[State]):
    """The live model, and what watches it.

    Attributes:
        inner: the live model's state.
        watching: the detectors at work.
        alarms: of each detector, shape (k,).
        takeovers: new models that have taken over.
        rival: the new model, while there is one.
        replaying: rows that are learned again, while there are any.
    """

    inner: State
    watching: tuple[Watching, ...]
    alarms: NDArray[np.int64]
    takeovers: int
    rival: Rival[State] | None
    replaying: Replaying | None


@dataclass(frozen=True)
class DriftAware(Around, Generic[State]):
    """Watches a learner's rows with drift detectors, and reacts to alarms.

    :meth:`step` scores the rows with the weights of before, as a prediction would have, gives the detectors what they
    watch, reacts, and then learns the rows. Each reaction of the list acts on its own, so they can be combined; all
    detectors share them.

    A gate (:class:`~contbatch.transforms.learning.gate.GatePolicy`) takes a sudden change for bad labels at first, and
    rolls back the whole state, detectors and reactions too; what is done about the change serves only when the gate
    has accepted it (``probation`` labels), so give a short probation, or no gate, where real changes are common.

    Attributes:
        learner: the inner learner; its scores are probabilities.
        detectors: what is watched.
        reactions: what an alarm (for :class:`Background` also a warning) leads to; at most one of each kind.

    Raises:
        ValueError: there is no detector or reaction, two reactions are of a kind, or one does not fit the learner.
    """

    learner: Learner[State]
    detectors: tuple[Detector, ...] = (Detector(Signal.LOSS),)
    reactions: tuple[Reaction, ...] = (Background(),)

    def __post_init__(self) -> None:
        for name in ("detectors", "reactions"):
            if not getattr(self, name):
                raise ValueError(f"{name} is empty; give one or more")
        kinds = [type(reaction).__name__ for reaction in self.reactions]
        if len(set(kinds)) < len(kinds):
            raise ValueError(f"reactions are {kinds}; give at most one of each kind")
        for reaction in self.reactions:
            if isinstance(reaction, Boost | Refresh):
                reaction.check(self.learner)

    @property
    def fields(self) -> tuple[str, ...]:
        """The inner learner's columns, the features that are watched, and the key of replayed rows."""
        replay = self._replay
        return tuple(
            dict.fromkeys(
                (
                    *self.learner.fields,
                    *(detector.feature for detector in self.detectors if detector.feature),
                    *([replay.buffer.key_field] if replay and replay.buffer.key_field else []),
                )
            )
        )

    def init(self) -> DriftState[State]:
        """Return the inner learner's first state, watched from the start.

        Raises:
            ImportError: River is not installed.
        """
        watching = tuple(detector.watch() for detector in self.detectors)
        return DriftState(self.learner.init(), watching, np.zeros(len(watching), np.int64), 0, None, None)

    def predict(self, state: DriftState[State], columns: Columns) -> Floats:
        """Return the live model's scores, shape (n,)."""
        return self.learner.predict(state.inner, columns)

    def step(self, state: DriftState[State], columns: Columns, labels: Floats, weights: Floats) -> DriftState[State]:
        """Score, watch, react and learn; rows whose score or label is not finite, or only assumed, are not watched."""
        columns = prepare(self, state, columns)
        learner, scores = self.learner, self.learner.predict(state.inner, columns)
        is_known = np.array(columns.get(FIELD, [Observed.LABEL] * len(labels))) != Observed.ASSUMED
        known = np.where(is_known, labels, math.nan)
        levels = [
            watching.add(detector.values(columns, known, scores).tolist())
            for detector, watching in zip(self.detectors, state.watching, strict=True)
        ]
        state = self._compare(state, columns, known, scores)
        state = self._react(state, np.array(levels))
        inner, rival = learner.step(state.inner, columns, labels, weights), state.rival
        if rival:
            rival = rival._replace(inner=learner.step(rival.inner, columns, labels, weights))
        return self._replay_some(state._replace(inner=inner, rival=rival), columns, labels, weights)

    def _compare(self, state: DriftState[State], columns: Columns, labels: Floats, scores: Floats) -> DriftState[State]:
        """Hold the new model against the live one; let it take over, or drop it."""
        rival, background = state.rival, self._background
        if not rival or not background:
            return state
        gains = (scores - labels) ** 2 - (self.learner.predict(rival.inner, columns) - labels) ** 2
        gains = np.concatenate([rival.gains, gains[np.isfinite(gains)]])[-background.recent :]
        age = rival.age + len(labels)
        if len(gains) >= _LEAST and gains.mean() > background.deviations * gains.std() / math.sqrt(len(gains)):
            return state._replace(inner=rival.inner, takeovers=state.takeovers + 1, rival=None)
        return state._replace(rival=Rival(rival.inner, age, gains) if age < background.patience else None)

    def _react(self, state: DriftState[State], levels: NDArray[np.int64]) -> DriftState[State]:
        background, replay, rival = self._background, self._replay, state.rival
        is_alarm = bool((levels == Level.ALARM).any())
        if is_alarm:
            inner = state.inner
            for reaction in self.reactions:
                if isinstance(reaction, Boost | Refresh):
                    inner = reaction.react(self.learner, inner)
            state = state._replace(inner=inner, alarms=state.alarms + (levels == Level.ALARM))
            if replay:
                state = state._replace(replaying=Replaying(replay.buffer.init(), replay.rows))
        if background and (levels > Level.STEADY).any():
            is_old = rival is not None and rival.age > background.recent  # it knows what was true before the change
            if rival is None or (is_alarm and is_old):
                state = state._replace(rival=Rival(self.learner.init(), 0, np.empty(0)))
        return state

    def _replay_some(
        self, state: DriftState[State], columns: Columns, labels: Floats, weights: Floats
    ) -> DriftState[State]:
        """Learn rows since the alarm again; then keep some of these rows."""
        replay, replaying = self._replay, state.replaying
        if not replay or not replaying:
            return state
        rows, left = replaying
        batch = replay.buffer.draw(rows, due(replay.share, rows.seen, len(labels)))
        inner = state.inner
        if len(batch.labels):
            inner = self.learner.step(inner, batch.columns, batch.labels, batch.weights)
        replay.buffer.add(rows, columns, (*self.fields, *self.prepared), labels, weights)
        left -= len(labels)
        return state._replace(inner=inner, replaying=Replaying(rows, left) if left > 0 else None)

    def export(self, state: DriftState[State]) -> Arrays:
        """Return the models, the detectors and the rows to replay, each under a prefix."""
        rival, replaying, replay = state.rival, state.replaying, self._replay
        arrays = {"alarms": state.alarms.copy(), "takeovers": np.array([state.takeovers])}
        arrays |= prefixed(self.learner.export(state.inner), "inner/")
        for place, watching in enumerate(state.watching):
            arrays |= prefixed(watching.export(), f"detector/{place}/")
        if rival:
            arrays |= prefixed(self.learner.export(rival.inner), "rival/inner/")
            arrays |= {"rival/age": np.array([rival.age]), "rival/gains": rival.gains.copy()}
        if replay and replaying:
            arrays |= prefixed(replay.buffer.export(replaying.rows), "replay/rows/")
            arrays |= {"replay/left": np.array([replaying.left])}
        return arrays

    def load(self, arrays: Arrays) -> DriftState[State]:
        """Return the exported state."""
        if len(arrays["alarms"]) != len(self.detectors):
            raise ValueError(
                f"the arrays are of {len(arrays['alarms'])} detectors, not of {len(self.detectors)}; load them with "
                "the configuration that they were exported with"
            )
        watching = tuple(
            detector.watch().load(unprefixed(arrays, f"detector/{place}/"))
            for place, detector in enumerate(self.detectors)
        )
        rival, replaying, replay = None, None, self._replay
        if self._background and "rival/age" in arrays:
            inner = self.learner.load(unprefixed(arrays, "rival/inner/"))
            rival = Rival(inner, int(arrays["rival/age"][0]), arrays["rival/gains"].copy())
        if replay and "replay/left" in arrays:
            rows = replay.buffer.load(unprefixed(arrays, "replay/rows/"))
            replaying = Replaying(rows, int(arrays["replay/left"][0]))
        live = self.learner.load(unprefixed(arrays, "inner/"))
        return DriftState(live, watching, arrays["alarms"].copy(), int(arrays["takeovers"][0]), rival, replaying)

    @property
    def _background(self) -> Background | None:
        return next(self._of(Background), None)

    @property
    def _replay(self) -> Replay | None:
        return next(self._of(Replay), None)

    def _of(self, kind: type[Any]) -> Iterator[Any]:
        return (reaction for reaction in self.reactions if isinstance(reaction, kind))
