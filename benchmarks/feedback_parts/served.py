"""Features at training and at serving: the same bits over 100,000 flights, restored or not; and what the join costs.

The flights' model is asked what it sees: ``Watched`` notes the features of every row that is predicted or learned,
the prepared ones included, on its own, without the fingerprints that the loop itself keeps. The loop is thrown away
and restored from its snapshot every ``RESTORED`` events.
"""

from __future__ import annotations

import random
import time
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import replace
from itertools import islice
from typing import Any

from benchmarks.harness import Report
from contbatch.pipelines import flights as data
from contbatch.transforms import BatchPolicy, Event, Kind, Learned, Served
from contbatch.transforms.codecs import AvroCodec, Decoded
from contbatch.transforms.events import END_OF_TIME, MICROS
from contbatch.transforms.learning import PrequentialConfig, PrequentialLoop
from contbatch.transforms.learning.join import Label, Terms
from contbatch.transforms.learning.learner import prepared_fields
from contbatch.transforms.learning.prequential import Skewed
from contbatch.transforms.learning.rooms import Rooms, line_of

EXAMPLES = 100_000
RESTORED = 20_000
SKEWS = (1.0, 0.02)
"""Shares of rows that a skew spoils."""
MOST_ROWS = 1_000
WAITING = 100_000

Look = Callable[[str, list[Any]], None]


class Watched:
    """A learner that shows what it is given.

    Attributes:
        look: gets ``predict`` or ``step``, and the rows: a flight's id and its features, the prepared ones last; and
            ``anew`` with the rows of a step as they would be if their features were computed at that time.
    """

    def __init__(self, look: Look) -> None:
        self._inner: Any = data.learner()
        self.look = look
        self.fields = ("request_id", *self._inner.fields)
        self.prepared = prepared_fields(self._inner)
        self.prepare, self.init = self._inner.prepare, self._inner.init
        self.export, self.load = self._inner.export, self._inner.load

    def predict(self, state: Any, columns: Any) -> Any:
        """Predict."""
        self.look("predict", self._rows(columns))
        return self._inner.predict(state, columns)

    def step(self, state: Any, columns: Any, labels: Any, weights: Any) -> Any:
        """Learn."""
        self.look("step", self._rows(columns))
        self.look("anew", self._rows({**columns, **self.prepare(state, columns)}))
        return self._inner.step(state, columns, labels, weights)

    def _rows(self, columns: Any) -> list[Any]:
        return list(zip(*(columns[name] for name in (*self.fields, *self.prepared)), strict=True))


class Spoiling(AvroCodec):
    """Reads some flights' tail number in lower case, as after a careless change.

    Attributes:
        share: of the flights.
    """

    share = 1.0

    def decode(self, records: Any) -> Decoded:
        """Decode, and spoil."""
        decoded = super().decode(records)
        ids, tails = decoded.columns["request_id"], decoded.columns["tail"]
        spoilt = [
            tail.lower() if random.Random(name).random() < self.share else tail  # noqa: S311  not for secrets
            for name, tail in zip(ids, tails, strict=True)
        ]
        return decoded._replace(columns={**decoded.columns, "tail": spoilt})


def events() -> list[Event]:
    """Return the flights of the first months, sorted."""
    found = (item for item in data.read_events(data.find_file(None)) if isinstance(item, Event))
    return sorted(islice(found, 2 * EXAMPLES + 10_000))


def config(learner: Any) -> PrequentialConfig[Any]:
    """Return the main job's configuration."""
    return PrequentialConfig(learner, BatchPolicy(256, 5.0), data.REQUESTS, data.FEEDBACK, ttl=172_800.0)


def advance(loop: PrequentialLoop[Any], stream: list[Event], upto: int) -> tuple[list[Any], list[Event]]:
    """Advance a loop; returns what came out, and the events that are left."""
    cut = bisect_left(stream, upto, key=lambda event: event.time)
    return list(loop.advance(stream[:cut], upto)), stream[cut:]


def as_served(report: Report) -> None:
    """Features as served: those learned, over restores, and what would be learned without the join."""
    seen: dict[str, str] = {}
    learned = differ = anew = 0

    def look(what: str, rows: list[Any]) -> None:
        nonlocal learned, differ, anew
        for name, *features in rows:
            if what == "predict":
                seen[name] = repr(features)
            elif what == "step":
                learned += 1
                differ += seen[name] != repr(features)
            else:
                anew += seen.pop(name) != repr(features)

    settings, stream = config(Watched(look)), events()
    loop = PrequentialLoop(settings)
    for cut in [*(event.time for event in stream[RESTORED::RESTORED]), END_OF_TIME]:
        _, stream = advance(loop, stream, cut)
        snapshot, loop = loop.snapshot(), PrequentialLoop(settings)
        loop.load(snapshot)
    report.at_least("flights learned, with the loop restored on the way", "", learned, EXAMPLES)
    report.at_most("features that differ from those served, in any bit", "", differ, 0, {"computed at training": anew})


def skew(report: Report) -> None:
    """Skew: labels learned from the change of a codec to the alarm."""
    for share in SKEWS:
        stream = events()[:20_000]
        change = stream[10_000].time
        loop = PrequentialLoop(config(data.learner()))
        _, stream = advance(loop, stream, change)
        codec = Spoiling(data.SCHEMA)
        codec.share = share
        changed = PrequentialLoop(replace(config(data.learner()), requests=codec))
        changed.load(loop.snapshot())
        outputs, _ = advance(changed, stream, END_OF_TIME)
        (at,) = [place for place, output in enumerate(outputs) if isinstance(output, Skewed)] or [None]
        rows = None if at is None else sum(isinstance(output, Learned) for output in outputs[:at])
        report.at_most(f"labels until an injected skew of {share:.0%} of the rows is found", "", rows, MOST_ROWS)


def join_cost(report: Report) -> None:
    """Join: speed, and memory for each request that waits."""
    terms = Terms(3600.0, 600.0)
    payload = next(event for event in events() if event.kind is Kind.REQUEST).payload
    rooms, lines = Rooms(terms), []
    for row in range(WAITING):
        lines.append(line_of(Served(payload, str(row), row * 1000, 0.5, "0.1")))
        lines.append(line_of(Label(Event(row * 1000 + 10, Kind.FEEDBACK, row, b""), str(row), 1.0, 1.0)))
    chunks = [b"\n".join(lines[start : start + 512]) for start in range(0, len(lines), 512)]
    started = time.perf_counter()
    joined = sum(len(list(rooms.see(chunk))) for chunk in chunks)
    seconds = time.perf_counter() - started
    report.at_least("requests joined, one process", "", joined, WAITING)
    report.note("requests and their labels joined a second, one process", "", WAITING / seconds)
    report.note("bytes of state for each request that waits", "B", len(rooms.dump()) / WAITING)
    for _ in rooms.expire(WAITING * 1000 + 2 * 3600 * MICROS + 1):
        pass
    report.at_most("requests remembered after twice the ttl", "", rooms.waiting, 0)
