"""Events, labels, served requests and examples as JSON values (bytes as Latin-1 text), for snapshots and state."""

from __future__ import annotations

import json
from typing import Any

from contbatch.transforms.events import Event, Kind
from contbatch.transforms.learning.join import Label, Ticket
from contbatch.transforms.records import Example, Served


def dump_event(event: Event) -> list[Any]:
    """Return an event as JSON values; its model is not kept."""
    return [event.time, event.kind, event.row, event.payload.decode("latin-1")]


def load_event(values: list[Any], model: str = "") -> Event:
    """Return the event that :func:`dump_event` described."""
    time, kind, row, payload = values
    return Event(time, Kind(kind), row, payload.encode("latin-1"), model)


def dump_label(label: Label) -> list[Any]:
    """Return a label as JSON values."""
    return [*dump_event(label.event), *label[1:]]


def load_label(values: list[Any], model: str = "") -> Label:
    """Return the label that :func:`dump_label` described."""
    return Label(load_event(values[:4], model), *values[4:])


def dump_served(served: Served) -> list[Any]:
    """Return a served request as JSON values."""
    return [served.payload.decode("latin-1"), *served[1:]]


def load_served(values: list[Any]) -> Served:
    """Return the served request that :func:`dump_served` described."""
    payload, *rest = values
    return Served(payload.encode("latin-1"), *rest)


def dump_ticket(ticket: Ticket) -> list[Any]:
    """Return a ticket as JSON values."""
    served = None if ticket.served is None else dump_served(ticket.served)
    orphans = [dump_label(label) for label in ticket.orphans]
    flags = [ticket.is_timely, ticket.is_assumed, ticket.is_settled, ticket.is_stripped]
    return [served, orphans, ticket.names, *flags]


def load_ticket(values: list[Any]) -> Ticket:
    """Return the ticket that :func:`dump_ticket` described."""
    served, orphans, *rest = values
    return Ticket(served and load_served(served), [load_label(label) for label in orphans], *rest)


def event_of(example: Example) -> Event:
    """Return an example as an event, so that it travels and is learned as feedback is."""
    payload, *served = example.served
    head = json.dumps([*served, *example[1:]]).encode()
    return Event(example.time, Kind.EXAMPLE, example.row, head + b"\n" + payload, example.served.model)


def example_of(payload: bytes) -> Example:
    """Return the example that :func:`event_of` encoded.

    Raises:
        ValueError: the bytes are no such example.
    """
    head, newline, features = payload.partition(b"\n")
    try:
        values = json.loads(head)
        count = len(Served._fields) - 1
        served, rest = Served(features, *values[:count]), values[count:]
        example = Example(served, *rest)
    except (ValueError, TypeError) as error:
        raise ValueError(f"not an example that JoinFeedback made: {error}") from error
    if not newline:
        raise ValueError("an example without its features")
    return example
