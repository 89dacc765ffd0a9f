"""What flows into the keyed transforms: requests and feedback, in an envelope that is cheap to sort.

The envelope holds what ordering needs; the payload stays the bytes that arrived, and is decoded once per
micro-batch by a codec. Many envelopes travel as one ``bytes`` value (see :func:`pack`), so a chunk crosses a
runner's boundary at the cost of one element.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from typing import NamedTuple

import numpy as np

MICROS = 1_000_000
"""Event times are whole microseconds since the Unix epoch; this many make a second."""

END_OF_TIME = 2**63 - 1
"""Later than every event time: what a watermark reaches when bounded input is complete."""

_COLUMNS = (("time", "<i8"), ("row", "<i8"), ("kind", "u1"), ("size", "<u4"))


class Kind(IntEnum):
    """What an event is. At one instant, requests come before feedback: see the ordering of :class:`Event`."""

    REQUEST = 0
    SERVED = 1
    """A request that was predicted elsewhere, see :class:`~contbatch.transforms.Served`."""
    FEEDBACK = 2
    EXAMPLE = 3
    """Feedback beside the request that it answers, see :class:`~contbatch.transforms.Example`."""


class Event(NamedTuple):
    """One record of the stream. Events compare in the order in which they are processed.

    Attributes:
        time: event time, microseconds since the epoch.
        kind: request or feedback.
        row: position in the source; decides between events of one kind at one instant.
        payload: the encoded record, as it arrived.
        model: which model (tenant, segment, shard) it belongs to; every model learns on its own.
    """

    time: int
    kind: Kind
    row: int
    payload: bytes
    model: str = ""


def is_request(event: Event) -> bool:
    """Return whether an event is a request."""
    return event.kind is Kind.REQUEST


def is_feedback(event: Event) -> bool:
    """Return whether an event is feedback."""
    return event.kind is Kind.FEEDBACK


def pack(events: Sequence[Event]) -> bytes:
    """Encode events of one model as columns followed by their payloads. The model is not kept."""
    sizes = [len(event.payload) for event in events]
    columns = {
        "time": [event.time for event in events],
        "row": [event.row for event in events],
        "kind": [event.kind for event in events],
        "size": sizes,
    }
    parts = [len(events).to_bytes(4, "little")]
    parts += [np.array(columns[name], dtype).tobytes() for name, dtype in _COLUMNS]
    parts += [event.payload for event in events]
    return b"".join(parts)


def extent(chunk: bytes) -> tuple[int, int]:
    """Return how many events a chunk holds and the earliest time among them, without decoding it.

    Raises:
        ValueError: the chunk is empty or cut short.
    """
    count = int.from_bytes(chunk[:4], "little")
    return count, int(np.frombuffer(chunk, "<i8", count, 4).min())


def unpack(chunk: bytes) -> list[Event]:
    """Decode what :func:`pack` encoded.

    Raises:
        ValueError: the bytes are not such a chunk.
    """
    count = int.from_bytes(chunk[:4], "little")
    offset = 4
    columns: dict[str, list[int]] = {}
    for name, dtype in _COLUMNS:
        columns[name] = np.frombuffer(chunk, dtype, count, offset).tolist()
        offset += count * np.dtype(dtype).itemsize
    if len(chunk) != offset + sum(columns["size"]):
        raise ValueError(f"an event chunk of {len(chunk)} bytes announces {offset + sum(columns['size'])}")
    events = []
    for time, row, kind, size in zip(*columns.values(), strict=True):
        events.append(Event(time, Kind(kind), row, chunk[offset : offset + size]))
        offset += size
    return events
