"""What holds for every policy, whatever comes and when."""

from __future__ import annotations

import math
from collections import Counter

from hypothesis import assume, given
from hypothesis import strategies as st

from contbatch.transforms.batching import BatchPolicy, Overflow, Reason, Scheduler
from contbatch.transforms.batching.queue import Room
from contbatch.transforms.batching.release import Backlog, ReleaseRule
from tests.transforms.batching.devices import Line
from tests.transforms.batching.traffic import Coming, policies, traffic

DEVICE = Line(0.010, 0.0005, 0.0001)


def check_batch(policy: BatchPolicy, weights: list[float], size: int) -> None:
    """Check the limits of one batch; an element that is too heavy runs alone."""
    assert len(weights) <= policy.max_size
    assert size == min((one for one in policy.allowed_sizes if one >= len(weights)), default=len(weights))
    if policy.max_weight is not None and len(weights) > 1:
        weight = len(weights) * max(weights) if policy.length_fn else sum(weights)
        assert weight <= policy.max_weight


@given(policies(), traffic, st.integers(0, 3), st.booleans())
def test_everything_leaves_once_and_within_the_limits(
    policy: BatchPolicy, plan: list[Coming], eager: int, learns: bool
) -> None:
    scheduler: Scheduler[int] = Scheduler(policy, DEVICE if learns else None)
    weighs = bool(policy.weight_fn or policy.length_fn)
    now, taken, refused, fates = 0.0, {}, 0, Counter[int]()

    def turn(flush: bool = False) -> None:
        waiting = len(scheduler)
        batch, shed, reason, size, *_ = scheduler.release(now, flush)
        assert batch or shed or not waiting  # an idle device gets something to do
        assert len(scheduler) == waiting - len(batch) - len(shed)
        fates.update(batch + shed)
        assert all(taken[number][1] < math.inf for number in shed)
        if batch:
            assert isinstance(reason, Reason)
            check_batch(policy, [taken[number][2] if weighs else 0 for number in batch], size)

    for number, (gap, slack, weight, priority) in enumerate(plan):
        now += gap
        if scheduler.submit(number, now, now + slack, float(weight) if weighs else 0.0, priority):
            taken[number] = (now, now + slack, weight)
        else:
            refused += 1
        assert len(scheduler) <= policy.most_waiting
        for _ in range(eager):
            turn()
    while scheduler:
        now += 0.01
        turn(flush=True)
    assert fates == Counter(taken.keys())
    counts = scheduler.statistics()
    shed_ones = refused if policy.overflow is Overflow.SHED else 0
    assert counts.submitted == len(taken) + shed_ones
    assert (counts.refused, counts.waiting) == (shed_ones, 0)
    assert counts.submitted == counts.released + counts.shed + counts.refused


@given(policies(), traffic)
def test_seconds_of_work_are_bounded(policy: BatchPolicy, plan: list[Coming]) -> None:
    """Up to one element of the mean weight: what comes next may be heavier than those before."""
    assume(policy.capacity_seconds is not None)
    scheduler: Scheduler[int] = Scheduler(policy, DEVICE)
    for number, (_, _, weight, _) in enumerate(plan):
        before = scheduler.statistics().waiting_seconds
        if scheduler.submit(number, 0.0, weight=weight) and len(scheduler) > 1:
            assert before <= (policy.capacity_seconds or 0.0) + 1e-9


@given(traffic, st.integers(1, 6), st.sampled_from([None, 12.0]))
def test_the_order_of_arrival_is_kept_where_nothing_else_is_asked_for(
    plan: list[Coming], size: int, most: float | None
) -> None:
    scheduler: Scheduler[int] = Scheduler(BatchPolicy(size, max_weight=most, weight_fn=float))
    now, out = 0.0, []
    for number, (gap, _, weight, _) in enumerate(plan):
        now += gap
        scheduler.submit(number, now, weight=weight)
    while scheduler:
        out += scheduler.release(now).batch
    assert out == list(range(len(plan)))


@given(traffic, st.integers(1, 6))
def test_batches_leave_by_deadline(plan: list[Coming], size: int) -> None:
    """All are there at once, the device is quick enough, and those without deadline may wait for ever."""
    scheduler: Scheduler[int] = Scheduler(BatchPolicy(size, max_delay=1e6))
    deadlines = [100.0 + slack for _, slack, _, _ in plan]
    for number, deadline in enumerate(deadlines):
        scheduler.submit(number, 0.0, deadline)
    out = []
    while scheduler:
        out += scheduler.release(0.0).batch
    assert [deadlines[number] for number in out] == sorted(deadlines)


@given(st.integers(1, 4), st.floats(1.0, 30.0), st.booleans())
def test_nothing_starves_under_a_stream_of_more_urgent_elements(size: int, ahead: float, lengths: bool) -> None:
    """Each second as many come as run, ``ahead`` seconds more urgent: whatever comes later than that is behind."""
    policy = BatchPolicy(size, priority_fn=float)
    if lengths:
        policy = BatchPolicy(size, priority_fn=float, length_fn=float, pool_size=size * 2)
    scheduler: Scheduler[str] = Scheduler(policy)
    scheduler.submit("patient", 0.0, weight=50.0)
    for now in range(64):
        for _ in range(size):
            scheduler.submit("urgent", float(now), priority=ahead, weight=1.0)
        if "patient" in scheduler.release(float(now)).batch:
            break
    assert now <= ahead + 3


@given(policies(), traffic, st.floats(0.0, 3.0))
def test_a_decision_is_never_in_the_past_and_nothing_is_due_before_it(
    policy: BatchPolicy, plan: list[Coming], later: float
) -> None:
    rule, backlog, now = ReleaseRule(policy, DEVICE), Backlog(), 0.0
    for gap, slack, weight, _ in plan:
        now += gap
        backlog = backlog.plus(Backlog(1, weight, now, now + slack))
    time = rule.next_time(backlog, now)
    assert time >= now
    if time < math.inf:
        assert rule.due(backlog, time + 1e-9)
    elif backlog.size:
        assert policy.max_delay == backlog.deadline == math.inf
    if rule.due(backlog, now) is None and now + later < time - 1e-9:
        assert rule.due(backlog, now + later) is None


@given(policies(), policies(), traffic, traffic)
def test_a_change_of_the_policy_loses_nothing_and_takes_effect(
    before: BatchPolicy, after: BatchPolicy, first: list[Coming], second: list[Coming]
) -> None:
    scheduler: Scheduler[int] = Scheduler(before, DEVICE)
    taken, fates, weights = [], Counter[int](), []

    def bring(plan: list[Coming]) -> None:
        for _, slack, weight, priority in plan:
            if scheduler.submit(len(weights), 0.0, slack, weight, priority):
                taken.append(len(weights))
            weights.append(weight)

    bring(first)
    fates.update(number for part in scheduler.release(0.0)[:2] for number in part)
    scheduler.change(after)
    bring(second)
    while scheduler:
        batch, shed, _, size, *_ = scheduler.release(0.0, flush=True)
        fates.update(batch + shed)
        if batch:
            check_batch(after, [weights[number] for number in batch], size)
    assert fates == Counter(taken)


NOTHING_OWN = {"deadline_fn": None, "priority_fn": None, "weight_fn": None, "length_fn": None, "max_weight": None}


@given(policies(**NOTHING_OWN), st.lists(st.tuples(st.integers(0, 9), st.integers(0, 2)), max_size=12), st.booleans())
def test_elements_that_came_together_fare_as_one_by_one(
    policy: BatchPolicy, plan: list[tuple[int, int]], learns: bool
) -> None:
    together, single = (Scheduler[int](policy, DEVICE if learns else None) for _ in range(2))
    now, number = 0.0, 0
    for count, turns in plan:
        now += 0.007
        numbers = range(number, number + count)
        number += count
        taken = together.submit_together(list(numbers), now)
        assert [single.submit(one, now) for one in numbers] == [True] * taken + [False] * (count - taken)
        for _ in range(turns):
            assert together.release(now) == single.release(now)
    assert together.statistics() == single.statistics()
    gone = together.discard(lambda one: one % 3 == 0)
    assert (gone, len(together)) == (single.discard(lambda one: one % 3 == 0), len(single))
    while together:
        now += 0.007
        one = together.release(now, flush=True)
        assert one == single.release(now, flush=True)
        assert not any(number % 3 == 0 for number in one.batch + one.shed)


@given(policies(allowed_sizes=()), traffic, st.integers(0, 5), st.sampled_from([0.0, 5.0, math.inf]))
def test_what_joins_fits_into_the_room(policy: BatchPolicy, plan: list[Coming], size: int, weight: float) -> None:
    assume(not policy.length_fn)
    scheduler: Scheduler[int] = Scheduler(policy, DEVICE)
    weights = {}
    for number, coming in enumerate(plan):
        weights[number] = coming.weight if policy.weight_fn else 0.0
        scheduler.submit(number, 0.0, math.inf, weights[number])
    waiting = len(scheduler)
    released = scheduler.release(0.0, room=Room(size, weight))
    assert len(released.batch) <= size
    assert sum(weights[number] for number in released.batch) <= weight
    assert len(scheduler) == waiting - len(released.batch) - len(released.shed)
