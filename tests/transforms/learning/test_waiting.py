"""ttl is 10 us and the wait window 4; see test_join for what becomes of one request."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contbatch.transforms import Event, Kind
from contbatch.transforms.events import END_OF_TIME, MICROS
from contbatch.transforms.learning.join import Label, Refusal, Terms
from contbatch.transforms.learning.observed import Observed
from contbatch.transforms.learning.waiting import Due, WaitingRoom
from contbatch.transforms.learning.wire import event_of, example_of
from contbatch.transforms.records import Example, Served

PLAIN = Terms(10 / MICROS)
WAITS = Terms(10 / MICROS, 4 / MICROS)
SETTLES = Terms(10 / MICROS, 4 / MICROS, settles=True)


def label(time: int, request_id: str = "a", row: int = 0) -> Label:
    return Label(Event(time, Kind.FEEDBACK, row, b"\xff"), request_id, 1.0, 1.0)


def served(time: int, request_id: str = "a") -> Served:
    return Served(b"\x00\xff", request_id, time, 0.5, "0.1")


def test_a_label_is_late_up_to_twice_the_ttl_and_then_waits_for_a_request() -> None:
    for time, fate in ((120, Refusal.LATE), (121, None)):
        room = WaitingRoom(PLAIN)
        room.serve(served(100))
        room.expire(time)
        assert room.match(label(time)) == fate


def test_a_label_waits_for_its_request_and_not_longer_than_the_ttl() -> None:
    room = WaitingRoom(PLAIN)
    first, second, other = label(100, row=1), label(101, row=2), label(102, "b")
    assert [room.match(waiting) for waiting in (first, second, other)] == [None, None, None]
    assert room.next_due == 110
    assert room.expire(110) == []
    assert room.serve(served(110)) == [first, second]
    assert room.expire(112) == []  # b: 102 + 10 is not over yet
    assert room.expire(113) == [other]
    assert room.next_due is None


def test_requests_fall_due_at_the_end_of_their_window_and_are_settled_at_the_ttl() -> None:
    room = WaitingRoom(SETTLES)
    room.serve(served(100, "a"))
    room.serve(served(101, "b"))
    assert room.expire(104) == []
    assert room.expire(105) == [Due(104, "a")]
    assert room.fall_due(Due(104, "a")) == Example(served(100, "a"), 0.0, 1.0, "", Observed.ASSUMED, 104)
    room.match(label(103, "b"))
    assert room.expire(106) == []
    assert room.expire(200) == [Due(110, "a")]
    assert room.fall_due(Due(110, "a")) == Example(served(100, "a"), 0.0, 1.0, "", Observed.SETTLED, 110)


@pytest.mark.parametrize("terms", [PLAIN, WAITS, SETTLES])
def test_memory_ends_after_twice_the_ttl(terms: Terms) -> None:
    room = WaitingRoom(terms)
    for time in range(1000):
        for due in room.expire(time):
            assert isinstance(due, Due)
            room.fall_due(due)
        room.serve(served(time, str(time)))
        if time % 2:
            room.match(label(time, str(time)))
    content = room.dump()
    assert len(room) == len(content["featured"]) + len(content["known"]) == 21
    featured = sum(ticket[0][0] != "" for ticket in content["tickets"].values())
    assert featured == len(content["featured"]) == 11 + terms.settles  # features: for one ttl, and until the last use
    assert len(content["due"]) <= 2 * 21


@pytest.mark.parametrize("terms", [PLAIN, SETTLES])
def test_a_label_of_long_after_takes_nothing_from_its_request(terms: Terms) -> None:
    """Bounded input: the label of 35 us later comes before anything falls due. The request is still a negative."""
    room = WaitingRoom(terms)
    room.serve(served(100))
    assert room.match(label(135)) == (Refusal.LATE if terms.settles else None)
    found = room.expire(END_OF_TIME)
    examples = [room.fall_due(item) for item in found if isinstance(item, Due)]
    assert [example and example.observed for example in examples] == [1, 3] * terms.settles
    assert [item for item in found if isinstance(item, Label)] == [label(135)] * (not terms.settles)


def test_an_id_that_is_used_again_after_twice_the_ttl_is_another_request() -> None:
    room = WaitingRoom(PLAIN)
    room.serve(served(100))
    room.match(label(101))
    room.serve(served(200))
    assert room.match(label(201)) == [Example(served(200), 1.0, 1.0, "", Observed.LABEL, 201)]
    room.expire(200)
    assert len(room) == 1
    room.expire(221)
    assert len(room) == 0


@pytest.mark.parametrize("time", [END_OF_TIME - 5, END_OF_TIME])
def test_what_falls_due_after_the_end_of_time_falls_due_at_it(time: int) -> None:
    room = WaitingRoom(PLAIN)
    room.match(label(time))
    assert room.expire(END_OF_TIME) == [label(time)]


def test_an_orphan_comes_back_with_its_model() -> None:
    room, again = WaitingRoom(PLAIN), WaitingRoom(PLAIN)
    orphan = label(100)._replace(event=label(100).event._replace(model="m"))
    room.match(orphan)
    again.load(json.loads(json.dumps(room.dump())), "m")
    assert again.expire(200) == [orphan]


steps = st.lists(st.tuples(st.integers(0, 6), st.sampled_from(["serve", "match"]), st.sampled_from("abc")), max_size=40)


@given(steps, st.integers(0, 40), st.sampled_from([PLAIN, WAITS, SETTLES]))
def test_dump_and_load_at_any_point_change_nothing(plan: list[tuple[int, str, str]], cut: int, terms: Terms) -> None:
    def run(reload_at: int | None) -> list[object]:
        room, time, fates = WaitingRoom(terms), 0, []

        def expire(now: int) -> None:
            for item in room.expire(now):
                fates.append(room.fall_due(item) if isinstance(item, Due) else item)

        for number, (wait, what, request_id) in enumerate(plan):
            if number == reload_at:
                content = json.loads(json.dumps(room.dump()))
                room = WaitingRoom(terms)
                room.load(content)
            time += wait
            expire(time)
            if what == "serve":
                fates.append(room.serve(served(time, request_id)))
            else:
                fates.append(room.match(label(time, request_id, number)))
        expire(10**9)
        return fates

    assert run(cut) == run(None)


@given(steps, st.sampled_from([WAITS, SETTLES]))
def test_a_request_is_learned_first_and_corrected_or_settled_at_most_once(
    plan: list[tuple[int, str, str]], terms: Terms
) -> None:
    room, time, learned = WaitingRoom(terms), 0, []

    def expire(now: int) -> None:
        dues = [item for item in room.expire(now) if isinstance(item, Due)]
        learned.extend(example for example in map(room.fall_due, dues) if example)

    for number, (wait, what, request_id) in enumerate(plan):
        time += wait
        expire(time)
        labels = room.serve(served(time, request_id)) if what == "serve" else [label(time, request_id, number)]
        for one in labels:
            match = room.match(one)
            learned.extend(match if isinstance(match, list) else [])
    expire(10**9)
    allowed = [[Observed.LABEL], [Observed.ASSUMED], [Observed.ASSUMED, Observed.CORRECTED]]
    if terms.settles:
        allowed[1].append(Observed.SETTLED)
    for request in {example.served for example in learned}:
        assert [example.observed for example in learned if example.served == request] in allowed


def test_an_example_travels_as_an_event() -> None:
    made = Example(
        Served(b"\n\x00{", "a", 5, float("nan"), "0.7", '[0.1, "x"]', 9, "m"), 0.1 + 0.2, 3.0, "buy", 2, 8, 4
    )
    event = event_of(made)
    assert (event.time, event.kind, event.row, event.model) == (8, Kind.EXAMPLE, 4, "m")
    assert repr(example_of(event)) == repr(made)


@pytest.mark.parametrize("payload", [b"", b"{}\n", b"[1]\n", b"\xff\n", b"[]"])
def test_what_is_no_example_says_so(payload: bytes) -> None:
    with pytest.raises(ValueError, match="example"):
        example_of(Event(0, Kind.EXAMPLE, 0, payload))
