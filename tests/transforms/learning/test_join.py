"""ttl is 10 us throughout: a label is learned up to 10 after its request, late up to 20, unknown beyond."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contbatch.transforms import Event, Kind
from contbatch.transforms.learning.join import Join, Label, Refusal, Served


def label(time: int, request_id: str = "a", row: int = 0) -> Label:
    return Label(Event(time, Kind.FEEDBACK, row, b"\xff"), request_id, 1.0, 1.0)


def served(time: int) -> Served:
    return Served(time, b"\x00\xff", 0.5, "0.1")


@pytest.mark.parametrize(("time", "fate"), [(110, served(100)), (111, Refusal.LATE), (120, Refusal.LATE), (121, None)])
def test_a_label_is_learned_then_late_then_unknown(time: int, fate: object) -> None:
    join = Join(10)
    join.serve("a", served(100))
    join.expire(time)
    assert join.match(label(time)) == fate


def test_a_second_label_is_a_duplicate_even_a_late_one() -> None:
    join = Join(10)
    join.serve("a", served(100))
    assert join.match(label(105)) == served(100)
    assert join.match(label(106)) is Refusal.DUPLICATE
    assert join.match(label(115)) is Refusal.DUPLICATE


def test_a_label_waits_for_its_request_and_not_longer_than_the_ttl() -> None:
    join = Join(10)
    first, second, other = label(100, row=1), label(101, row=2), label(102, "b")
    assert [join.match(waiting) for waiting in (first, second, other)] == [None, None, None]
    assert join.next_expiry == 110
    assert join.expire(110) == []
    assert join.serve("a", served(110)) == [first, second]
    assert join.expire(112) == []  # b: 102 + 10 is not over yet
    assert join.expire(113) == [other]
    assert join.next_expiry is None


def test_the_same_id_again_does_not_replace_what_was_served() -> None:
    join = Join(10)
    join.serve("a", served(100))
    join.serve("a", served(103))
    assert join.match(label(104)) == served(100)


def test_memory_ends_after_twice_the_ttl() -> None:
    join = Join(10)
    for time in range(1000):
        join.expire(time)
        join.serve(str(time), served(time))
        join.match(label(time, str(time)))
    assert len(join.dump()["served"]) == len(join.dump()["learned"]) == 21


steps = st.lists(st.tuples(st.integers(0, 6), st.sampled_from(["serve", "match"]), st.sampled_from("abc")), max_size=40)


@given(steps, st.integers(0, 40))
def test_dump_and_load_at_any_point_change_nothing(plan: list[tuple[int, str, str]], cut: int) -> None:
    def run(reload_at: int | None) -> list[object]:
        join, time, fates = Join(10), 0, []
        for number, (wait, what, request_id) in enumerate(plan):
            if number == reload_at:
                content = json.loads(json.dumps(join.dump()))
                join = Join(10)
                join.load(content)
            time += wait
            fates.append(join.expire(time))
            if what == "serve":
                fates.append(join.serve(request_id, served(time)))
            else:
                fates.append(join.match(label(time, request_id, number)))
        return [*fates, join.expire(10**9)]

    assert run(cut) == run(None)
