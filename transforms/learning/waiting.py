"""The requests that wait for feedback, and the feedback that waits for requests, of a whole model."""

from __future__ import annotations

from heapq import heappop, heappush
from typing import Any, NamedTuple

from contbatch.transforms.events import END_OF_TIME
from contbatch.transforms.learning.join import Label, Refusal, Terms, Ticket
from contbatch.transforms.learning.wire import dump_ticket, load_ticket
from contbatch.transforms.records import Example, Served

_LAST = END_OF_TIME - 1
"""When what would fall due after the end of time does."""


class Due(NamedTuple):
    """That a request had no label when a window of its ended."""

    time: int
    request_id: str


class WaitingRoom:
    """Tickets by request id, and what falls due when.

    Memory is bounded by time: features are kept for a ttl after their request, its id for another one. The caller moves
    time with :meth:`expire` before it serves or matches.

    Args:
        terms: how long they wait.
    """

    def __init__(self, terms: Terms) -> None:
        self._terms = terms
        self._tickets: dict[str, Ticket] = {}
        self._due: list[tuple[int, int, str]] = []
        self._count = 0  # decides between what is due at one instant
        self._featured: list[tuple[int, str]] = []
        self._known: list[tuple[int, str]] = []

    def __len__(self) -> int:
        """Return how many request ids are known."""
        return len(self._tickets)

    @property
    def next_change(self) -> int | None:
        """The event time after which :meth:`expire` has something to do; what is only forgotten may wait a little."""
        ttl = self._terms.ttl_micros
        spare = ttl // 8
        times = [queue[0][0] + spare + many * ttl for many, queue in ((1, self._featured), (2, self._known)) if queue]
        return min([*times, self._due[0][0]] if self._due else times, default=None)

    @property
    def next_due(self) -> int | None:
        """The event time after which :meth:`expire` returns something."""
        return self._due[0][0] if self._due else None

    def serve(self, served: Served) -> list[Label]:
        """Remember a predicted request; returns the labels that were waiting for it, oldest first."""
        request_id = served.request_id
        ticket = self._ticket(request_id, served.time)
        is_first = ticket.served is None
        orphans = ticket.serve(served)
        if is_first:
            heappush(self._featured, (served.time, request_id))
            for due in self._terms.dues(served):
                self._wait(request_id, due)
        return orphans

    def match(self, label: Label) -> list[Example] | Refusal | None:
        """Return what to learn from a label, why nothing, or ``None`` when it now waits for its request."""
        match = self._ticket(label.request_id, label.event.time).match(label, self._terms)
        if match is None:
            self._wait(label.request_id, self._until(label))
        return match

    def _ticket(self, request_id: str, time: int) -> Ticket:
        """Return the ticket of an id at a time; twice the ttl after its request nothing is known of it any more."""
        ticket = self._tickets.setdefault(request_id, Ticket())
        is_over = ticket.served is not None and ticket.served.time + 2 * self._terms.ttl_micros < time
        if is_over and ticket.next_due(self._terms) is None:  # else it still has an example to give
            ticket = self._tickets[request_id] = Ticket()
        return ticket

    def _is_of(self, request_id: str, time: int) -> bool:
        """Return whether the ticket of an id is still that of its request at a time."""
        ticket = self._tickets.get(request_id)
        return ticket is not None and ticket.served is not None and ticket.served.time == time

    def fall_due(self, due: Due) -> Example | None:
        """Return the negative that a request without a label is, once all feedback up to that time is matched."""
        ticket = self._tickets.get(due.request_id)
        return None if ticket is None else ticket.fall_due(due.time, self._terms)

    def expire(self, now: int) -> list[Label | Due]:
        """Return what fell due before ``now``: labels that waited in vain, and requests; forget what is too old."""
        found: list[Label | Due] = []
        ttl = self._terms.ttl_micros
        while self._due and self._due[0][0] < now:
            time, _, request_id = heappop(self._due)
            ticket = self._tickets.get(request_id)
            if ticket is None:
                continue
            found += [label for label in ticket.orphans if self._until(label) < now]
            ticket.orphans = [label for label in ticket.orphans if self._until(label) >= now]
            if ticket.served is None and not ticket.orphans:
                del self._tickets[request_id]
            due = ticket.next_due(self._terms)
            if due is not None and due <= time:
                found.append(Due(time, request_id))
        self._forget(now - ttl)
        return found

    def _forget(self, before: int) -> None:
        featured, known = self._featured, self._known
        while featured and featured[0][0] < before:
            time, request_id = featured[0]
            if self._is_of(request_id, time):
                ticket = self._tickets[request_id]
                if ticket.next_due(self._terms) is not None:
                    break  # its last example is still to be made
                ticket.strip()
                heappush(known, (time, request_id))
            heappop(featured)
        while known and known[0][0] + self._terms.ttl_micros < before:
            time, request_id = heappop(known)
            if self._is_of(request_id, time):
                del self._tickets[request_id]

    def _wait(self, request_id: str, due: int) -> None:
        heappush(self._due, (min(due, _LAST), self._count, request_id))
        self._count += 1

    def _until(self, label: Label) -> int:
        """Return until when a label waits for its request."""
        return min(label.event.time + self._terms.ttl_micros, _LAST)

    def dump(self) -> dict[str, Any]:
        """Return the content as JSON values."""
        return {
            "tickets": {request_id: dump_ticket(ticket) for request_id, ticket in self._tickets.items()},
            "due": sorted(self._due),
            "count": self._count,
            "featured": sorted(self._featured),
            "known": sorted(self._known),
        }

    def load(self, content: dict[str, Any], model: str = "") -> None:
        """Fill an empty room with what :meth:`dump` returned; a label does not know its model."""
        self._tickets = {request_id: load_ticket(values, model) for request_id, values in content["tickets"].items()}
        self._due = [(time, number, request_id) for time, number, request_id in content["due"]]
        self._count = content["count"]
        self._featured = [(time, request_id) for time, request_id in content["featured"]]
        self._known = [(time, request_id) for time, request_id in content["known"]]
