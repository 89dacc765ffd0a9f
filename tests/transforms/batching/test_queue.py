from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contbatch.transforms.batching import DeadlineQueue, Waiting

pushes = st.one_of(st.floats(0, 10), st.sampled_from([0.0, 1.0, math.inf])).map(lambda order: ("push", order))
takes = st.integers(0, 7).map(lambda size: ("take", size))


class Incomparable:
    """An element of the user, which need not have an order."""

    def __lt__(self, other: object) -> bool:
        raise TypeError("elements are not compared")


def numbers(taken: list[Waiting[Incomparable]]) -> list[int]:
    return [one.number for one in taken]


@given(st.lists(st.one_of(pushes, takes), max_size=40))
def test_a_queue_gives_by_urgency_then_by_arrival_whatever_came_between(steps: list[tuple[str, float]]) -> None:
    queue: DeadlineQueue[Incomparable] = DeadlineQueue()
    expected: list[tuple[float, int]] = []
    for number, (what, value) in enumerate(steps):
        if what == "push":
            queue.push(Waiting(value, number, (Incomparable(),)))
            expected = sorted([*expected, (value, number)])
        else:
            taken, expected = expected[: int(value)], expected[int(value) :]
            assert [(one.order, one.number) for one in queue.take(int(value))] == taken
        assert len(queue) == len(expected)
        assert sorted(numbers(queue.elements())) == sorted(number for _, number in expected)
        if expected:
            assert queue.head.number == expected[0][1]


def test_an_empty_queue_has_no_head_and_gives_nothing() -> None:
    queue: DeadlineQueue[str] = DeadlineQueue()
    assert queue.take(3) == []
    with pytest.raises(IndexError):
        _ = queue.head


def test_what_is_done_to_the_elements_shown_does_not_change_the_queue() -> None:
    queue: DeadlineQueue[str] = DeadlineQueue()
    queue.push(Waiting(1.0, 0, ("one",)))
    queue.elements().clear()
    assert len(queue) == 1


def test_what_is_left_of_those_that_came_together_keeps_its_place() -> None:
    queue: DeadlineQueue[Incomparable] = DeadlineQueue()
    elements = [Incomparable() for _ in range(7)]
    queue.push(Waiting(1.0, 0, elements[:4]))
    queue.push(Waiting(1.0, 4, elements[4:]))
    taken = [queue.take(size) for size in (1, 2, 3, 9)]
    assert [item for batch in taken for one in batch for item in one.items] == elements
    assert [one.number for batch in taken for one in batch] == [0, 1, 3, 4, 6]
    part = Waiting(1.0, 0, elements[:4])
    for one in part.split(1):  # both may wait again, and then they are compared
        queue.push(one)
    assert [item for one in queue.take(4) for item in one.items] == elements[:4]
