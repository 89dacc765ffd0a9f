"""What becomes of one request's feedback: the features as they were served wait for it, and it waits for them.

A label within ``ttl`` of its request is learned once; a second one of the same name is a duplicate. An id is remembered
for twice the ``ttl``: up to then a first label is late, beyond it nothing is known of the request. A label without a
request waits ``ttl`` for one. With a wait window, a request without a label at its end is learned as a negative until
further notice; see :class:`~contbatch.transforms.learning.observed.Observed`. Everything goes by event time: *at* a
boundary is still inside it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, NamedTuple

from contbatch.transforms.events import MICROS, Event
from contbatch.transforms.learning.observed import Observed
from contbatch.transforms.records import Example, Served


class Refusal(StrEnum):
    """Why a feedback is not learned."""

    DUPLICATE = "duplicate"
    LATE = "late"
    UNMATCHED = "unmatched"
    REFUSED = "refused"


class Label(NamedTuple):
    """A decoded feedback and the event that brought it; a request may have one of each name."""

    event: Event
    request_id: str
    value: float
    weight: float
    name: str = ""


@dataclass(frozen=True)
class Terms:
    """How long requests and feedback wait for each other.

    Attributes:
        ttl: seconds of event time.
        wait_window: seconds after which a request without a label counts as a negative; ``None`` for never.
        settles: whether a request without any label is learned again, as a negative for good, at the ttl.

    Raises:
        ValueError: a number is outside its range.
    """

    ttl: float
    wait_window: float | None = None
    settles: bool = False

    def __post_init__(self) -> None:
        if not (math.isfinite(self.ttl) and self.ttl >= 0):
            raise ValueError(f"ttl is {self.ttl} s; give a finite number of seconds, 0 or more")
        if self.wait_window is None:
            if self.settles:
                raise ValueError("this learner asks for the requests that got no label; give a wait_window")
        elif not 0 <= self.wait_window <= self.ttl:
            raise ValueError(f"wait_window is {self.wait_window} s; give seconds from 0 to the ttl, {self.ttl} s")

    @property
    def ttl_micros(self) -> int:
        """The ttl in microseconds."""
        return round(self.ttl * MICROS)

    def dues(self, served: Served) -> list[int]:
        """Return the event times after which a request without a label is learned."""
        if self.wait_window is None:
            return []
        return [int(self.window_end(served)), *([served.time + self.ttl_micros] if self.settles else [])]

    def window_end(self, served: Served) -> float:
        """Return the last event time, in microseconds, at which a label is in time for a request."""
        return math.inf if self.wait_window is None else served.time + round(self.wait_window * MICROS)


@dataclass
class Ticket:
    """What is known of one request id.

    Attributes:
        served: the request, once it was predicted.
        orphans: labels that came before it, oldest first.
        names: of the labels that are learned.
        is_timely: whether one of them came within the wait window.
        is_assumed: whether the request was learned as a negative meanwhile.
        is_settled: whether it was learned as a negative for good.
        is_stripped: whether its features are forgotten, so that no label can be learned any more.
    """

    served: Served | None = None
    orphans: list[Label] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    is_timely: bool = False
    is_assumed: bool = False
    is_settled: bool = False
    is_stripped: bool = False

    def serve(self, served: Served) -> list[Label]:
        """Note the prediction, the first one only; returns the labels that were waiting for it."""
        if self.served is None:
            self.served = served
        orphans, self.orphans = self.orphans, []
        return orphans

    def match(self, label: Label, terms: Terms) -> list[Example] | Refusal | None:
        """Return what to learn from a label, why nothing, or ``None`` when it now waits for its request.

        A label after the wait window is learned after the request itself as a negative, if that has not happened yet.
        """
        served, time = self.served, label.event.time
        if served is None:
            self.orphans.append(label)
            return None
        if label.name in self.names:
            return Refusal.DUPLICATE
        if time + terms.ttl_micros < served.time:
            return Refusal.UNMATCHED
        if time > served.time + terms.ttl_micros or self.is_settled or self.is_stripped:
            return Refusal.LATE
        examples = []
        if time > terms.window_end(served) and not self.is_timely and not self.is_assumed:
            examples.append(self._assume(served, terms))
        is_first = not self.names
        self.names.append(label.name)
        self.is_timely = self.is_timely or not self.is_assumed
        observed = Observed.CORRECTED if self.is_assumed and is_first else Observed.LABEL
        return [*examples, Example(served, label.value, label.weight, label.name, observed, time, label.event.row)]

    def next_due(self, terms: Terms) -> int | None:
        """Return the event time after which :meth:`fall_due` has something to learn, if no label comes before."""
        if self.served is None or self.names:
            return None
        if terms.wait_window is not None and not self.is_assumed:
            return int(terms.window_end(self.served))
        return self.served.time + terms.ttl_micros if terms.settles and not self.is_settled else None

    def fall_due(self, time: int, terms: Terms) -> Example | None:
        """Return the negative that a request without a label is, when everything up to ``time`` is known."""
        due = self.next_due(terms)
        if self.served is None or due is None or due > time:
            return None
        if not self.is_assumed:
            return self._assume(self.served, terms)
        self.is_settled = True
        return Example(self.served, 0.0, 1.0, "", Observed.SETTLED, due)

    def _assume(self, served: Served, terms: Terms) -> Example:
        self.is_assumed = True
        return Example(served, 0.0, 1.0, "", Observed.ASSUMED, int(terms.window_end(served)))

    def strip(self) -> None:
        """Forget the features."""
        self.is_stripped = True
        if self.served is not None:
            self.served = self.served._replace(payload=b"", prepared="")


class Unusable(NamedTuple):
    """A feedback that decodes, and says nothing that could be learned."""

    event: Event
    request_id: str
    why: str


def read_labels(columns: Mapping[str, Sequence[Any]], events: Sequence[Event]) -> list[Label | Unusable]:
    """Return the labels of decoded feedback.

    Args:
        columns: ``request_id`` and ``label``, and optionally ``weight`` and ``name``.
        events: the events, one for each row.
    """
    count = len(events)
    rows = zip(
        events,
        columns["request_id"],
        columns["label"],
        columns.get("weight", [1.0] * count),
        columns.get("name", [""] * count),
        strict=True,
    )
    found: list[Label | Unusable] = []
    for event, request_id, value, weight, name in rows:
        if is_label(value, weight):
            found.append(Label(event, str(request_id), float(value), float(weight), str(name or "")))
        else:
            why = f"label {value!r} with weight {weight!r}; a label is 0 to 1, a weight finite and 0 or more"
            found.append(Unusable(event, str(request_id), why))
    return found


def is_label(value: Any, weight: Any) -> bool:
    """Return whether these are a label and a weight that can be learned."""
    try:
        return bool(0 <= value <= 1 and weight >= 0 and math.isfinite(weight))
    except TypeError:
        return False


WHY: dict[Refusal, str] = {
    Refusal.DUPLICATE: "this request's label is already learned",
    Refusal.LATE: "later than the ttl after its request",
    Refusal.UNMATCHED: "no request within the ttl",
}
