"""What a device runs next, on a clock of numbers: a batch takes 10 ms + 0.1 ms * n."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contbatch.transforms.batching import BatchPolicy, Reason
from contbatch.transforms.batching.queue import Room
from contbatch.transforms.engine.dispatch import BatchFacts, Dispatch, Shed, Work
from contbatch.transforms.engine.faults import Failure
from tests.transforms.batching.devices import Line

DEVICE = Line(0.010, 0.0001)
FACTS = BatchFacts(1, 1, Reason.SIZE, 0.0, 0.0, 0)


def dispatch(**policy: Any) -> Dispatch:
    return Dispatch(BatchPolicy(**policy), DEVICE)


def give(ours: Dispatch, work: Work, *elements: Any, now: float = 0.0, **asked: Any) -> int:
    return ours.submit(work, [(element, work, None) for element in elements], now, **asked)


def elements(ours: Dispatch, now: float = 0.0, room: Room | None = None) -> list[Any]:
    return [task[0] for task in ours.release(now, room).batch]


def test_nothing_is_run_never() -> None:
    assert dispatch().next_time(5.0) == math.inf


def test_what_waits_alone_runs_at_once() -> None:
    ours = dispatch()
    work = ours.begin()
    give(ours, work, "a", "b")
    ours.wait(work)
    assert ours.next_time(0.0) == 0.0
    assert elements(ours) == ["a", "b"]


def test_it_waits_for_a_bundle_that_gives_more_at_once_and_not_when_that_waits_too() -> None:
    ours = dispatch()
    first, second = ours.begin(), ours.begin()
    give(ours, first, "a", now=0.0)
    give(ours, first, "b", now=0.001)
    ours.wait(first)
    assert ours.next_time(0.001) == pytest.approx(0.001 + 3 * 0.001)
    assert ours.next_time(0.005) == 0.005
    ours.wait(second)
    assert ours.next_time(0.001) == 0.001


def test_a_full_batch_does_not_wait() -> None:
    ours = dispatch(max_size=2)
    work = ours.begin()
    give(ours, work, "a", now=0.0)
    give(ours, work, "b", now=0.001)
    assert ours.next_time(0.001) == 0.001


def test_a_deadline_ends_the_wait() -> None:
    ours = dispatch(latency_slo=0.0125)
    work, _ = ours.begin(), ours.begin()
    give(ours, work, "a", now=0.0)
    give(ours, work, "b", now=0.001)
    assert ours.next_time(0.001) == pytest.approx(0.0125 - 0.0103)  # the first one's, were there one more


def test_a_device_waits_no_longer_in_all_than_a_batch_costs() -> None:
    ours = dispatch(max_size=1000)
    work, _ = ours.begin(), ours.begin()
    give(ours, work, "a", now=0.0)
    now = 0.001
    give(ours, work, "b", now=now)
    while ours.next_time(now) > now:  # one after the other comes, and each could make it wait anew
        now += 0.001
        give(ours, work, "c", now=now)
        assert now < 0.020
    assert now == pytest.approx(0.011)


def test_what_is_due_does_not_wait() -> None:
    ours = dispatch(max_delay=0.0)
    work, _ = ours.begin(), ours.begin()
    give(ours, work, "a", now=0.0)
    give(ours, work, "b", now=0.001)
    assert ours.next_time(0.001) == 0.001


def test_callers_that_come_back_are_waited_for() -> None:
    ours = dispatch()
    for start in (0.0, 1.0, 2.0):
        works = [ours.begin(), ours.begin()]
        give(ours, works[0], "a", now=start + 0.001)
        ours.wait(works[0])
        if start:  # it knows that two come, and how soon
            assert ours.next_time(start + 0.001) > start + 0.001
        give(ours, works[1], "b", now=start + 0.002)
        ours.wait(works[1])
        assert ours.next_time(start + 0.002) == start + 0.002
        batch = ours.release(start + 0.002).batch
        ours.deliver(batch, [1, 2], start + 1.0)
        for work in works:
            ours.end(work)


def test_a_bundle_that_has_all_its_outcomes_does_not_wait_any_more() -> None:
    ours = dispatch()
    work, other = ours.begin(), ours.begin()
    give(ours, work, "a")
    give(ours, other, "b")
    ours.wait(work)
    ours.wait(other)
    assert ours.is_complete
    batch = ours.release(0.0).batch
    ours.deliver(batch[:1], [1], 0.01)
    assert (ours.is_complete, ours.complete, other.waiting) == (False, [work], True)


def test_each_bundle_gets_its_own_and_one_is_told_about_the_batch() -> None:
    ours = dispatch()
    works = [ours.begin(), ours.begin()]
    give(ours, works[0], 1, 3)
    give(ours, works[1], 2)
    batch = ours.release(0.0).batch
    ours.deliver(batch, [10 * task[0] for task in batch], 0.01, FACTS, "v1")
    for work, expected in zip(works, [[(1, 10), (3, 30)], [(2, 20)]], strict=True):
        (delivery,) = work.delivered
        assert [(task[0], outcome) for task, outcome in zip(delivery.tasks, delivery.outcomes, strict=True)] == expected
        assert delivery.version == "v1"
    assert [work.delivered[0].batch for work in works] == [FACTS, None]


def test_what_is_too_late_is_shed_to_its_owner() -> None:
    ours = dispatch()
    work = ours.begin()
    give(ours, work, "late", "fine", deadlines=[0.005, 1.0])
    assert elements(ours) == ["fine"]
    (delivery,) = work.delivered
    assert ([task[0] for task in delivery.tasks], delivery.outcomes) == (["late"], [Shed(Reason.DEADLINE)])


def test_what_is_too_much_waits_or_is_shed() -> None:
    blocks, sheds = dispatch(max_size=2, capacity=3), dispatch(max_size=2, capacity=3, overflow="shed")
    for ours, taken in ((blocks, 3), (sheds, 5)):
        work = ours.begin()
        assert give(ours, work, *range(5)) == taken
        assert len(ours) == 3
    assert [task[0] for task in work.delivered[0].tasks] == [3, 4]
    assert work.delivered[0].outcomes == [Shed(Reason.CAPACITY)] * 2
    assert work.outstanding == 3


def test_what_joins_fits_beside_what_runs() -> None:
    ours = dispatch(weight_fn=lambda one: one)
    work = ours.begin()
    give(ours, work, 3, 4, 5, weights=[3.0, 4.0, 5.0])
    assert elements(ours, room=Room(2, 2.0)) == []
    assert elements(ours, room=Room(1, 9.0)) == [3]
    assert elements(ours, room=Room(2, 8.0)) == [4]
    assert elements(ours, room=Room(0, 8.0)) == []
    assert elements(ours) == [5]


def test_a_size_that_was_too_large_is_not_released_again() -> None:
    ours = dispatch(max_size=8, min_size=8)
    work = ours.begin()
    ours.shrink(8, 0.0)
    give(ours, work, *range(8))
    assert [len(elements(ours)) for _ in range(2)] == [4, 4]
    static = dispatch(allowed_sizes=(2, 4, 8))
    static.shrink(8, 0.0)
    assert static.policy.allowed_sizes == (2, 4)
    static.shrink(2, 0.0)
    assert static.policy.allowed_sizes == (2,)
    weighed = dispatch(max_size=8, weight_fn=lambda one: one, max_weight=100.0)
    weighed.shrink(8, 60.0)
    assert weighed.policy.max_weight == 30.0


@given(st.data())
def test_nothing_is_lost_and_what_is_abandoned_leaves_nothing(data: st.DataObject) -> None:
    policy = BatchPolicy(
        max_size=data.draw(st.integers(1, 5)),
        capacity=data.draw(st.integers(5, 12)),
        overflow=data.draw(st.sampled_from(["block", "shed"])),
        latency_slo=data.draw(st.sampled_from([None, 0.02, 1.0])),
    )
    ours, now = Dispatch(policy, DEVICE), 0.0
    works: list[Work] = []
    running: list[Any] = []
    given_in: dict[int, int] = {}
    for _ in range(data.draw(st.integers(1, 30))):
        now += data.draw(st.sampled_from([0.0, 0.001, 0.02]))
        what = data.draw(st.sampled_from(["begin", "give", "end", "wait", "run", "finish"]))
        if what == "begin":
            works.append(ours.begin())
            given_in[id(works[-1])] = 0
        elif what == "run" and not running:
            running = list(ours.release(now).batch)
        elif what == "finish":
            ours.deliver(running, [Failure("x") if one[0] % 3 == 0 else one[0] for one in running], now)
            running = []
        elif works:
            work = data.draw(st.sampled_from(works))
            if what == "give":
                given_in[id(work)] += give(ours, work, *range(data.draw(st.integers(1, 6))), now=now)
            elif what == "wait":
                ours.wait(work)
            else:
                ours.end(work)
                works.remove(work)
        alive = sum(not task[1].abandoned for task in running)
        fates = sum(count for name, count in ours.count.items() if name != "submitted")
        assert ours.count["submitted"] == fates + len(ours) + alive
        for work in works:
            delivered = sum(len(one.tasks) for one in work.delivered)
            assert given_in[id(work)] == delivered + work.outstanding
    for work in works:
        ours.end(work)
    assert (len(ours), list(ours.bundles)) == (0, [])
