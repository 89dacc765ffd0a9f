"""The serial form of online learning: predict, then learn, in event-time order.

Prequential ("predictive sequential") is Dawid's (1984) word for a model that is scored on each example before
it learns it. Here the examples come as a stream of requests and, later, their feedback. The loop is a state
machine over the *ordered* events: it knows no clock and no watermark, so a backtest over a file and a live job
that is fed the same events in pieces put out the same bytes.

Law of the loop: **a prediction uses exactly the feedback given before its micro-batch opened.** Feedback that
arrives while a batch is open waits until the batch is predicted; no request is ever scored with a label that is
later than itself. The price is at most ``max_delay`` of freshness (rejected: learning up to the moment of release;
on MovieLens 100k with a 5 s deadline the scores agree to four digits, and the law would be lost).
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from typing import Generic, NamedTuple, TypeVar

import numpy as np

from contbatch.transforms.batching import BatchFormer, Reason
from contbatch.transforms.events import END_OF_TIME, MICROS, Event, Kind
from contbatch.transforms.learning.config import Order, PrequentialConfig
from contbatch.transforms.learning.gate import Gate
from contbatch.transforms.learning.join import Join, Label, Refusal, Served, dump_event, load_event
from contbatch.transforms.learning.learner import Arrays, Columns, prefixed, unprefixed
from contbatch.transforms.learning.lineage import Lineage, Version
from contbatch.transforms.learning.manifest import Restore
from contbatch.transforms.records import Failed, Learned, Prediction

State = TypeVar("State")


class Restored(NamedTuple):
    """The gate has put older weights in the place of those that served.

    Attributes:
        restore: which version that is, and the epoch that it ends.
        why: in words.
    """

    restore: Restore
    why: str


Output = Prediction | Learned | Failed | Version | Restored


class PrequentialLoop(Generic[State]):
    """Predicts micro-batches of requests and learns their feedback; see the module's text for its law.

    Args:
        config: what to do.
        model: written on every output.
    """

    def __init__(self, config: PrequentialConfig[State], model: str = "") -> None:
        self._config = config
        self._model = model
        self._gate: Gate[State] = Gate(config.learner, config.gate)
        self._lineage = Lineage()
        self._batch: BatchFormer[Event] = BatchFormer(config.policy)
        self._arrived: list[Event] = []
        self._join = Join(round(config.ttl * MICROS))
        self._frontier = -END_OF_TIME

    @property
    def epoch(self) -> int:
        """The first half of its versions; a restore begins another one."""
        return self._lineage.epoch

    @property
    def state(self) -> State:
        """The learner's state that serves."""
        return self._gate.serving

    @property
    def frontier(self) -> int:
        """Everything before this event time is done; what still comes from there is late."""
        return self._frontier

    @property
    def next_time(self) -> int | None:
        """The event time after which the loop has something to do even if no event comes."""
        times = [self._batch.closes_at, self._join.next_expiry]
        if self._batch.closes_at is None and self._arrived:  # else they wait for the batch
            times.append(self._arrived[-1].time)
        return min((time for time in times if time is not None), default=None)

    def advance(self, events: Sequence[Event], upto: int) -> Iterator[Output]:
        """Process sorted events and all that falls due before ``upto``; the iterator must be exhausted.

        Args:
            events: in :class:`Event` order, every one before ``upto``. One before :attr:`frontier` is late.
            upto: the new frontier, in microseconds; :data:`END_OF_TIME` ends the stream and publishes.

        Yields:
            predictions, learned and failed events, and versions to publish, in the order in which they happened.
        """
        for event in events:
            if event.time < self._frontier and self._config.order is Order.EVENT_TIME:
                yield self._late(event)
                continue
            yield from self._pass(event.time, event.kind)
            if event.kind is Kind.FEEDBACK:
                self._arrived.append(event)
                continue
            self._batch.add(event, event.time)
            if self._batch.is_full:
                yield from self._close(event.time, Reason.SIZE)
        self._frontier = max(self._frontier, upto)
        yield from self._pass(upto, Kind.REQUEST)
        if upto == END_OF_TIME and self._is_due(1, math.inf):
            yield self._version()

    def _pass(self, time: int, kind: Kind) -> Iterator[Output]:
        """Do what is due before an event of this kind at this time."""
        closes_at = self._batch.closes_at
        if closes_at is not None and (closes_at < time or (closes_at == time and kind is Kind.FEEDBACK)):
            yield from self._close(closes_at, Reason.DELAY)
        if self._batch.closes_at is None and self._arrived and self._arrived[-1].time < time:
            yield from self._learn(self._arrived[-1].time, [])
        yield from self._expire(time)

    def _expire(self, time: int) -> Iterator[Failed]:
        for label in self._join.expire(time):
            yield self._refused(label.event, Refusal.UNMATCHED, "no request within the ttl", label.request_id)

    def _close(self, time: int, reason: Reason) -> Iterator[Output]:
        """Predict the open batch, then learn what arrived while it was open."""
        events = self._batch.take()
        columns, kept, errors = self._config.requests.decode([event.payload for event in events])
        yield from self._expire(time)
        for position, why in errors:
            yield self._failed(events[position], why)
        matched: list[Label] = []
        if kept:
            scores, step = self._gate.predict(columns)
            version = self._lineage.name(step)
            for request_id, position, score in zip(columns["request_id"], kept, scores.tolist(), strict=True):
                event = events[position]
                served = Served(event.time, event.payload, score, version)
                matched += self._join.serve(request_id, served)
                yield Prediction(request_id, score, version, len(kept), reason, event.time, time, self._model)
        yield from self._learn(time, matched)

    def _learn(self, time: int, labels: list[Label]) -> Iterator[Output]:
        """Learn these labels, which have met their request, and all feedback that has arrived."""
        events, self._arrived = self._arrived, []
        for outcome in self._decode_feedback(events):
            if isinstance(outcome, Label):
                labels.append(outcome)
            else:
                yield outcome
        yield from self._expire(time)
        learnable = []
        for label in labels:
            match = self._join.match(label)
            if isinstance(match, Served):
                learnable.append((label, match))
            elif match is not None:
                yield self._refused(label.event, match, _WHY[match], label.request_id)
        if learnable:
            yield from self._update(learnable, time)

    def _decode_feedback(self, events: Sequence[Event]) -> Iterator[Label | Failed]:
        if not events:
            return
        columns, kept, errors = self._config.feedback.decode([event.payload for event in events])
        for position, why in errors:
            yield self._refused(events[position], Refusal.REFUSED, why)
        weights = columns.get("weight", [1.0] * len(kept))
        for request_id, value, weight, position in zip(
            columns["request_id"], columns["label"], weights, kept, strict=True
        ):
            if not 0 <= value <= 1 or not (weight >= 0 and math.isfinite(weight)):
                why = f"label {value!r} with weight {weight!r}; a label is 0 to 1, a weight finite and 0 or more"
                yield self._refused(events[position], Refusal.REFUSED, why, request_id)
            else:
                yield Label(events[position], request_id, float(value), float(weight))

    def _update(self, learnable: Sequence[tuple[Label, Served]], time: int) -> Iterator[Output]:
        config, lineage = self._config, self._lineage
        columns = config.requests.decode([served.payload for _, served in learnable]).columns
        labels = np.array([label.value for label, _ in learnable])
        weights = np.array([label.weight for label, _ in learnable])
        scores = np.array([served.score for _, served in learnable])
        verdict = self._gate.learn(columns, labels, weights, scores)
        served_by = [served.version for _, served in learnable]
        lineage.learned(labels.tolist(), weights.tolist(), scores.tolist(), served_by, time)
        version = lineage.name()
        for (event, request_id, value, weight), served in learnable:
            yield Learned(
                request_id, value, weight, served.score, served.version, version, served.time, event.time, self._model
            )
        if verdict is not None:
            lineage.judged(f"{verdict.action}: {verdict.why}")
            if verdict.action == "rollback":
                yield Restored(lineage.roll_back(verdict.step), verdict.why)
            yield self._version()
        elif self._is_due(config.publish_every, config.publish_seconds * MICROS) and self._is_finite(columns):
            yield self._version()

    def _is_finite(self, columns: Columns) -> bool:
        """Return whether the weights give scores; where they do not, the gate will find it."""
        return bool(np.isfinite(self._config.learner.predict(self._gate.serving, columns)).all())

    def _is_due(self, examples: int, micros: float) -> bool:
        """Return whether there is something to publish: not while older weights serve in the place of the live ones."""
        return self._gate.serving_step == self._gate.step and self._lineage.is_due(examples, micros)

    def _version(self) -> Version:
        return self._lineage.version(self._config.learner.export(self._gate.serving), self._gate.serving_step)

    def restore(self, restore: Restore, arrays: Arrays | None) -> Version:
        """Go on from another version, which an operator has chosen; returns it as the first of its epoch.

        Args:
            restore: the version.
            arrays: its weights; ``None`` for those before all learning.
        """
        learner = self._config.learner
        self._lineage.restore(restore)
        self._gate.restore(learner.init() if arrays is None else learner.load(arrays), self._lineage.step)
        return self._version()

    def _late(self, event: Event) -> Failed:
        why = f"arrived when everything up to event time {self._frontier / MICROS:.6f} s was already done"
        if event.kind is Kind.FEEDBACK:
            return self._refused(event, Refusal.LATE, why)
        return self._failed(event, why)

    def _failed(self, event: Event, why: str) -> Failed:
        return Failed("request", "failed", why, "", event.time, event.row, event.payload, self._model)

    def _refused(self, event: Event, status: Refusal, why: str, request_id: str = "") -> Failed:
        return Failed("feedback", status, why, request_id, event.time, event.row, event.payload, self._model)

    def snapshot(self) -> Arrays:
        """Return all that :meth:`load` needs to go on exactly from here."""
        content = {
            "batch": [dump_event(event) for event in self._batch.elements],
            "arrived": [dump_event(event) for event in self._arrived],
            "join": self._join.dump(),
            "lineage": self._lineage.dump(),
            "frontier": self._frontier,
        }
        arrays = prefixed(self._gate.export(), _GATE)
        return arrays | {"loop": np.frombuffer(json.dumps(content).encode(), np.uint8)}

    def load(self, arrays: Arrays) -> None:
        """Fill a fresh loop with what :meth:`snapshot` returned."""
        content = json.loads(arrays["loop"].tobytes())
        for event in map(load_event, content["batch"]):
            self._batch.add(event, event.time)
        self._arrived = [load_event(values) for values in content["arrived"]]
        self._join.load(content["join"])
        self._lineage.load(content["lineage"])
        self._frontier = content["frontier"]
        self._gate.load(unprefixed(arrays, _GATE))


_GATE = "gate/"

_WHY = {
    Refusal.DUPLICATE: "this request's label is already learned",
    Refusal.LATE: "later than the ttl after its request",
}
