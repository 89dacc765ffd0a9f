"""Batches of the most urgent, on a device that takes 10 ms + 0.5 ms * n, and exactly that."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given

from contbatch.transforms.batching import BatchPolicy, CostModel, Reason, Scheduler, Waiting
from contbatch.transforms.batching.queue import Choice, items
from contbatch.transforms.batching.urgency import ByUrgency
from tests.transforms.batching.devices import Line
from tests.transforms.batching.traffic import FUNCTIONS, Coming, policies, traffic

DEVICE = Line(0.010, 0.0005)
Chosen = tuple[list[str], list[str], Reason]


def waits(policy: BatchPolicy, *elements: Waiting[str], cost: CostModel = DEVICE) -> ByUrgency[str]:
    """Let elements wait in the order given, where they are equally urgent."""
    queue: ByUrgency[str] = ByUrgency(policy, cost)
    for number, one in enumerate(elements):
        queue.add(one._replace(number=number))
    return queue


def one(name: str, slack: float = math.inf, order: float | None = None, weight: float = 0.0) -> Waiting[str]:
    """Return an element that is as urgent as its deadline says, or as its order."""
    return Waiting(slack if order is None else order, 0, (name,), slack, weight=weight)


def chosen(choice: Choice[str]) -> Chosen:
    return items(choice.batch), items(choice.shed), choice.reason


def choose(queue: ByUrgency[str], now: float = 0.0, flush: bool = False) -> Chosen:
    return chosen(queue.choose(now, flush))


def weigh(element: Any) -> float:
    raise AssertionError("the functions of a policy are the caller's to call")


@pytest.mark.parametrize(
    ("slack", "batch", "reason"),
    [(0.0119, "abc", Reason.DEADLINE), (0.0121, "abcd", Reason.IDLE_DEVICE), (math.inf, "abcd", Reason.IDLE_DEVICE)],
)
def test_a_batch_is_cut_to_meet_the_deadline_of_its_head(slack: float, batch: str, reason: Reason) -> None:
    """3 take 11.5 ms, 4 take 12 ms."""
    queue = waits(BatchPolicy(8), one("a", slack), one("b", 1.0), one("c", 1.0), one("d", 1.0))
    if slack == math.inf:
        queue = waits(BatchPolicy(8), *map(one, "abcd"))
    assert choose(queue) == (list(batch), [], reason)


def test_what_is_cut_off_waits_again_in_its_place() -> None:
    """In the 11.1 ms of the first 2 run; what comes then goes between the two that were cut off."""
    queue = waits(BatchPolicy(8), one("a", 0.0111), one("b", 1.0), one("c", 1.0), one("d", 2.0))
    assert choose(queue)[0] == ["a", "b"]
    queue.add(one("e", 1.5)._replace(number=9))
    assert choose(queue)[0] == ["c", "e", "d"]
    assert len(queue) == 0


def test_a_batch_is_full_at_max_size() -> None:
    queue = waits(BatchPolicy(2), *map(one, "abc"))
    assert choose(queue) == (["a", "b"], [], Reason.SIZE)
    assert choose(queue) == (["c"], [], Reason.IDLE_DEVICE)
    assert choose(queue) == ([], [], Reason.IDLE_DEVICE)


def test_what_cannot_be_answered_even_alone_is_shed_and_nothing_else() -> None:
    """Alone it takes 10.5 ms."""
    queue = waits(BatchPolicy(8), one("late", 0.0104), one("later", 0.0104), one("fine", 0.0106))
    assert choose(queue) == (["fine"], ["late", "later"], Reason.IDLE_DEVICE)


def test_alone_means_with_its_own_weight() -> None:
    """Alone they take 10.5 ms + 1 ms * weight: 13.5 and 12.5 ms."""
    cost = Line(0.010, 0.0005, 0.001)
    policy = BatchPolicy(8, weight_fn=weigh)
    queue = waits(policy, one("heavy", 0.013, weight=3.0), one("light", 0.014, weight=2.0), cost=cost)
    assert choose(queue) == (["light"], ["heavy"], Reason.IDLE_DEVICE)


@pytest.mark.parametrize(("slack", "shed", "size"), [(0.0249, ["head"], 32), (0.0251, [], 30)])
def test_a_head_is_dropped_where_it_would_cost_the_others_more_than_one_answer(
    slack: float, shed: list[str], size: int
) -> None:
    """A batch of 32 takes 26 ms.

    With 30 for the head's sake in 25 ms, 32 * 25 / 26 - 30 = 0.8 answers are lost, with 29 in 24.5 ms 1.2 answers.
    """
    queue = waits(BatchPolicy(32), one("head", slack), *[one("other", 1.0)] * 40)
    batch, dropped, _ = choose(queue)
    assert (dropped, len(batch)) == (shed, size)


def test_a_head_is_kept_where_the_queue_is_not_full() -> None:
    """With 31 waiting, no full batch is lost: 4 run in the head's 12.1 ms."""
    queue = waits(BatchPolicy(32), one("head", 0.0121), *[one("other", 1.0)] * 30)
    assert choose(queue) == (["head", *["other"] * 3], [], Reason.DEADLINE)


def test_heads_are_dropped_only_until_the_queue_is_not_full() -> None:
    """4 take 12 ms; a head needs the 11.5 ms of ceil(4 - 12 / 10) = 3. Once 3 wait they need 10.5 ms, and 2 fit."""
    queue = waits(BatchPolicy(4), *(one(name, 0.0111) for name in "abcde"))
    assert choose(queue) == (["c", "d"], ["a", "b"], Reason.DEADLINE)


def test_without_a_fixed_cost_a_small_batch_loses_nothing_and_no_head_is_dropped() -> None:
    """1 ms * n: in the head's 1.5 ms one runs, and the others as quickly as before."""
    queue = waits(BatchPolicy(4), one("head", 0.0015), *[one("other", 1.0)] * 4, cost=Line(0.0, 0.001))
    assert choose(queue) == (["head"], [], Reason.DEADLINE)


def test_where_one_costs_as_good_as_nothing_a_head_needs_what_it_takes_alone() -> None:
    """10 ms + 1 us * n: ceil(2 - 10.002 / 10) = 1, so a head is worth what it takes alone: 10.001 ms."""
    cost = Line(0.010, 0.000001)
    assert choose(waits(BatchPolicy(2), one("a", 0.010002), one("b", 1.0), cost=cost))[1] == []
    assert choose(waits(BatchPolicy(2), one("a", 0.0100005), one("b", 1.0), cost=cost))[1] == ["a"]


def test_before_any_batch_was_seen_a_head_with_a_deadline_runs_alone() -> None:
    queue = waits(BatchPolicy(4), one("a", 0.001), one("b", 0.001), cost=CostModel())
    assert choose(queue) == (["a"], [], Reason.DEADLINE)


def test_an_urgent_one_that_is_late_by_its_deadline_is_shed_from_inside_a_batch() -> None:
    """By priority "late" comes second; its 10 ms are too few even alone, and the others have 12 ms for 11."""
    queue = waits(
        BatchPolicy(8), one("a", 0.02, order=0.0), one("late", 0.010, order=0.001), one("c", 0.012, order=0.002)
    )
    assert choose(queue) == (["a", "c"], ["late"], Reason.IDLE_DEVICE)


def test_what_is_tight_and_comes_too_late_in_the_order_does_not_cut_the_batch_before_it() -> None:
    """In 11 ms 2 run: "tight" is the fourth and could not be among them, so it does not bind the three before it."""
    queue = waits(
        BatchPolicy(8), *(one(name, 1.0, order=0.0) for name in "abc"), one("tight", 0.011, order=0.1), one("d", 1.0)
    )
    assert choose(queue) == (["a", "b", "c"], [], Reason.DEADLINE)
    assert choose(queue) == (["tight", "d"], [], Reason.IDLE_DEVICE)


def test_what_is_tight_and_among_the_first_cuts_the_batch() -> None:
    """In 11 ms 2 run: "tight" is the second."""
    queue = waits(BatchPolicy(8), one("a", 1.0, order=0.0), one("tight", 0.011, order=0.1), one("c", 1.0))
    assert choose(queue) == (["a", "tight"], [], Reason.DEADLINE)


@pytest.mark.parametrize(
    ("weights", "batch", "reason"),
    [
        ((3, 3, 3), 2, Reason.WEIGHT),  # 3 + 3 <= 7 < 9
        ((3, 4, 0), 3, Reason.IDLE_DEVICE),  # exactly 7
        ((3, 4, 0.5), 2, Reason.WEIGHT),
        ((9, 1, 1), 1, Reason.WEIGHT),  # heavier than allowed: alone
        ((9, 0, 0), 1, Reason.WEIGHT),
        ((1, 9, 1), 1, Reason.WEIGHT),
    ],
)
def test_a_batch_weighs_no_more_than_allowed_unless_it_is_one(
    weights: tuple[float, ...], batch: int, reason: Reason
) -> None:
    policy = BatchPolicy(8, weight_fn=weigh, max_weight=7.0)
    queue = waits(policy, *(one(str(at), weight=weight) for at, weight in enumerate(weights)))
    assert choose(queue) == ([*map(str, range(batch))], [], reason)
    assert len(queue) == 3 - batch


def test_weight_costs_time() -> None:
    """10 ms + 1 ms * weight, each of weight 2: in 15 ms 2 run, in 14 ms; without their weight all would."""
    policy = BatchPolicy(8, weight_fn=weigh)
    queue = waits(policy, one("a", 0.015, weight=2.0), *[one("b", 1.0, weight=2.0)] * 3, cost=Line(0.010, 0.0, 0.001))
    assert choose(queue) == (["a", "b"], [], Reason.DEADLINE)


def test_no_batch_runs_for_longer_than_max_seconds() -> None:
    """In 11.1 ms 2 run, deadline or none."""
    queue = waits(BatchPolicy(8, max_seconds=0.0111), *map(one, "abcde"))
    assert [choose(queue) for _ in range(3)] == [
        (["a", "b"], [], Reason.DEADLINE),
        (["c", "d"], [], Reason.DEADLINE),
        (["e"], [], Reason.IDLE_DEVICE),
    ]


def test_a_goal_of_time_cuts_a_batch_to_min_size_at_least() -> None:
    """In 11 ms 2 run, but 3 are asked for; where only 2 wait, 2 run."""
    queue = waits(BatchPolicy(8, min_size=3), one("a", 0.0111), *(one(name, 1.0) for name in "bcde"))
    assert choose(queue)[0] == ["a", "b", "c"]
    assert choose(queue)[0] == ["d", "e"]


def test_a_remainder_is_left_where_that_costs_less_than_padding() -> None:
    """5 padded to 32 take 26 ms, 5.2 ms each; 4 take 12 ms, 3 ms each. In the end both remainders take 12 ms."""
    policy = BatchPolicy(allowed_sizes=(4, 32))
    assert choose(waits(policy, *map(one, "abcde"))) == (list("abcd"), [], Reason.SIZE)
    assert choose(waits(policy, *map(one, "abc"))) == (list("abc"), [], Reason.IDLE_DEVICE)


def test_at_the_end_a_remainder_runs_next_and_its_time_counts() -> None:
    """5 padded to 24 take 22 ms, 4.4 ms each; 4 take 3 ms each, but 4 and then 1 padded to 4 take 24 ms."""
    policy = BatchPolicy(allowed_sizes=(4, 24))
    assert choose(waits(policy, *map(one, "abcde")), flush=False)[0] == list("abcd")
    assert choose(waits(policy, *map(one, "abcde")), flush=True)[0] == list("abcde")


def test_sizes_are_chosen_by_the_time_left_not_by_the_clock() -> None:
    """At 100 s, 5 have 22.5 ms: enough for the 22 ms of 24, and the one left over would have to be done in 23 ms."""
    policy = BatchPolicy(allowed_sizes=(4, 24))
    slacks = (0.0225, 0.0225, 0.0225, 0.0225, 0.023)
    assert choose(waits(policy, *(one("x", 100.0 + slack) for slack in slacks)), now=100.0)[0] == ["x"] * 5


@given(policies(length_fn=None, weight_fn=FUNCTIONS["weight_fn"], capacity_seconds=None), traffic)
def test_of_all_that_is_there_the_most_urgent_leave_first(policy: BatchPolicy, coming: list[Coming]) -> None:
    """Urgency is the deadline, or for want of one the end of the delay, a minute at most, less the priority."""
    scheduler: Scheduler[tuple[float, int]] = Scheduler(replace(policy, capacity=100), DEVICE)
    patience = 60.0 if policy.max_delay == math.inf else policy.max_delay
    for number, come in enumerate(coming):
        arrival = number * 0.001
        deadline = arrival + come.slack
        due = deadline if deadline < math.inf else arrival + patience
        scheduler.submit((due - come.priority, number), arrival, deadline, come.weight, come.priority)
    left = []
    now = len(coming) * 0.001
    while scheduler:
        left += scheduler.release(now).batch
        now += 0.01
    assert left == sorted(left)


def test_of_those_that_came_together_no_more_are_dropped_than_a_full_queue_asks_for() -> None:
    """A batch of 4 takes 12 ms, so a full queue wants batches of 3 at least, 11.5 ms; the slack allows one, 10.5 ms."""
    queue = waits(BatchPolicy(max_size=4), Waiting(0.0106, 0, ("a", "b", "c", "d", "e"), 0.0106))
    assert choose(queue)[:2] == (["c"], ["a", "b"])
    assert len(queue) == 2
