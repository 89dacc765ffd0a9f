"""A device that runs a model step by step: elements join the running batch and leave it between two steps.

Iteration-level scheduling (Yu et al., *Orca*, OSDI 2022). A whole batch would run until its longest element has
finished, while its short ones hold places that others wait for.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from apache_beam.ml.inference.base import KeyedModelHandler, ModelHandler

from contbatch.transforms.batching import CostModel, Reason, Released
from contbatch.transforms.batching.queue import Room
from contbatch.transforms.engine.call import opened
from contbatch.transforms.engine.device import Turn
from contbatch.transforms.engine.dispatch import BatchFacts, Task
from contbatch.transforms.engine.faults import Failure, free_memory, is_out_of_memory, run
from contbatch.transforms.engine.matching import counted
from contbatch.transforms.engine.slot import Loaded

_LOG = logging.getLogger(__name__)


class IterativeHandler(Protocol):
    """What a Beam ``ModelHandler`` has besides, to be run step by step: a decoder, a diffusion model, a beam search.

    A state is what the handler keeps of one element. A handler may also have ``abandon(state, model)``, which frees
    what an element holds that does not come to its end.
    """

    def start(self, elements: Sequence[Any], model: Any) -> Sequence[Any]:
        """Return a state for each of the elements, as a decoder's prefill does. On an error nothing may be held."""

    def step(self, states: Sequence[Any], model: Any) -> Sequence[bool]:
        """Take all of them one step further; returns for each whether it has come to its end."""

    def finish(self, state: Any, model: Any) -> Any:
        """Return the prediction of an element that has come to its end, and free what it holds."""


def iterative(handler: ModelHandler) -> Any | None:
    """Return the :class:`IterativeHandler` in a handler and its wrappers, or ``None``."""
    handler = opened(handler)
    if isinstance(handler, KeyedModelHandler) and hasattr(handler, "_unkeyed"):
        return iterative(handler._unkeyed)
    return handler if all(hasattr(handler, name) for name in ("start", "step", "finish")) else None


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


class StepDevice:
    """Calls ``start``, ``step`` and ``finish`` of the handler that is loaded.

    The policy's ``max_size`` bounds how many run, and its ``max_weight`` what they weigh together: tokens, or bytes of
    memory. To start elements has a fixed cost, however few they are, so free places wait for others until they have
    cost that much (in all never more than twice the least, as for any choice between renting and buying).

    When a step fails, its elements are started again in two halves, and so on down to the one that fails alone.
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
        groups: list[_Group] = []
        try:
            self._run(released, groups, turn)
        finally:  # this thread was given up, or a handler has killed it
            for group in groups:
                for one in group.running:
                    _abandon(_handler(group.loaded), one.state, group.loaded.model)

    def _run(self, released: Released[Task], groups: list[_Group], turn: Turn) -> None:
        """Take steps until nothing runs; what runs is in the groups all the time."""
        began = self._stopwatch()
        groups.append(self._started(released, turn.loaded, turn))
        while any(group.running for group in groups):
            self._drop(groups, turn)
            size, stepped = max(1, sum([len(group.running) for group in groups])), self._stopwatch()
            for group in list(groups):
                ended = self._step(group, groups, turn)
                if ended:
                    now = self._stopwatch()
                    self._leave(group, ended, size, now - began, turn)
                    began = now
            groups[:] = [group for group in groups if group.running]
            self._join(groups, (self._stopwatch() - stepped) / size, turn)

    def warm_up(self, loaded: Loaded) -> None:
        """See :class:`Device`: one step of what was started last."""
        if last := self._last:
            handler = _handler(loaded)
            states = counted(last, handler.start(last, loaded.model))
            handler.step(states, loaded.model)
            for state in states:
                _abandon(handler, state, loaded.model)

    def _drop(self, groups: list[_Group], turn: Turn) -> None:
        """Let go what nobody wants any more."""
        for group in groups:
            gone = [one for one in group.running if one.task[1].abandoned]
            if gone:
                group.running = [one for one in group.running if not one.task[1].abandoned]
                turn.deliver([one.task for one in gone], [_GONE] * len(gone), None, None)
                for one in gone:
                    _abandon(_handler(group.loaded), one.state, group.loaded.model)

    def _join(self, groups: list[_Group], seconds: float, turn: Turn) -> None:
        """Let as many join as there is room for, if that pays by now; a place has cost so many seconds in a step."""
        policy = turn.policy
        running = [one for group in groups for one in group.running]
        free = policy.max_size - len(running)
        self._idle_seconds += seconds * max(0, min(free, turn.waiting))
        if not running or free <= 0 or self._idle_seconds < self._starts.parameters[0]:
            return
        released = turn.more(Room(free, (policy.max_weight or math.inf) - sum([one.weight for one in running])))
        if released is None or not released.batch:
            return
        joined = self._started(released, turn.loaded, turn)
        for group in groups:
            if group.loaded is joined.loaded and not group.closed:
                group.running += joined.running
                return
        groups.append(joined)

    def _started(self, released: Released[Task], loaded: Loaded, turn: Turn) -> _Group:
        """Start what was released; what fails is delivered."""
        wait, now = turn.clock() - released.arrival, self._stopwatch()
        weigh = turn.policy.weight_of
        running = [_Running(task, None, weigh(task[0]), now, wait, released.reason) for task in released.batch]
        started = _Group(loaded, self._start(running, loaded, turn))
        self._idle_seconds, seconds = 0.0, self._stopwatch() - now
        if seconds > 0:
            self._starts.observe(len(running), seconds)
        return started

    def _start(self, running: list[_Running], loaded: Loaded, turn: Turn) -> list[_Running]:
        """Give the elements their states; returns those that have one."""
        handler, model = _handler(loaded), loaded.model

        def call(elements: Sequence[Any]) -> list[Any]:
            turn.calling()
            return counted(elements, handler.start([_value(one, loaded) for one in elements], model))

        done = run(call, [one.task[0] for one in running])
        if done.too_large:
            turn.shrink(done.too_large, sum([one.weight for one in running]) * done.too_large / len(running))
        if done.calls == 1:
            self._last = [_value(one.task[0], loaded) for one in running]
        for one, state in zip(running, done.outcomes, strict=True):
            one.state = state
        failed = [one for one in running if type(one.state) is Failure]
        if failed:
            turn.deliver([one.task for one in failed], [one.state for one in failed], None, None)
        return [one for one in running if type(one.state) is not Failure]

    def _step(self, group: _Group, groups: list[_Group], turn: Turn) -> list[_Running]:
        """Take a step; returns what has come to its end. A step that fails leaves two groups in place of one."""
        running, loaded = group.running, group.loaded
        handler, memory = _handler(loaded), False
        try:
            turn.calling()
            ends = counted(running, handler.step([one.state for one in running], loaded.model)) if running else []
        except Exception as error:  # whatever a handler raises
            memory = is_out_of_memory(error)
            failure = Failure(f"{type(error).__name__}: {error}")
        else:
            return [one for one, end in zip(running, ends, strict=True) if end]
        for one in running:
            _abandon(handler, one.state, loaded.model)
        group.running, group.closed = [], True
        if memory:
            free_memory()
        if len(running) == 1:
            turn.deliver([running[0].task], [failure], None, None)
            return []
        if memory:
            turn.shrink(len(running), sum([one.weight for one in running]))
        half = len(running) // 2
        for part in (running[:half], running[half:]):
            groups.append(_Group(loaded, self._start(part, loaded, turn), closed=True))
        return []

    def _leave(self, group: _Group, ended: list[_Running], size: int, seconds: float, turn: Turn) -> None:
        """Deliver what has come to its end, and learn what it took."""
        loaded, handler = group.loaded, _handler(group.loaded)
        outcomes: list[Any] = []
        for one in ended:
            try:
                turn.calling()
                prediction = handler.finish(one.state, loaded.model)
                keyed = _is_keyed(loaded)
                outcomes.append((one.task[0][0], prediction) if keyed else prediction)
            except Exception as error:  # whatever a handler raises
                outcomes.append(Failure(f"{type(error).__name__}: {error}"))
        version, number = (loaded.version.name, loaded.version.number) if loaded.version else (None, 0)
        facts = BatchFacts(len(ended), size, ended[0].reason, max(one.wait for one in ended), seconds, number)
        turn.deliver([one.task for one in ended], outcomes, facts, version)
        now, weight = self._stopwatch(), sum([one.weight for one in group.running])
        for one in ended:
            turn.learn(size, now - one.since, weight)
        gone = set(map(id, ended))
        group.running = [one for one in group.running if id(one) not in gone]


_GONE = Failure("abandoned")


def _handler(loaded: Loaded) -> Any:
    return iterative(loaded.handler)


def _is_keyed(loaded: Loaded) -> bool:
    return isinstance(opened(loaded.handler), KeyedModelHandler)


def _value(element: Any, loaded: Loaded) -> Any:
    return element[1] if _is_keyed(loaded) else element


def _abandon(handler: Any, state: Any, model: Any) -> None:
    if hasattr(handler, "abandon"):
        try:
            handler.abandon(state, model)
        except Exception:  # whatever a handler raises: the others go on
            _LOG.exception("a handler could not abandon an element")
