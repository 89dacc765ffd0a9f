"""The waiting rooms of several models, fed with lines of bytes: what a key of ``JoinFeedback`` holds."""

from __future__ import annotations

import json
from collections.abc import Iterator

from contbatch.transforms.learning.join import Label, Refusal, Terms
from contbatch.transforms.learning.waiting import WaitingRoom
from contbatch.transforms.learning.wire import dump_label, dump_served, load_label, load_served
from contbatch.transforms.records import Example, Served

Outcome = Example | tuple[Label, Refusal]
"""What to learn, or a label and why it is not."""

_SERVED, _LABEL = b"S", b"L"
"""What a line is."""

_LINES, _TIME = b"C", b"T"
"""What an entry of the log is."""


def line_of(item: Served | Label) -> bytes:
    """Return a request or a label as a line."""
    if isinstance(item, Served):
        return _SERVED + json.dumps(dump_served(item)).encode()
    return _LABEL + json.dumps([item.event.model, *dump_label(item)]).encode()


class Rooms(dict[str, WaitingRoom]):
    """Waiting rooms by model.

    Args:
        terms: of all of them.
    """

    def __init__(self, terms: Terms) -> None:
        super().__init__()
        self._terms = terms
        self.armed: int | None = None
        """The change for which a timer stands, as far as this object knows."""

    def __missing__(self, model: str) -> WaitingRoom:
        self[model] = WaitingRoom(self._terms)
        return self[model]

    @property
    def waiting(self) -> int:
        """Request ids that are known."""
        return sum(map(len, self.values()))

    @property
    def next_change(self) -> int | None:
        """The event time after which :meth:`expire` has something to do."""
        return min((time for room in self.values() if (time := room.next_change) is not None), default=None)

    def see(self, chunk: bytes) -> Iterator[Outcome]:
        """Note the requests, and match the labels, of some lines; the iterator must be exhausted."""
        for line in chunk.split(b"\n"):
            kind, values = line[:1], json.loads(line[1:])
            if kind == _SERVED:
                served = load_served(values)
                room = self[served.model]
                labels = room.serve(served)
            else:
                model, *rest = values
                room, labels = self[model], [load_label(rest, model)]
            for label in labels:
                match = room.match(label)
                if isinstance(match, Refusal):
                    yield label, match
                else:
                    yield from match or ()

    def expire(self, now: int) -> Iterator[Outcome]:
        """Do what fell due before ``now``; the iterator must be exhausted."""
        for room in self.values():
            for item in room.expire(now):
                if isinstance(item, Label):
                    yield item, Refusal.UNMATCHED
                elif example := room.fall_due(item):
                    yield example

    def replay(self, entry: bytes) -> None:
        """Do again what an entry of the log says; what comes out came out before."""
        content = entry[1:]
        for _ in self.see(content) if entry[:1] == _LINES else self.expire(int(content)):
            pass

    def dump(self) -> bytes:
        """Return the content."""
        return json.dumps({model: room.dump() for model, room in self.items()}).encode()

    def load(self, content: bytes) -> None:
        """Fill empty rooms with what :meth:`dump` returned."""
        for model, values in json.loads(content).items():
            self[model].load(values, model)


def entry_of(what: bytes | int) -> bytes:
    """Return the entry of the log for a chunk that was seen, or a time up to which all expired."""
    return _LINES + what if isinstance(what, bytes) else _TIME + str(what).encode()
