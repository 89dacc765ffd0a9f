"""What a device runs next, of all that is open in the process. Pure: takes time as an argument; not thread-safe."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import repeat
from typing import Any, NamedTuple

from contbatch.transforms.batching import BatchPolicy, CostModel, Overflow, Reason, Released, Scheduler
from contbatch.transforms.batching.queue import Room
from contbatch.transforms.batching.release import ReleaseRule
from contbatch.transforms.batching.sizing import Sizing
from contbatch.transforms.engine.faults import Failure
from contbatch.transforms.engine.hold import Hold

Task = tuple[Any, ...]
"""An element, the :class:`Work` that it belongs to, and what the owner keeps with it."""


class Shed(NamedTuple):
    """Why an element was given up: :attr:`~contbatch.transforms.Reason.DEADLINE` or ``CAPACITY``."""

    reason: Reason


class Delivery(NamedTuple):
    """Tasks of one owner, with their outcomes.

    Attributes:
        tasks: the tasks.
        outcomes: for each its prediction, a :class:`Shed` or a :class:`~contbatch.transforms.engine.faults.Failure`.
        plain: whether all outcomes are predictions.
        batch: about the batch; ``None`` if there was none, or if another owner is told about it.
        version: of the model, ``None`` if it is the handler's own.
    """

    tasks: list[Task]
    outcomes: list[Any]
    plain: bool
    batch: BatchFacts | None = None
    version: str | None = None


class BatchFacts(NamedTuple):
    """About one batch.

    Attributes:
        size: elements in it.
        padded: elements that the device ran.
        reason: why it was released.
        wait: seconds from the submission of its first task to its start.
        seconds: what it took.
        number: of the model's version, 0 if it is the handler's own.
    """

    size: int
    padded: int
    reason: Reason
    wait: float
    seconds: float
    number: int


@dataclass(eq=False, slots=True)
class Work:
    """What one bundle has given to the engine.

    Attributes:
        outstanding: tasks without an outcome.
        delivered: outcomes that the owner has not fetched.
        waiting: whether the owner waits for all of them, and gives no more before.
        abandoned: whether nobody wants them any more.
        signal: what the owner waits on; not used here.
    """

    outstanding: int = 0
    delivered: list[Delivery] = field(default_factory=list)
    waiting: bool = False
    abandoned: bool = False
    signal: Any = None

    def fetch(self) -> list[Delivery]:
        """Return the outcomes since the last call."""
        delivered, self.delivered = self.delivered, []
        return delivered


class Dispatch:
    """The queue of one device, and the bundles that wait for it.

    Args:
        policy: when a batch is released; its functions are the caller's to call.
        cost: learns what batches cost.
    """

    def __init__(self, policy: BatchPolicy, cost: CostModel) -> None:
        self._cost = cost
        self._scheduler: Scheduler[Task] = Scheduler(policy, cost)
        self._use(policy)
        self._hold = Hold()
        self._open: set[Work] = set()
        self._waiting = 0
        self._held_since: float | None = None
        """Since when the device waits for more; never longer in all than the fixed cost of a batch."""
        self.count = dict.fromkeys(("submitted", "predicted", "shed", "failed", "abandoned"), 0)
        """Tasks by what became of them."""
        self.complete: list[Work] = []
        """Bundles whose last outcome has been delivered; the caller clears it."""

    def _use(self, policy: BatchPolicy) -> None:
        self.policy = policy
        self._rule = ReleaseRule(policy, self._cost)
        self.padded = Sizing(policy, self._cost).padded

    def __len__(self) -> int:
        """Return how many tasks wait."""
        return len(self._scheduler)

    @property
    def bundles(self) -> Collection[Work]:
        """Those that are open."""
        return self._open

    @property
    def seconds(self) -> float:
        """What waits, in seconds of work."""
        return self._scheduler.statistics().waiting_seconds

    def begin(self) -> Work:
        """Return the work of a new bundle."""
        work = Work()
        self._open.add(work)
        return work

    def end(self, work: Work) -> None:
        """Forget a bundle; what of it still waits is not run."""
        if work not in self._open:
            return
        self._open.discard(work)
        self.wait(work, False)
        work.abandoned = True
        if work.outstanding:
            self._scheduler.discard(lambda task: task[1] is work)
            self.count["abandoned"] += work.outstanding
            work.outstanding = 0

    def wait(self, work: Work, waiting: bool = True) -> None:
        """Note whether a bundle waits for all that it has given."""
        self._waiting += waiting - work.waiting
        work.waiting = waiting

    def submit(
        self,
        work: Work,
        tasks: Sequence[Task],
        now: float,
        since: float | None = None,
        deadlines: Sequence[float] | None = None,
        weights: Sequence[float] | None = None,
        priorities: Sequence[float] | None = None,
    ) -> int:
        """Add tasks as far as there is room; returns how many were taken or shed: fewer than all if the rest must wait.

        Args:
            work: whose they are.
            tasks: what is to be run.
            now: the time, in seconds.
            since: when they came; by default now.
            deadlines: when their answers must be there; by default ``latency_slo`` from then, else never.
            weights: their weights or lengths.
            priorities: by how many seconds they are more urgent than their deadlines say.
        """
        self._hold.arrived(now)
        since = now if since is None else since
        policy = self.policy
        if not (deadlines or weights or priorities or policy.weight_fn or policy.length_fn):
            taken = self._scheduler.submit_together(tasks, since)
        else:
            taken, add = 0, self._scheduler.submit
            rows = zip(
                tasks, deadlines or repeat(None), weights or repeat(0.0), priorities or repeat(0.0), strict=False
            )
            for task, deadline, weight, priority in rows:
                if not add(task, since, deadline, weight, priority):
                    break
                taken += 1
        if taken < len(tasks) and self.policy.overflow is Overflow.SHED:
            shed = list(tasks[taken:])
            work.delivered.append(Delivery(shed, [Shed(Reason.CAPACITY)] * len(shed), False))
            self.count["shed"] += len(shed)
            self.count["submitted"] += len(shed)
        else:
            shed = []
        work.outstanding += taken
        self.count["submitted"] += taken
        return taken + len(shed)

    def next_time(self, now: float) -> float:
        """Return when there is something to run, in seconds: now, later, or never if nothing waits."""
        waiting = len(self._scheduler)
        if not waiting:
            return math.inf
        if waiting >= self.policy.max_size or self.is_complete:
            return now
        fixed = self._cost.parameters[0]
        until = self._hold.until(self._waiting, len(self._open) - self._waiting, fixed)
        if until <= now:
            return now
        if self._held_since is None:
            self._held_since = now
        backlog = self._scheduler.backlog()
        if self._rule.due(backlog, now):
            return now
        return max(now, min(until, self._held_since + fixed, self._rule.next_time(backlog, now)))

    @property
    def is_complete(self) -> bool:
        """Whether all bundles wait, and as many are open as lately: nothing more can come."""
        return self._waiting >= len(self._open) >= self._hold.peak

    def release(self, now: float, room: Room | None = None) -> Released[Task]:
        """Take the next batch; what is too late is shed.

        Args:
            now: the time, in seconds.
            room: what still fits where others run already.
        """
        self._held_since = None
        released = self._scheduler.release(now, self.is_complete, room)
        if released.shed:
            self.deliver(released.shed, [Shed(Reason.DEADLINE)] * len(released.shed), now)
        return released

    def deliver(
        self,
        tasks: Sequence[Task],
        outcomes: Sequence[Any],
        now: float,
        batch: BatchFacts | None = None,
        version: str | None = None,
    ) -> None:
        """Give outcomes to the owners of the tasks; one of them is told about the batch."""
        self._hold.delivered(now, len(self._open))
        for work, owned, results in _by_owner(tasks, outcomes):
            if work.abandoned:
                continue
            failed, shed = _count(results, Failure), _count(results, Shed)
            self.count["failed"] += failed
            self.count["shed"] += shed
            self.count["predicted"] += len(results) - failed - shed
            work.delivered.append(Delivery(owned, results, not (failed or shed), batch, version))
            batch = None
            work.outstanding -= len(owned)
            if not work.outstanding:
                self.wait(work, False)
                self.complete.append(work)

    def learn(self, size: int, seconds: float, weight: float) -> None:
        """Learn what a batch took."""
        if seconds > 0:
            self._scheduler.finish(size, seconds, weight)

    def shrink(self, size: int, weight: float) -> None:
        """Never again release a batch of this size, or where elements have weights of this weight: it was too large."""
        policy = self.policy
        if policy.weight_fn or policy.length_fn:
            policy = replace(policy, max_weight=min(policy.max_weight or math.inf, weight / 2))
        elif policy.allowed_sizes:
            fitting = tuple(allowed for allowed in policy.allowed_sizes if allowed < size)
            policy = replace(policy, allowed_sizes=fitting or policy.allowed_sizes[:1])
        else:
            most = max(1, size // 2)
            policy = replace(policy, max_size=most, min_size=min(policy.min_size, most))
        self._scheduler.change(policy)
        self._use(policy)


def _count(outcomes: Sequence[Any], kind: type) -> int:
    return list(map(type, outcomes)).count(kind)


def _by_owner(tasks: Sequence[Task], outcomes: Sequence[Any]) -> Iterator[tuple[Work, list[Task], list[Any]]]:
    """Yield the tasks of each owner, with their outcomes."""
    if not tasks:
        return
    first = tasks[0][1]
    for task in tasks:
        if task[1] is not first:
            break
    else:
        yield first, list(tasks), list(outcomes)
        return
    owned: dict[Work, tuple[list[Task], list[Any]]] = {}
    for task, outcome in zip(tasks, outcomes, strict=True):
        mine = owned.setdefault(task[1], ([], []))
        mine[0].append(task)
        mine[1].append(outcome)
    for work, (own, results) in owned.items():
        yield work, own, results
