"""Elements on their way into a batch: columns and payloads in one ``bytes`` value, with a summary in front.

A chunk crosses the shuffle and lies in state at the cost of one element, and is decoded when a batch is made of it.
"""

from __future__ import annotations

import math
import struct
from array import array
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from contbatch.transforms.batching.release import Backlog
from contbatch.transforms.microbatch import ElementsCoder

_HEAD = struct.Struct("<IBqddd")
_COLUMNS = ("arrivals", "deadlines", "weights", "priorities")


class Summary(NamedTuple):
    """What is known of a chunk without decoding it: the earliest event time (microseconds), and its backlog."""

    time: int
    backlog: Backlog


@dataclass(slots=True)
class Rows:
    """Elements and what a policy has to know of them, a list each.

    Attributes:
        elements: the elements.
        times: event times, microseconds.
        arrivals: when they came, seconds.
        deadlines: seconds; empty if none has one.
        weights: weights or lengths; empty if there are none.
        priorities: seconds; empty if there are none.
    """

    elements: list[Any] = field(default_factory=list)
    times: list[int] = field(default_factory=list)
    arrivals: list[float] = field(default_factory=list)
    deadlines: list[float] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)
    priorities: list[float] = field(default_factory=list)

    def extend(self, other: Rows) -> None:
        """Add the rows of another; where only one has a column, the policy was changed in between."""
        count, more = len(self.times), len(other.times)
        for name in self.__slots__:
            mine, its = getattr(self, name), getattr(other, name)
            if mine or its:
                missing = math.inf if name == "deadlines" else 0.0
                if not mine:
                    setattr(self, name, mine := [missing] * count)
                mine.extend(its or [missing] * more)

    def pick(self, indices: list[int]) -> Rows:
        """Return some of the rows."""
        return Rows(*([column[i] for i in indices] if (column := getattr(self, n)) else [] for n in self.__slots__))

    def summary(self) -> Summary:
        """Return the earliest time and the backlog."""
        return Summary(
            min(self.times),
            Backlog(
                len(self.times),
                sum(self.weights),
                min(self.arrivals),
                min(self.deadlines, default=math.inf),
            ),
        )


def pack(rows: Rows, coder: ElementsCoder) -> bytes:
    """Encode rows, at least one."""
    (time, (count, *numbers)), flags, columns = rows.summary(), 0, [array("q", rows.times).tobytes()]
    for bit, name in enumerate(_COLUMNS):
        if column := getattr(rows, name):
            flags |= 1 << bit
            columns.append(array("d", column).tobytes())
    return b"".join((_HEAD.pack(count, flags, time, *numbers), *columns, coder.encode(rows.elements)))


def summary(chunk: bytes) -> Summary:
    """Return the summary of packed rows."""
    count, _, time, *numbers = _HEAD.unpack_from(chunk)
    return Summary(time, Backlog(count, *numbers))


def unpack(chunk: bytes, coder: ElementsCoder) -> Rows:
    """Decode rows."""
    count, flags, *_ = _HEAD.unpack_from(chunk)
    end = _HEAD.size + 8 * count
    columns: dict[str, list[Any]] = {"times": array("q", chunk[_HEAD.size : end]).tolist()}
    for bit, name in enumerate(_COLUMNS):
        if flags >> bit & 1:
            columns[name] = array("d", chunk[end : end + 8 * count]).tolist()
            end += 8 * count
    return Rows(coder.decode(chunk[end:]), **columns)
