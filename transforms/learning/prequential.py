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
from dataclasses import asdict
from typing import Generic, NamedTuple, TypeVar

import numpy as np

from contbatch.transforms.batching import BatchFormer, Reason
from contbatch.transforms.events import END_OF_TIME, MICROS, Event, Kind
from contbatch.transforms.learning.config import Order, PrequentialConfig
from contbatch.transforms.learning.features import fingerprints, give_back, keep
from contbatch.transforms.learning.gate import Gate
from contbatch.transforms.learning.intake import Intake
from contbatch.transforms.learning.join import Refusal
from contbatch.transforms.learning.learner import Arrays, Columns, prefixed, prepare, unprefixed
from contbatch.transforms.learning.lineage import Lineage, Version
from contbatch.transforms.learning.manifest import Restore, ordered
from contbatch.transforms.learning.observed import Observed
from contbatch.transforms.learning.skew import SkewMonitor
from contbatch.transforms.learning.wire import dump_event, load_event, served_of
from contbatch.transforms.records import Example, Failed, Learned, Prediction, Served

State = TypeVar("State")


class Restored(NamedTuple):
    """The gate has put older weights in the place of those that served.

    Attributes:
        restore: which version that is, and the epoch that it ends.
        why: in words.
    """

    restore: Restore
    why: str


class Skewed(NamedTuple):
    """Features are not learned as they were served, and it is no accident.

    Attributes:
        rows: learned so far.
        skewed: of these, how many differed.
    """

    rows: int
    skewed: int


Output = Prediction | Learned | Failed | Version | Restored | Skewed

_JOINED = (Kind.SERVED, Kind.EXAMPLE)

_STANDINGS = tuple(standing.name.lower() for standing in Observed)


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
        self._intake = Intake(config.terms, config.feedback, model)
        self._skew = SkewMonitor()
        self._is_served_elsewhere = False
        self._frontier = self._complete = -END_OF_TIME

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
    def waiting(self) -> int:
        """Request ids that wait for feedback, or are remembered for what comes late or twice."""
        return self._intake.waiting

    @property
    def next_time(self) -> int | None:
        """The event time after which the loop has something to do even if no event comes."""
        if self._batch.closes_at is not None:  # all else waits for the batch
            return self._batch.closes_at
        times = (self._intake.next_due, self._intake.latest)
        return min((time for time in times if time is not None), default=None)

    def advance(self, events: Sequence[Event], upto: int, is_complete: bool = True) -> Iterator[Output]:
        """Process sorted events and all that falls due before ``upto``; the iterator must be exhausted.

        Args:
            events: in :class:`Event` order, every one before ``upto``. One before :attr:`frontier` is late, but for
                what was served or joined elsewhere: whoever did that knew of it in time.
            upto: the new frontier, in microseconds; :data:`END_OF_TIME` ends the stream and publishes.
            is_complete: whether nothing before ``upto`` is still to come. In the order of arrival that is not so while
                events arrive: a single wrong time would have all that waits fall due.

        Yields:
            predictions, learned and failed events, and versions to publish, in the order in which they happened.
        """
        if is_complete:
            self._complete = max(self._complete, upto)
        for event in events:
            if event.time < self._frontier and self._config.order is Order.EVENT_TIME and event.kind not in _JOINED:
                yield self._late(event)
                continue
            yield from self._pass(event.time, event.kind)
            self._is_served_elsewhere |= event.kind in _JOINED
            if event.kind is Kind.SERVED:
                yield from self._note(event)
                continue
            if event.kind is not Kind.REQUEST:
                self._intake.arrive(event)
                continue
            self._batch.add(event, event.time)
            if self._batch.is_full:
                yield from self._close(event.time, Reason.SIZE)
        self._frontier = max(self._frontier, upto)
        yield from self._pass(upto, Kind.REQUEST, is_last=True)
        if upto == END_OF_TIME and self._is_due(1, math.inf):
            yield self._version()

    def _pass(self, time: int, kind: Kind, is_last: bool = False) -> Iterator[Output]:
        """Do what is due before an event of this kind at this time, in the order of its time.

        In the order of arrival, all that has come together is learned together.
        """
        learns = is_last or self._config.order is Order.EVENT_TIME
        while True:
            closes_at, due, arrived = self._batch.closes_at, self._intake.next_due, self._intake.latest
            if closes_at is not None:  # all else waits for the batch: its requests may be waited for
                if closes_at > time or (closes_at == time and kind is Kind.REQUEST):
                    return
                yield from self._close(closes_at, Reason.DELAY)
            elif learns and arrived is not None and arrived < (time if due is None else min(due, time)):
                yield from self._learn(arrived)
            elif due is not None and due < self._known(time):
                yield from self._intake.expire(due + 1)
            else:
                return

    def _known(self, time: int) -> int:
        """Return the time before which nothing is still to come, at a time that has been reached."""
        return time if self._config.order is Order.EVENT_TIME else min(time, self._complete)

    def _note(self, event: Event) -> Iterator[Failed]:
        """Note a request that was predicted elsewhere."""
        try:
            self._intake.serve(served_of(event))
        except ValueError as error:
            yield self._failed(event, str(error))

    def _close(self, time: int, reason: Reason) -> Iterator[Output]:
        """Predict the open batch, then learn what arrived while it was open."""
        config, events = self._config, self._batch.take()
        decoded, kept, errors = config.requests.decode([event.payload for event in events])
        for position, why in errors:
            yield self._failed(events[position], why)
        if kept:
            scores, step, columns = self._gate.predict(decoded)
            version = self._lineage.name(step)
            rows = zip(columns["request_id"], kept, scores.tolist(), keep(config.learner, columns), strict=True)
            for given_id, position, score, kept_with in rows:
                request_id, event = str(given_id), events[position]
                self._intake.serve(
                    Served(event.payload, request_id, event.time, score, version, *kept_with, self._model)
                )
                yield Prediction(request_id, score, version, len(kept), reason, event.time, time, self._model)
        yield from self._learn(time)

    def _learn(self, time: int) -> Iterator[Output]:
        """Learn all that has arrived."""
        examples = []
        for outcome in self._intake.take(self._known(time)):
            if isinstance(outcome, Example):
                examples.append(outcome)
            else:
                yield outcome
        if not examples:
            return
        columns, kept, errors = self._config.requests.decode([example.served.payload for example in examples])
        for position, why in errors:  # they decoded when they were served: the codec is another one now
            yield from self._intake.refuse_example(examples[position], why)
        if kept:
            yield from self._update(columns, [examples[position] for position in kept], time)

    def _update(self, columns: Columns, examples: Sequence[Example], time: int) -> Iterator[Output]:
        config, lineage = self._config, self._lineage
        columns = prepare(config.learner, self._gate.serving, give_back(config.learner, columns, examples))
        marks = [example.served.fingerprint for example in examples]
        if self._skew.compare(marks, fingerprints(config.learner, columns)):
            yield Skewed(self._skew.rows, self._skew.skewed)
        labels = np.array([example.label for example in examples])
        weights = np.array([example.weight for example in examples])
        scores = np.array([example.served.score for example in examples])
        # Older weights may have served elsewhere, and say nothing of these.
        judged = np.full(len(scores), math.nan) if self._is_served_elsewhere else scores
        verdict = self._gate.learn(columns, labels, weights, judged)
        served_by = [example.served.version for example in examples]
        assumed = [example.observed == Observed.ASSUMED for example in examples]
        lineage.learned(labels.tolist(), weights.tolist(), scores.tolist(), served_by, time, assumed)
        version = lineage.name()
        for served, label, weight, name, observed, given, _ in examples:
            yield Learned(
                served.request_id,
                label,
                weight,
                served.score,
                served.version,
                version,
                served.time,
                given,
                self._model,
                name,
                _STANDINGS[observed],
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

    def is_behind(self, newest: str) -> bool:
        """Return whether there is a version that this loop has not come to."""
        return ordered(newest) > (self._lineage.epoch, self._lineage.step)

    def branch(self, epoch: int) -> None:
        """Name versions by a later epoch from here on."""
        self._lineage.epoch = epoch

    def _late(self, event: Event) -> Failed:
        why = f"arrived when everything up to event time {self._frontier / MICROS:.6f} s was already done"
        if event.kind is Kind.FEEDBACK:
            return self._intake.refuse(event, Refusal.LATE, why)
        return self._failed(event, why)

    def _failed(self, event: Event, why: str) -> Failed:
        return Failed("request", "failed", why, "", event.time, event.row, event.payload, self._model)

    def snapshot(self) -> Arrays:
        """Return all that :meth:`load` needs to go on exactly from here."""
        content = {
            "batch": [dump_event(event) for event in self._batch.elements],
            "intake": self._intake.dump(),
            "skew": asdict(self._skew),
            "elsewhere": self._is_served_elsewhere,
            "lineage": self._lineage.dump(),
            "frontier": self._frontier,
            "complete": self._complete,
        }
        arrays = prefixed(self._gate.export(), _GATE)
        return arrays | {"loop": np.frombuffer(json.dumps(content).encode(), np.uint8)}

    def load(self, arrays: Arrays) -> None:
        """Fill a fresh loop with what :meth:`snapshot` returned."""
        content = json.loads(arrays["loop"].tobytes())
        for event in map(load_event, content["batch"]):
            self._batch.add(event, event.time)
        self._intake.load(content["intake"])
        self._skew = SkewMonitor(**content["skew"])
        self._is_served_elsewhere = content["elsewhere"]
        self._lineage.load(content["lineage"])
        self._frontier, self._complete = content["frontier"], content["complete"]
        self._gate.load(unprefixed(arrays, _GATE))


_GATE = "gate/"
