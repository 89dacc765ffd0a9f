"""What the main job needs of a data set. Importing this module imports neither Beam nor numpy."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from contbatch.transforms import Event
    from contbatch.transforms.codecs import Codec
    from contbatch.transforms.events import Kind
    from contbatch.transforms.learning import Learner


class BadLine(NamedTuple):
    """A line of a file that makes no event.

    Attributes:
        kind: what it would have been; a line whose request can be read may lack its feedback alone.
        row: its position in the file.
        line: the line.
        reason: what is wrong with it.
    """

    kind: Kind
    row: int
    line: str
    reason: str


@dataclass(frozen=True)
class Dataset:
    """A data set as a stream of requests and feedback; its functions are importable, so that workers find them.

    Attributes:
        requests: codec of the requests.
        feedback: codec of the feedback.
        learner: returns the model for a seed and a kind, ``sparse`` or ``torch``.
        find: returns where the data is, for the value of ``--data`` or None.
        count: returns how many requests there are at most, quickly.
        read_requests: yields every request that can be read, decoded.
        read_events: yields every event and bad line; takes the seconds from a request to its feedback (None: as the
            data has it), and whether the requests of one instant follow each other by a microsecond.
    """

    requests: Codec
    feedback: Codec
    learner: Callable[[int, str], Learner[Any]]
    find: Callable[[str | None], Path]
    count: Callable[[Path], int]
    read_requests: Callable[[Path], Iterator[dict[str, Any]]]
    read_events: Callable[[Path, float | None, bool], Iterator[Event | BadLine]]


@dataclass(frozen=True)
class Defaults:
    """What the command does with a data set unless it is told otherwise.

    Attributes:
        feedback_delay: seconds from a request to its feedback; None for as the data has it.
        ttl: seconds that requests and feedback wait for each other.
        gate: whether a gate keeps bad updates from serving. Its tests take labels for nearly independent: a storm that
            delays hundreds of flights looks to them like an update gone wrong, some twenty times in the year.
    """

    feedback_delay: float | None
    ttl: float
    gate: bool


DATASETS = {
    "movielens": Defaults(feedback_delay=5.0, ttl=86_400.0, gate=True),
    "flights": Defaults(feedback_delay=None, ttl=172_800.0, gate=False),
}
"""The data sets by name: each is a module of this package, with its :class:`Dataset` as ``DATASET``."""


def load(name: str) -> Dataset:
    """Return a data set of :data:`DATASETS`."""
    dataset: Dataset = import_module(f"contbatch.pipelines.{name}").DATASET
    return dataset


class Spread:
    """Moves what is of one instant apart by a microsecond each."""

    def __init__(self) -> None:
        self._taken: Counter[int] = Counter()

    def next(self, time: int) -> int:
        """Return the next free microsecond at or after ``time``, counted from that instant alone."""
        self._taken[time] += 1
        return time + self._taken[time] - 1
