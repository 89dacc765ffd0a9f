"""The rows of the matrix."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tests.runners.conformance import aggregation, batching, learning, serving, stopping
from tests.runners.conformance.jobs import Cell
from tests.runners.conformance.places import Input

BOTH: tuple[Input, ...] = ("bounded", "live")


@dataclass(frozen=True)
class Case:
    """A feature.

    Attributes:
        name: of the row.
        check: runs it, and checks what comes out.
        inputs: the kinds of input that it makes sense on.
    """

    name: str
    check: Callable[[Cell], None]
    inputs: tuple[Input, ...] = BOTH


CASES = (
    Case("size", batching.size),
    Case("delay", batching.delay, ("live",)),
    Case("event-time delay", batching.event_time_delay),
    Case("weight", batching.weight),
    Case("window boundary", batching.window_boundary),
    Case("end of input", batching.end_of_input),
    Case("drain, cancel", stopping.stop),
    Case("keyed", batching.keys),
    Case("late data", learning.late_data),
    Case("shed", batching.shed, ("live", "unbounded")),
    Case("poison element", serving.poison),
    Case("hot swap", serving.hot_swap),
    Case("online update", learning.online_update),
    Case("feedback join", learning.feedback_join),
    Case("metrics", serving.metrics),
    Case("aggregation behind it", aggregation.behind),
)
