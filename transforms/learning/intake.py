"""Feedback on its way to the learner: it arrives, meets its request, and becomes an example or is refused."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from contbatch.transforms.codecs import Codec
from contbatch.transforms.events import Event, Kind
from contbatch.transforms.learning.join import WHY, Label, Refusal, Terms, Unusable, read_labels
from contbatch.transforms.learning.observed import Observed
from contbatch.transforms.learning.waiting import Due, WaitingRoom
from contbatch.transforms.learning.wire import dump_event, dump_label, example_of, load_event, load_label
from contbatch.transforms.records import Example, Failed, Served


class Intake:
    """Everything that is still to be learned.

    Args:
        terms: how long requests and feedback wait for each other.
        feedback: codec of feedback that is still to be joined; ``None`` where all of it comes as examples.
        model: written on every failure.
    """

    def __init__(self, terms: Terms, feedback: Codec | None, model: str) -> None:
        self._room = WaitingRoom(terms)
        self._feedback = feedback
        self._model = model
        self._arrived: list[Event | Due] = []
        self._met: list[Label] = []
        self._met_at = 0

    @property
    def waiting(self) -> int:
        """Request ids that are known."""
        return len(self._room)

    @property
    def latest(self) -> int | None:
        """The time of what arrived last and waits to be learned, or met its request last."""
        times = [self._arrived[-1].time] if self._arrived else []
        return max([*times, self._met_at] if self._met else times, default=None)

    @property
    def next_due(self) -> int | None:
        """The event time after which :meth:`expire` has something to do."""
        return self._room.next_due

    def arrive(self, event: Event) -> None:
        """Keep a feedback or an example until :meth:`take`."""
        self._arrived.append(event)

    def serve(self, served: Served) -> None:
        """Note a prediction; the labels that waited for it are taken next."""
        self._met += self._room.serve(served)
        self._met_at = served.time

    def expire(self, now: int) -> Iterator[Failed]:
        """Do what fell due before ``now``: labels that waited in vain, requests that had none."""
        for item in self._room.expire(now):
            if isinstance(item, Label):
                yield self.refuse(item.event, Refusal.UNMATCHED, WHY[Refusal.UNMATCHED], item.request_id)
            else:
                self._arrived.append(item)

    def take(self, now: int) -> Iterator[Example | Failed]:
        """Yield what becomes of all that has arrived; what is to be learned comes in the order of its time.

        What arrived meets its request before anything falls due at ``now``: it may have waited for a batch to close.
        """
        labels, self._met = self._met, []
        arrived, self._arrived = self._arrived, []
        examples = []
        for outcome in self._decode([item for item in arrived if isinstance(item, Event)]):
            if isinstance(outcome, Label):
                labels.append(outcome)
            elif isinstance(outcome, Example):
                examples.append(outcome)
            else:
                yield outcome
        for label in labels:
            match = self._room.match(label)
            if isinstance(match, Refusal):
                yield self.refuse(label.event, match, WHY[match], label.request_id)
            else:
                examples += match or ()
        yield from self.expire(now)
        dues = [*(item for item in arrived if isinstance(item, Due)), *self._arrived]
        self._arrived = []
        examples += (example for due in dues if isinstance(due, Due) and (example := self._room.fall_due(due)))
        yield from sorted(examples, key=_when)

    def _decode(self, events: Sequence[Event]) -> Iterator[Label | Example | Failed]:
        for event in events:
            if event.kind is Kind.EXAMPLE:
                yield self._example(event)
        yield from self._labels([event for event in events if event.kind is Kind.FEEDBACK])

    def _example(self, event: Event) -> Example | Failed:
        try:
            return example_of(event)
        except ValueError as error:
            return self.refuse(event, Refusal.REFUSED, str(error))

    def _labels(self, events: Sequence[Event]) -> Iterator[Label | Failed]:
        if not events:
            return
        if self._feedback is None:
            why = "only examples that JoinFeedback joined are learned here; give a codec for plain feedback"
            yield from (self.refuse(event, Refusal.REFUSED, why) for event in events)
            return
        columns, kept, errors = self._feedback.decode([event.payload for event in events])
        for position, why in errors:
            yield self.refuse(events[position], Refusal.REFUSED, why)
        for label in read_labels(columns, [events[position] for position in kept]):
            if isinstance(label, Unusable):
                yield self.refuse(label.event, Refusal.REFUSED, label.why, label.request_id)
            else:
                yield label

    def refuse(self, event: Event, status: Refusal, why: str, request_id: str = "") -> Failed:
        """Return what a feedback that is not learned comes out as."""
        return Failed("feedback", status, why, request_id, event.time, event.row, event.payload, self._model)

    def refuse_example(self, example: Example, why: str) -> Iterator[Failed]:
        """Yield what an example that cannot be learned comes out as: nothing if it stands for no feedback."""
        served = example.served
        if example.observed in (Observed.LABEL, Observed.CORRECTED):
            status = Refusal.REFUSED
            yield Failed(
                "feedback", status, why, served.request_id, example.time, example.row, served.payload, self._model
            )

    def dump(self) -> dict[str, Any]:
        """Return the content as JSON values."""
        return {
            "room": self._room.dump(),
            "arrived": [_dump(item) for item in self._arrived],
            "met": [dump_label(label) for label in self._met],
            "met_at": self._met_at,
        }

    def load(self, content: dict[str, Any]) -> None:
        """Fill an empty intake with what :meth:`dump` returned."""
        self._room.load(content["room"])
        self._arrived = [_load(values) for values in content["arrived"]]
        self._met, self._met_at = [load_label(values) for values in content["met"]], content["met_at"]


def _when(example: Example) -> int:
    return example.time


def _dump(item: Event | Due) -> list[Any]:
    return list(item) if isinstance(item, Due) else dump_event(item)


def _load(values: list[Any]) -> Event | Due:
    return Due(*values) if len(values) == len(Due._fields) else load_event(values)
