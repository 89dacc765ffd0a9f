"""Kills a training job a hundred times, with SIGKILL, and compares what it comes to with a run that nobody killed.

The DoFns of both forms run here without a runner, bundle by bundle. What a runner would keep, the state, the timers
and the committed outputs, is a file that is replaced when a bundle commits; a process that is killed starts again
from there. The store is the one that the forms always use.
"""

from __future__ import annotations

import json
import os
import random
import signal
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from apache_beam.pvalue import TaggedOutput
from apache_beam.utils.timestamp import Timestamp
from torch import nn

from benchmarks.harness import Report
from contbatch.transforms import AvroCodec, BatchPolicy, Event, Failed, Kind, Learned, OnlineUpdate
from contbatch.transforms.events import END_OF_TIME, MICROS, pack
from contbatch.transforms.keyed_state import Bag, Cell, KeyedState, Timer
from contbatch.transforms.learning import SparseLearner, store
from contbatch.transforms.learning.journal import Position
from contbatch.transforms.learning.statistics import Standardized
from contbatch.transforms.learning.torch_learner import TorchLearner
from contbatch.transforms.loop import ArrivalFn, EventTimeFn
from contbatch.transforms.update import PredictThenLearn

KILLS, REQUESTS, BUNDLE, SEED = 100, 5_000, 50, 7
POINTS = ("after step", "after the snapshot file", "before commit", "before the manifest", "after the manifest")

REQUEST = AvroCodec(
    {
        "type": "record",
        "name": "Request",
        "fields": [
            {"name": "request_id", "type": "string"},
            {"name": "user", "type": "string"},
            {"name": "item", "type": "string"},
            {"name": "price", "type": "double"},
            {"name": "event_time", "type": "double"},
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


def workload(requests: int = REQUESTS, bundle: int = BUNDLE) -> list[list[Event]]:
    """Return bundles of requests and their feedback: 5 % of the feedback twice, 8 s apart, 5 % of all out of order."""
    rng = random.Random(SEED)  # noqa: S311
    events: list[Event] = []
    for row in range(requests):
        seconds, user, item, price = row * 0.1, rng.randrange(40), rng.randrange(60), rng.expovariate(0.1)
        record = {"request_id": f"r{row}", "user": f"u{user}", "item": f"i{item}", "price": price}
        request = REQUEST.encode(record | {"event_time": seconds})
        label = FEEDBACK.encode({"request_id": f"r{row}", "label": float(rng.random() < (user + item) % 7 / 7)})
        events.append(Event(round(seconds * MICROS), Kind.REQUEST, row, request))
        for again in range(1 + (rng.random() < 0.05)):
            at = round((seconds + 2.0 + 8.0 * again) * MICROS)
            events.append(Event(at, Kind.FEEDBACK, row + again * requests, label))
    order = sorted(events)
    for index in rng.sample(range(len(order) - 20), len(order) // 20):
        order.insert(index + rng.randrange(1, 20), order.pop(index))
    return [order[start : start + bundle] for start in range(0, len(order), bundle)]


ARGUMENTS: dict[str, Any] = {
    "requests": REQUEST,
    "feedback": FEEDBACK,
    "ttl": 60.0,
    "publish_every": 100,
    "snapshot_every": 300,
    "poll": 1e9,
}


class Price(nn.Module):
    """A logit from the standardised price."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(1, 8), nn.LayerNorm(8), nn.Tanh(), nn.Linear(8, 1))

    def forward(self, price: torch.Tensor) -> torch.Tensor:
        """Return [n] for [n]."""
        return self.layers(price[:, None]).squeeze(1)


def encode(columns: Any) -> tuple[torch.Tensor]:
    """Return the prices."""
    return (torch.tensor(np.asarray(columns["price"], np.float32)),)


def sparse() -> SparseLearner:
    """Hashed ids."""
    return SparseLearner(("user", "item"), ((("user",), ("item",)),), bits=10, factors=4)


def dense() -> Standardized:
    """Return a torch module with Adam on a standardised number."""
    return Standardized(TorchLearner(Price, encode, ("price",)), ("price",), half_life=60.0)


@dataclass
class Bomb:
    """Kills this process when it has come by a point so many times.

    Attributes:
        point: which one.
        left: how often it still comes by.
    """

    point: str = ""
    left: int = 0
    seen: Counter[str] = field(default_factory=Counter)

    def pass_by(self, point: str) -> None:
        """Come by a point."""
        self.seen[point] += 1
        if point == self.point:
            self.left -= 1
            if self.left < 0:
                os.kill(os.getpid(), signal.SIGKILL)


@contextmanager
def mined(bomb: Bomb, learner: Any) -> Iterator[None]:
    """Let a bomb see the points of interest; for a process of its own, as nothing is put back."""
    step, write, replacing = type(learner).step, store.ModelStore.write_snapshot, store.replacing

    def stepped(self: Any, *args: Any) -> Any:
        state = step(self, *args)
        bomb.pass_by("after step")
        return state

    def written(self: Any, arrays: Any) -> str:
        digest = write(self, arrays)
        bomb.pass_by("after the snapshot file")
        return digest

    @contextmanager
    def moved(path: str) -> Iterator[Any]:
        with replacing(path) as file:
            yield file
            if path.endswith("manifest.json"):
                bomb.pass_by("before the manifest")
        if path.endswith("manifest.json"):
            bomb.pass_by("after the manifest")

    type(learner).step, store.ModelStore.write_snapshot, store.replacing = stepped, written, moved
    yield


class Job:
    """A training job whose process may die at any time.

    Args:
        folder: for the store and what a runner keeps.
        transform: what learns.
        bundles: what it is given.
    """

    def __init__(self, folder: Path, transform: Callable[[str], PredictThenLearn], bundles: list[list[Event]]) -> None:
        self._kept = folder / "kept.json"
        self._settings = transform(str(folder / "store"))._settings
        self._bundles = bundles
        self.store = store.ModelStore(str(folder / "store"))
        folder.mkdir()

    def run(self, bomb: Bomb) -> None:
        """Go on from what was committed to the end."""
        kept, state = self._load()
        ordered = self._settings.config.order == "event_time"
        fn = (EventTimeFn if ordered else ArrivalFn)(self._settings, bounded=False)
        fn.setup()
        for number in range(kept["bundles"], len(self._bundles)):
            events = self._bundles[number]
            process = partial(fn.process, ("", pack(events)), Timestamp(0))
            oldest = min((event.time for part in self._bundles[number + 1 :] for event in part), default=END_OF_TIME)
            calls = [process, partial(_fire, fn, oldest)] if ordered else [partial(_without_buffer, process)]
            outputs = state.bundle(fn, *calls, committing=lambda _: bomb.pass_by("before commit"))
            kept["bundles"] = number + 1
            for one in outputs:
                value = (one.value if isinstance(one, TaggedOutput) else one).value
                if isinstance(value, Learned):
                    kept["learned"].append(value.request_id)
                elif isinstance(value, Failed):
                    kept["failed"].append(value.status)
            self._save(kept, state)

    def comes_to(self) -> dict[str, Any]:
        """Return what the job has come to: all that a trainer knows, the chain of versions, and the fates."""
        kept, state = self._load()
        fn = EventTimeFn(self._settings, bounded=False)
        fn.setup()
        position = Position(**json.loads(state.parts["head_cell"].read())["position"])
        loop = fn._journal.open("", position, state.parts["log"].read())
        versions = [(one.version, one.parent, one.digest) for one in self.store.history()]
        return {
            "arrays": {name: array.tobytes() for name, array in loop.snapshot().items()},
            "versions": versions,
            "learned": sorted(kept["learned"]),
            "fates": Counter(kept["failed"]),
        }

    def _load(self) -> tuple[dict[str, Any], KeyedState]:
        state = KeyedState(buffer=Bag(), log=Bag(), head_cell=Cell(), due=Timer(), last=Timer())
        if not self._kept.exists():
            return {"bundles": 0, "learned": [], "failed": []}, state
        kept = json.loads(self._kept.read_text())
        parts = kept.pop("parts")
        state.parts["buffer"].values = [chunk.encode("latin-1") for chunk in parts["buffer"]]
        state.parts["log"].values = [entry.encode("latin-1") for entry in parts["log"]]
        state.parts["head_cell"].value = parts["head"].encode("latin-1")
        return kept, state

    def _save(self, kept: dict[str, Any], state: KeyedState) -> None:
        parts = {
            "buffer": [chunk.decode("latin-1") for chunk in state.parts["buffer"].values],
            "log": [entry.decode("latin-1") for entry in state.parts["log"].values],
            "head": state.parts["head_cell"].value.decode("latin-1"),
        }
        temporary = self._kept.with_suffix(".tmp")
        temporary.write_text(json.dumps(kept | {"parts": parts}))
        temporary.replace(self._kept)


def _fire(fn: EventTimeFn, micros: int, last: Any, **parts: Any) -> Any:
    return fn.on_due("", Timestamp(micros=micros), **parts)


def _without_buffer(process: Callable[..., Any], buffer: Any, **parts: Any) -> Any:
    return process(**parts)


def run_killed(job: Job, learner: Any, kills: int) -> int:
    """Run a job to its end in processes that are killed; returns how many were."""
    rng, killed = random.Random(SEED), 0  # noqa: S311
    while True:
        point = POINTS[killed % len(POINTS)]
        reach = {"after step": 8, "before commit": 2}.get(point, 1)
        bomb = Bomb(point, rng.randrange(reach)) if killed < kills else Bomb()
        child = os.fork()
        if child == 0:
            with mined(bomb, learner):
                job.run(bomb)
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if os.WIFEXITED(status):
            if os.WEXITSTATUS(status):
                raise RuntimeError(f"a process of the job ended with {os.WEXITSTATUS(status)}; its error is above")
            return killed
        killed += 1


class Outcome(NamedTuple):
    """What a job that was killed has come to, beside one that was not.

    Attributes:
        killed: processes.
        twice: labels learned more than once.
        lost: labels not learned.
        arrays: of all that the trainer knows.
        different: of those, not the same bit by bit.
        versions: published.
        changed: versions, parents or digests that only one of the two has.
    """

    killed: int
    twice: int
    lost: int
    arrays: int
    different: int
    versions: int
    changed: int


FORMS: dict[str, tuple[Callable[[], Any], Callable[..., PredictThenLearn]]] = {
    "PredictThenLearn, hashed ids": (sparse, PredictThenLearn),
    "OnlineUpdate, torch with statistics": (dense, lambda *given, **named: OnlineUpdate(*given, **named)._loop),
    "OnlineUpdate, as it comes": (
        sparse,
        lambda *given, **named: OnlineUpdate(*given, deterministic=False, **named)._loop,
    ),
}


def compare(name: str, count: int, bundles: list[list[Event]], **arguments: Any) -> Outcome:
    """Run a job with so many kills and without; in a process without other threads, as it forks.

    Args:
        name: one of ``FORMS``.
        count: kills.
        bundles: what it is given.
        arguments: of the transform, in the place of ``ARGUMENTS``.
    """
    torch.set_num_threads(1)
    make, transform = FORMS[name]
    learner, policy = make(), BatchPolicy(16, 1.0)
    with tempfile.TemporaryDirectory() as root:
        jobs = [
            Job(Path(root) / part, lambda at: transform(make(), policy, at, **(ARGUMENTS | arguments)), bundles)
            for part in ("straight", "killed")
        ]
        _, killed = run_killed(jobs[0], learner, 0), run_killed(jobs[1], learner, count)
        expected, found = (job.comes_to() for job in jobs)
    arrays = expected["arrays"].keys() | found["arrays"].keys()
    return Outcome(
        killed,
        len(found["learned"]) - len(set(found["learned"])),
        len(set(expected["learned"]) - set(found["learned"])),
        len(arrays),
        sum(expected["arrays"].get(one) != found["arrays"].get(one) for one in arrays),
        len(expected["versions"]),
        len(set(expected["versions"]) ^ set(found["versions"])),
    )


def kills(report: Report) -> None:
    """Run three jobs with and without kills: both forms in order of event time, and one in order of arrival."""
    bundles = workload()
    for name in FORMS:
        found = compare(name, KILLS, bundles)
        report.at_least(f"{name}: kills", "", found.killed, KILLS)
        report.at_most(f"{name}: labels learned twice", "", found.twice, 0)
        report.at_most(f"{name}: labels lost", "", found.lost, 0)
        if not name.endswith("as it comes"):  # there the versions depend on how bundles were cut
            report.at_most(f"{name}: arrays that differ, of {found.arrays}", "", found.different, 0)
            report.at_most(f"{name}: versions that differ, of {found.versions}", "", found.changed, 0)
