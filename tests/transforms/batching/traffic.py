"""Random policies and traffic, and a virtual device that runs what a scheduler gives it."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, NamedTuple

from hypothesis import strategies as st

from contbatch.transforms.batching import BatchPolicy, CostModel, Overflow, Reason, Scheduler


class Element(NamedTuple):
    """What a policy's functions are asked about."""

    number: int
    arrival: float
    deadline: float
    weight: float
    priority: float


class Ran(NamedTuple):
    """What a scheduler said at one time."""

    time: float
    batch: list[Element]
    shed: list[Element]
    reason: Reason
    size: int
    weight: float


class Coming(NamedTuple):
    """An element to come: seconds after the one before, until its deadline, and its other properties."""

    gap: float = 0.0
    slack: float = math.inf
    weight: float = 1.0
    priority: float = 0.0


FUNCTIONS: dict[str, Any] = {
    "deadline_fn": lambda one: one.deadline,
    "priority_fn": lambda one: one.priority,
    "weight_fn": lambda one: one.weight,
    "length_fn": lambda one: one.weight,
}

comings = st.builds(
    Coming,
    st.sampled_from([0.0, 0.0, 0.0, 0.001, 0.01, 0.1]),
    st.sampled_from([0.001, 0.012, 0.02, 0.05, 0.3, math.inf]),
    st.sampled_from([0.0, 1.0, 2.0, 3.0, 7.0, 30.0]),
    st.sampled_from([-1.0, 0.0, 0.0, 0.02, 2.0]),
)
traffic = st.lists(comings, max_size=40)


@st.composite
def policies(draw: st.DrawFn, **fixed: Any) -> BatchPolicy:
    """Draw a policy; some of its bounds may be given."""

    def maybe(values: st.SearchStrategy[Any]) -> Any:
        return draw(st.one_of(st.none(), values))

    size = draw(st.integers(1, 6))
    weigher = draw(st.sampled_from([None, "weight_fn", "length_fn"]))
    given: dict[str, Any] = {
        "max_size": size,
        "max_delay": draw(st.sampled_from([0.0, 0.01, 1.0, math.inf])),
        "latency_slo": maybe(st.sampled_from([0.005, 0.02, 0.1, 5.0])),
        "min_size": draw(st.integers(1, size)),
        "max_seconds": maybe(st.sampled_from([0.011, 0.012, 0.05])),
        "target_overhead": maybe(st.sampled_from([0.1, 0.9])),
        "capacity_seconds": maybe(st.sampled_from([0.01, 0.03, 0.2])),
        "overflow": draw(st.sampled_from(Overflow)),
    }
    for name in ("deadline_fn", "priority_fn"):
        if draw(st.booleans()):
            given[name] = FUNCTIONS[name]
    if weigher is not None:
        given |= {weigher: FUNCTIONS[weigher], "max_weight": maybe(st.sampled_from([0.5, 4.0, 10.0]))}
    if draw(st.booleans()):
        sizes = draw(st.sets(st.integers(1, size), max_size=3)) | {size}
        given["allowed_sizes"] = tuple(sizes)
    given |= fixed
    needed = given["max_size"]
    if given.get("length_fn"):
        given["pool_size"] = maybe(st.integers(needed, 3 * needed))
        needed = given["pool_size"] or 8 * needed
    given["capacity"] = maybe(st.integers(needed, needed + 5))
    return BatchPolicy(**given)


class Play:
    """A scheduler in front of one device that takes 10 ms + 0.5 ms * size + 0.2 ms * weight, on virtual time."""

    def __init__(self, policy: BatchPolicy, cost: CostModel | None = None) -> None:
        self.policy = policy
        self.scheduler: Scheduler[Element] = Scheduler(policy, cost)
        self.now = self.free = 0.0
        self.came: list[Element] = []
        self.refused: list[Element] = []
        self.ran: list[Ran] = []

    def play(self, comings: Iterable[Coming]) -> Play:
        """Let elements come, run what waits whenever the device is free, and in the end all that is left."""
        for coming in comings:
            self.arrive(coming)
        while self.scheduler:
            self._go_to(self.free, flush=True)
        return self

    def arrive(self, coming: Coming) -> None:
        """Run what is run before it, let it come, and run it if the device is idle."""
        self._go_to(self.now + coming.gap)
        element = Element(len(self.came), self.now, self.now + coming.slack, coming.weight, coming.priority)
        self.came.append(element)
        if not self._submit(element):
            if self.policy.overflow is Overflow.SHED:
                self.refused.append(element)
                return
            while not self._submit(element):
                self._go_to(self.free)
        if self.free <= self.now:
            self._turn()

    @property
    def batches(self) -> list[list[int]]:
        """The elements of each batch, by number."""
        return [[one.number for one in ran.batch] for ran in self.ran if ran.batch]

    def _submit(self, one: Element) -> bool:
        policy, options = self.policy, {}
        for name, option in (("weight_fn", "weight"), ("length_fn", "weight"), ("priority_fn", "priority")):
            if function := getattr(policy, name):
                options[option] = function(one)
        deadline = policy.deadline_fn(one) if policy.deadline_fn else None
        return self.scheduler.submit(one, self.now, deadline, **options)

    def _go_to(self, time: float, flush: bool = False) -> None:
        while self.scheduler and self.free <= time:
            self.now = max(self.now, self.free)
            self._turn(flush)
        self.now = max(self.now, time)

    def _turn(self, flush: bool = False) -> None:
        ran = Ran(self.now, *self.scheduler.release(self.now, flush)[:5])
        self.ran.append(ran)
        if ran.batch:
            seconds = 0.010 + 0.0005 * ran.size + 0.0002 * ran.weight
            self.free = self.now + seconds
            self.scheduler.finish(ran.size, seconds, ran.weight)
