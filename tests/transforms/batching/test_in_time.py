"""On a device that is known exactly, whatever is released is in time."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from contbatch.transforms.batching import BatchPolicy, Scheduler
from tests.transforms.batching.devices import Line
from tests.transforms.batching.traffic import FUNCTIONS, Coming, Play, comings, policies, traffic

DEVICE = Line(0.010, 0.0005, 0.0002)
"""As in ``Play``."""


def bounded(**bounds: object) -> st.SearchStrategy[BatchPolicy]:
    return policies(min_size=1, deadline_fn=FUNCTIONS["deadline_fn"], **bounds)


@given(bounded(capacity_seconds=None), traffic)
def test_what_runs_is_in_time_and_within_the_most_seconds(policy: BatchPolicy, coming: list[Coming]) -> None:
    """Whatever weights, lengths, priorities and allowed sizes there are; one alone may exceed the most seconds."""
    for ran in Play(policy, DEVICE).play(coming).ran:
        if ran.batch:
            seconds = DEVICE.expected(ran.size, ran.weight)
            assert ran.time + seconds <= min(one.deadline for one in ran.batch) + 1e-9
            smallest = min(policy.allowed_sizes, default=1)
            assert len(ran.batch) <= smallest or seconds <= (policy.max_seconds or math.inf) + 1e-9


@given(bounded(), st.lists(comings, max_size=12))
def test_an_element_is_shed_only_if_it_could_not_be_answered_alone_or_a_full_batch_waits(
    policy: BatchPolicy, coming: list[Coming]
) -> None:
    scheduler: Scheduler[Coming] = Scheduler(policy, DEVICE)
    for one in coming:
        weight = one.weight if policy.weight_fn or policy.length_fn else 0.0
        scheduler.submit(one, 0.0, one.slack, weight, one.priority)
    waiting = len(scheduler)
    smallest = min(policy.allowed_sizes, default=1)
    for one in scheduler.release(0.0).shed:
        weight = one.weight * (smallest if policy.length_fn else 1) if policy.weight_fn or policy.length_fn else 0.0
        alone = DEVICE.expected(smallest, weight)
        assert one.slack < alone or (waiting >= policy.max_size and not policy.length_fn)


@given(policies(), traffic)
def test_a_device_gets_nothing_only_if_nothing_is_left(policy: BatchPolicy, coming: list[Coming]) -> None:
    """Where a unit of weight costs as much as 4 elements, many are too late because of what they weigh."""
    play = Play(policy, Line(0.010, 0.0005, 0.002))
    for one in coming:
        play.arrive(one)
    while play.scheduler:
        done = play.scheduler.release(play.now)
        assert done.batch or not play.scheduler
