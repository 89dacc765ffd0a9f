"""A device that runs a model step by step: elements join the running batch and leave it between two steps.

Iteration-level scheduling (Yu et al., *Orca*, OSDI 2022). A whole batch would run until its longest element has
finished, while its short ones hold places that others wait for.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from contbatch.transforms.batching import BatchPolicy, CostModel, Reason, Released
from contbatch.transforms.batching.queue import Room
from contbatch.transforms.engine.device import Turn
from contbatch.transforms.engine.dispatch import BatchFacts, Task
from contbatch.transforms.engine.faults import Failure, failure_of, free_memory, run
from contbatch.transforms.engine.iterative import abandon, handler_of, is_keyed, value
from contbatch.transforms.engine.matching import counted
from contbatch.transforms.engine.slot import Loaded


@dataclass(eq=False, slots=True)
class _Running:
    """An element that runs.

    Attributes:
        task: it.
        state: what the handler keeps of it.
        weight: in the budget.
        since: when it was started, by the stopwatch.
        wait: seconds that it had waited.
        reason: why it was released.
    """

    task: Task
    state: Any
    weight: float
    since: float
    wait: float
    reason: Reason


@dataclass(eq=False)
class _Group:
    """Elements that take their steps together, with one model.

    Attributes:
        loaded: the model.
        running: the elements.
        closed: whether no others may join, as one of them is suspected to fail all.
    """

    loaded: Loaded
    running: list[_Running] = field(default_factory=list)
    closed: bool = False


@dataclass(eq=False)
class _Going:
    """All that a turn has to bring to an end.

    Attributes:
        groups: what runs.
        postponed: elements for which the memory was not enough beside others.
        left: whether others have left since they were tried.
    """

    groups: list[_Group] = field(default_factory=list)
    postponed: list[_Running] = field(default_factory=list)
    left: bool = False

    @property
    def running(self) -> list[_Running]:
        """The elements that run."""
        return [one for group in self.groups for one in group.running]


class StepDevice:
    """Calls ``start``, ``step`` and ``finish`` of the handler that is loaded.

    The policy's ``max_size`` bounds how many run, and its ``max_weight`` what they weigh together: tokens, or bytes of
    memory. To start elements has a fixed cost, however few they are, so free places wait for others until they have
    cost that much (in all never more than twice the least, as for any choice between renting and buying).

    When a step fails, its elements are started again in two halves, and so on down to the one that fails alone. Where
    the memory was not enough, one half waits until others have left; only what does not fit alone fails.
    With a new model those that run go on with theirs, and those that join have the new one.

    Args:
        stopwatch: seconds, for what an element takes.
    """

    def __init__(self, stopwatch: Callable[[], float] = time.perf_counter) -> None:
        self._stopwatch = stopwatch
        self._last: list[Any] = []
        self._starts = CostModel()
        """What starts take."""
        self._idle_seconds = 0.0
        """What places that stayed free have cost since."""

    def execute(self, released: Released[Task], turn: Turn) -> None:
        """See :class:`Device`."""
        going = _Going()
        try:
            self._run(released, going, turn)
        finally:  # this thread was given up, or a handler has killed it
            for group in going.groups:
                for one in group.running:
                    abandon(handler_of(group.loaded), one.state, group.loaded.model)

    def _run(self, released: Released[Task], going: _Going, turn: Turn) -> None:
        """Take steps until nothing runs; what runs is in ``going`` all the time."""
        began = self._stopwatch()
        self._admit(released, going, turn)
        while going.groups or going.postponed:
            self._drop(going, turn)
            size, stepped = len(going.running), self._stopwatch()
            for group in list(going.groups):
                ended = self._step(group, going, turn)
                if ended:
                    now = self._stopwatch()
                    self._leave(group, ended, size, now - began, turn)
                    began, going.left = now, True
            going.groups[:] = [group for group in going.groups if group.running]
            running = going.running
            if going.postponed and (going.left or not running):
                count = _fitting(going.postponed, running, turn.policy)
                again, going.postponed, going.left = going.postponed[:count], going.postponed[count:], False
                if again:
                    self._start(again, turn.loaded, going, turn)
            elif running and not going.postponed:
                self._join(running, (self._stopwatch() - stepped) / size, going, turn)

    def warm_up(self, loaded: Loaded) -> None:
        """See :class:`Device`: one step of what was started last."""
        if last := self._last:
            handler = handler_of(loaded)
            states = counted(last, handler.start(last, loaded.model))
            handler.step(states, loaded.model)
            for state in states:
                abandon(handler, state, loaded.model)

    def _drop(self, going: _Going, turn: Turn) -> None:
        """Let go what nobody wants any more."""
        gone = [one for one in going.postponed if one.task[1].abandoned]
        going.postponed = [one for one in going.postponed if not one.task[1].abandoned]
        for group in going.groups:
            for one in group.running:
                if one.task[1].abandoned:
                    gone.append(one)
                    abandon(handler_of(group.loaded), one.state, group.loaded.model)
            group.running = [one for one in group.running if not one.task[1].abandoned]
        if gone:
            going.left = True
            turn.deliver([one.task for one in gone], [_GONE] * len(gone), None, None)

    def _join(self, running: list[_Running], seconds: float, going: _Going, turn: Turn) -> None:
        """Let as many join as there is room for, if that pays by now; a place has cost so many seconds in a step."""
        policy = turn.policy
        free = policy.max_size - len(running)
        self._idle_seconds += seconds * max(0, min(free, turn.waiting))
        if free <= 0 or self._idle_seconds < self._starts.parameters[0]:
            return
        released = turn.more(Room(free, (policy.max_weight or math.inf) - sum([one.weight for one in running])))
        if released is not None and released.batch:
            self._admit(released, going, turn)

    def _admit(self, released: Released[Task], going: _Going, turn: Turn) -> None:
        """Start what was released, and learn what that took."""
        wait, now = turn.clock() - released.arrival, self._stopwatch()
        weigh = turn.policy.weight_of
        running = [_Running(task, None, weigh(task[0]), now, wait, released.reason) for task in released.batch]
        self._start(running, turn.loaded, going, turn)
        self._idle_seconds, seconds = 0.0, self._stopwatch() - now
        if seconds > 0:
            self._starts.observe(len(running), seconds)

    def _start(
        self, starting: list[_Running], loaded: Loaded, going: _Going, turn: Turn, *, closed: bool = False
    ) -> None:
        """Give elements their states, and let them run; what fails is delivered, or postponed beside others."""
        handler, model = handler_of(loaded), loaded.model

        def call(elements: Sequence[Any]) -> list[Any]:
            turn.calling()
            return counted(elements, handler.start([value(one, loaded) for one in elements], model))

        done = run(call, [one.task[0] for one in starting])
        if done.too_large:
            turn.shrink(done.too_large, sum([one.weight for one in starting]) * done.too_large / len(starting))
        if done.calls == 1:
            self._last = [value(one.task[0], loaded) for one in starting]
        started: list[_Running] = []
        failed: list[tuple[_Running, Failure]] = []
        for one, state in zip(starting, done.outcomes, strict=True):
            if type(state) is Failure:
                failed.append((one, state))
            else:
                one.state = state
                started.append(one)
        if started:
            fitting = (each for each in going.groups if each.loaded is loaded and not (closed or each.closed))
            group = next(fitting, None)
            if group is None:
                going.groups.append(_Group(loaded, started, closed))
            else:
                group.running += started
        self._give_up(failed, going, turn)

    def _give_up(self, failed: list[tuple[_Running, Failure]], going: _Going, turn: Turn) -> None:
        """Deliver why elements failed; those that lacked memory beside others have another turn."""
        others = bool(going.running)
        going.postponed += [one for one, why in failed if why.memory and others]
        final = [(one.task, why) for one, why in failed if not (why.memory and others)]
        if final:
            going.left = True
            turn.deliver([task for task, _ in final], [why for _, why in final], None, None)

    def _step(self, group: _Group, going: _Going, turn: Turn) -> list[_Running]:
        """Take a step; returns what has come to its end. A group whose step fails is started again in halves."""
        running, loaded = group.running, group.loaded
        handler = handler_of(loaded)
        try:
            turn.calling()
            ends = counted(running, handler.step([one.state for one in running], loaded.model)) if running else []
        except Exception as error:  # whatever a handler raises
            failure = failure_of(error)
        else:
            return [one for one, end in zip(running, ends, strict=True) if end]
        for one in running:
            abandon(handler, one.state, loaded.model)
        group.running, group.closed = [], True
        if failure.memory:
            free_memory()
        if len(running) == 1:
            self._give_up([(running[0], failure)], going, turn)
            return []
        first, second = running[: len(running) // 2], running[len(running) // 2 :]
        if failure.memory:
            turn.shrink(len(running), sum([one.weight for one in running]))
            going.postponed += second
        self._start(first, loaded, going, turn, closed=not failure.memory)
        if not failure.memory:
            self._start(second, loaded, going, turn, closed=True)
        return []

    def _leave(self, group: _Group, ended: list[_Running], size: int, seconds: float, turn: Turn) -> None:
        """Deliver what has come to its end, and learn what it took."""
        loaded, handler = group.loaded, handler_of(group.loaded)
        outcomes: list[Any] = []
        for one in ended:
            try:
                turn.calling()
                prediction = handler.finish(one.state, loaded.model)
                keyed = is_keyed(loaded)
                outcomes.append((one.task[0][0], prediction) if keyed else prediction)
            except Exception as error:  # whatever a handler raises
                outcomes.append(failure_of(error))
        version, number = (loaded.version.name, loaded.version.number) if loaded.version else (None, 0)
        facts = BatchFacts(len(ended), size, ended[0].reason, max(one.wait for one in ended), seconds, number)
        turn.deliver([one.task for one in ended], outcomes, facts, version)
        now, weight = self._stopwatch(), sum([one.weight for one in group.running])
        for one in ended:
            turn.learn(size, now - one.since, weight)
        gone = set(map(id, ended))
        group.running = [one for one in group.running if id(one) not in gone]


_GONE = Failure("abandoned")


def _fitting(waiting: Sequence[_Running], running: Sequence[_Running], policy: BatchPolicy) -> int:
    """Return how many of those that wait may run beside others, in their order; one may if there are no others."""
    size, weight, most = len(running), sum([one.weight for one in running]), policy.max_weight or math.inf
    for count, one in enumerate(waiting):
        weight += one.weight
        if size + count and (size + count >= policy.max_size or weight > most):
            return count
    return len(waiting)
