"""Joins feedback to the request that it answers, with the features as they were served."""

from __future__ import annotations

from collections import deque
from enum import StrEnum
from typing import Any, NamedTuple

from contbatch.transforms.events import Event, Kind


class Refusal(StrEnum):
    """Why a feedback is not learned."""

    DUPLICATE = "duplicate"
    LATE = "late"
    UNMATCHED = "unmatched"
    REFUSED = "refused"


class Served(NamedTuple):
    """A request that was predicted: its encoded features, the score that was given, and who gave it."""

    time: int
    payload: bytes
    score: float
    version: str


class Label(NamedTuple):
    """A decoded feedback and the event that brought it."""

    event: Event
    request_id: str
    value: float
    weight: float


class Join:
    """Requests waiting for their label, and labels waiting for their request.

    A label within ``ttl`` of its request is learned once; a second one is a duplicate. An id is remembered for
    twice the ``ttl``: up to then a first label is late, beyond it nothing is known of the request. A label without
    a request waits ``ttl`` for one. The caller moves time with :meth:`expire` before it serves or matches.

    Args:
        ttl: microseconds.
    """

    def __init__(self, ttl: int) -> None:
        self._ttl = ttl
        self._served: dict[str, Served] = {}
        self._learned: set[str] = set()
        self._served_order: deque[tuple[int, str]] = deque()
        self._orphans: dict[str, list[Label]] = {}
        self._orphan_order: deque[Label] = deque()

    @property
    def next_expiry(self) -> int | None:
        """When the oldest waiting label gives up: the only expiry that puts something out."""
        return self._orphan_order[0].event.time + self._ttl if self._orphan_order else None

    def serve(self, request_id: str, served: Served) -> list[Label]:
        """Remember a predicted request; returns the labels that were waiting for it, oldest first."""
        if request_id not in self._served:
            self._served[request_id] = served
            self._served_order.append((served.time, request_id))
        return self._orphans.pop(request_id, [])

    def match(self, label: Label) -> Served | Refusal | None:
        """Return the request to learn from, why not, or ``None`` when the label now waits for its request."""
        served = self._served.get(label.request_id)
        if served is None:
            self._orphans.setdefault(label.request_id, []).append(label)
            self._orphan_order.append(label)
            return None
        if label.request_id in self._learned:
            return Refusal.DUPLICATE
        if label.event.time > served.time + self._ttl:
            return Refusal.LATE
        self._learned.add(label.request_id)
        return served

    def expire(self, now: int) -> list[Label]:
        """Forget what is older than allowed at ``now``; returns the labels that waited in vain."""
        while self._served_order and self._served_order[0][0] + 2 * self._ttl < now:
            _, request_id = self._served_order.popleft()
            del self._served[request_id]
            self._learned.discard(request_id)
        unmatched = []
        while self._orphan_order and self._orphan_order[0].event.time + self._ttl < now:
            label = self._orphan_order.popleft()
            if self._is_waiting(label):
                self._orphans[label.request_id].remove(label)
                unmatched.append(label)
        return unmatched

    def _is_waiting(self, label: Label) -> bool:
        return any(other is label for other in self._orphans.get(label.request_id, ()))

    def dump(self) -> dict[str, Any]:
        """Return the content as JSON values (bytes as Latin-1 text)."""
        return {
            "served": [
                [
                    request_id,
                    time,
                    self._served[request_id].payload.decode("latin-1"),
                    *self._served[request_id][2:],
                ]
                for time, request_id in self._served_order
            ],
            "learned": sorted(self._learned),
            "orphans": [dump_label(label) for label in self._orphan_order if self._is_waiting(label)],
        }

    def load(self, content: dict[str, Any]) -> None:
        """Fill an empty join with what :meth:`dump` returned."""
        for request_id, time, payload, *answer in content["served"]:
            self.serve(request_id, Served(time, payload.encode("latin-1"), *answer))
        self._learned = set(content["learned"])
        for label in map(load_label, content["orphans"]):
            self.match(label)


def dump_label(label: Label) -> list[Any]:
    """Return a label as JSON values."""
    return [*dump_event(label.event), label.request_id, label.value, label.weight]


def load_label(values: list[Any]) -> Label:
    """Return the label that :func:`dump_label` described."""
    return Label(load_event(values[:4]), *values[4:])


def dump_event(event: Event) -> list[Any]:
    """Return an event as JSON values."""
    return [event.time, event.kind, event.row, event.payload.decode("latin-1")]


def load_event(values: list[Any]) -> Event:
    """Return the event that :func:`dump_event` described."""
    time, kind, row, payload = values
    return Event(time, Kind(kind), row, payload.encode("latin-1"))
