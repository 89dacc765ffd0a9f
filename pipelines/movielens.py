"""MovieLens 100k as a stream of requests and feedback.

The data is GroupLens' (Harper and Konstan, 2015, The MovieLens Datasets) and may not be redistributed; it is read
out of the installed RecBole wheel, which carries a copy. Nothing of RecBole is imported.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

from contbatch.pipelines.datasets import BadLine, Dataset, Spread
from contbatch.transforms.codecs import AvroCodec
from contbatch.transforms.events import MICROS, Event, Kind
from contbatch.transforms.learning import Learner, SparseLearner

RATINGS = "ml-100k.inter"
USERS = "ml-100k.user"
ITEMS = "ml-100k.item"

FIELDS = ("user", "item", "age", "gender", "occupation", "genres")
INTERACTIONS = ((("user",), ("item", "genres")),)

REQUESTS = AvroCodec(
    {
        "type": "record",
        "name": "Request",
        "fields": [
            {"name": "request_id", "type": "string"},
            *({"name": name, "type": "string"} for name in FIELDS[:-1]),
            {"name": "genres", "type": {"type": "array", "items": "string"}},
        ],
    }
)
FEEDBACK = AvroCodec(
    {
        "type": "record",
        "name": "Feedback",
        "fields": [{"name": "request_id", "type": "string"}, {"name": "label", "type": "float"}],
    }
)


class Rating(NamedTuple):
    """A line of the ratings file: its request, the rating as written, and the whole line."""

    row: int
    time: int
    request: dict[str, Any]
    rating: str
    line: str


def find_folder(given: str | None) -> Path:
    """Return the folder that holds the three files: the given one, or that of the installed RecBole wheel.

    Raises:
        FileNotFoundError: a file is missing; the text says what to do.
    """
    if given is not None:
        folder = Path(given)
    else:
        try:
            wheel = metadata.distribution("recbole")
        except metadata.PackageNotFoundError:
            raise FileNotFoundError(
                "MovieLens 100k is not installed: run `pip install --no-deps recbole==1.2.1`, or give its folder "
                "with --data"
            ) from None
        folder = Path(str(wheel.locate_file("recbole/dataset_example/ml-100k")))
    for name in (RATINGS, USERS, ITEMS):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"no file {folder / name}: give the folder that holds {name} with --data")
    return folder


def count_ratings(folder: Path) -> int:
    """Return the lines of the ratings file, its header not counted."""
    with (folder / RATINGS).open("rb") as lines:
        return max(sum(1 for _ in lines) - 1, 0)


def learner(seed: int = 0, kind: str = "sparse") -> Learner[Any]:
    """Return the main job's model: hashed ids in numpy, or a torch module."""
    if kind == "sparse":
        return SparseLearner(FIELDS, INTERACTIONS, seed=seed)
    from contbatch.transforms.learning.two_tower import two_tower

    return two_tower(FIELDS, INTERACTIONS, seed=seed)


def read_ratings(folder: Path) -> Iterator[Rating | BadLine]:
    """Yield the ratings in the order of the file, as requests. Age is the decade."""
    users = {row[0]: row for row in _rows(folder / USERS)}
    items = {row[0]: row for row in _rows(folder / ITEMS)}
    with (folder / RATINGS).open(encoding="utf-8", errors="surrogateescape") as lines:
        next(lines, None)  # the header
        for row, raw in enumerate(lines):
            line = raw.rstrip("\n")
            try:
                user_id, item_id, rating, seconds = line.split("\t")
                time = round(float(seconds) * MICROS)
                request = _request(row, users[user_id], items[item_id])
                if not abs(time) < 2**62:
                    raise ValueError(f"time {seconds} is out of range")
            except (ValueError, KeyError, OverflowError) as error:
                yield BadLine(Kind.REQUEST, row, line, f"not user, item, rating, time: {error!r}")
            else:
                yield Rating(row, time, request, rating, line)


def read_requests(folder: Path) -> Iterator[dict[str, Any]]:
    """Yield the requests of the ratings that can be read."""
    for item in read_ratings(folder):
        if isinstance(item, Rating):
            yield item.request


def read_events(folder: Path, feedback_delay: float | None, spread_ties: bool = False) -> Iterator[Event | BadLine]:
    """Yield each rating's request and, ``feedback_delay`` seconds of event time later (None: at once), its feedback.

    Liked means a rating of 4 or more. A line that cannot be read is a :class:`BadLine`: of the request where user,
    item or time is unreadable, of the feedback alone where only the rating is. The data's times are whole seconds;
    with ``spread_ties`` the ratings of one second follow each other by a microsecond.
    """
    spread = Spread()
    delay = round((feedback_delay or 0.0) * MICROS)
    for item in read_ratings(folder):
        if isinstance(item, BadLine):
            yield item
            continue
        row, time, request, rating, line = item
        if spread_ties:
            time = spread.next(time)
        yield Event(time, Kind.REQUEST, row, REQUESTS.encode(request))
        try:
            liked = float(float(rating) >= 4)
        except ValueError:
            yield BadLine(Kind.FEEDBACK, row, line, f"rating {rating!r} is not a number")
            continue
        yield Event(time + delay, Kind.FEEDBACK, row, FEEDBACK.encode({"request_id": str(row), "label": liked}))


def _rows(path: Path) -> Iterator[list[str]]:
    with path.open(encoding="utf-8") as lines:
        next(lines)
        for line in lines:
            yield line.rstrip("\n").split("\t")


def _request(row: int, user: list[str], item: list[str]) -> dict[str, Any]:
    user_id, age, gender, occupation = user[:4]
    return {
        "request_id": str(row),
        "user": user_id,
        "item": item[0],
        "age": f"{int(age) // 10}0s",
        "gender": gender,
        "occupation": occupation,
        "genres": item[3].split(),
    }


DATASET = Dataset(REQUESTS, FEEDBACK, learner, find_folder, count_ratings, read_requests, read_events)
