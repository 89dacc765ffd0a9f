"""Events, labels, served requests and examples as JSON values (bytes as Latin-1 text), for snapshots and state."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from contbatch.transforms.events import Event, Kind
from contbatch.transforms.learning.join import Label, Ticket, is_label
from contbatch.transforms.learning.manifest import ordered
from contbatch.transforms.learning.observed import Observed
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


def load_ticket(values: list[Any], model: str = "") -> Ticket:
    """Return the ticket that :func:`dump_ticket` described."""
    served, orphans, *rest = values
    return Ticket(served and load_served(served), [load_label(label, model) for label in orphans], *rest)


def event_of(item: Served | Example) -> Event:
    """Return a served request or an example as an event, as :class:`~contbatch.transforms.OnlineUpdate` takes it."""
    if isinstance(item, Example):
        content = _joined(item.served, item[1:])
        return Event(item.time, Kind.EXAMPLE, item.row, content, item.served.model)
    return Event(item.time, Kind.SERVED, 0, _joined(item, ()), item.model)


def _joined(served: Served, rest: Sequence[Any]) -> bytes:
    return json.dumps([*served[1:], *rest]).encode() + b"\n" + served.payload


def served_of(event: Event) -> Served:
    """Return the served request that :func:`event_of` encoded.

    Raises:
        ValueError: the bytes are no such request.
    """
    served, rest = _split(event.payload)
    if rest:
        raise ValueError(f"not a served request: {rest} follows")
    return served


def example_of(event: Event) -> Example:
    """Return the example that :func:`event_of` encoded.

    Raises:
        ValueError: the bytes are no such example.
    """
    served, rest = _split(event.payload)
    try:
        example = Example(served, *rest)
        right = (
            is_label(example.label, example.weight) and isinstance(example.time, int) and isinstance(example.name, str)
        )
        Observed(example.observed)
    except (TypeError, ValueError) as error:
        raise ValueError(f"not an example: {error}") from error
    if not right:
        raise ValueError(f"not an example: {rest} is no label, weight, name, observation, time and row")
    return example


def _split(payload: bytes) -> tuple[Served, list[Any]]:
    head, newline, features = payload.partition(b"\n")
    count = len(Served._fields) - 1
    try:
        values = json.loads(head)
        served = Served(features, *values[:count])
        ordered(served.version)
        right = isinstance(served.request_id, str) and isinstance(served.time, int) and isinstance(served.score, float)
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"not a served request or an example: {error}") from error
    if not newline or not right:
        raise ValueError(f"not a served request or an example: {values} and its features")
    return served, values[count:]
