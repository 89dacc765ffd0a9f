from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contbatch.transforms.coders import EventCoder
from contbatch.transforms.events import Event, Kind, extent, pack, unpack

events = st.builds(
    Event,
    time=st.integers(-(2**62), 2**62),
    kind=st.sampled_from(Kind),
    row=st.integers(0, 2**62),
    payload=st.binary(max_size=40),
    model=st.just(""),
)


@given(st.lists(events, max_size=20))
def test_unpack_undoes_pack(given_events: list[Event]) -> None:
    assert unpack(pack(given_events)) == given_events


@given(st.lists(events, min_size=1, max_size=20))
def test_extent_is_the_count_and_the_earliest_time(given_events: list[Event]) -> None:
    assert extent(pack(given_events)) == (len(given_events), min(event.time for event in given_events))


@given(st.lists(events, min_size=1, max_size=5), st.data())
def test_a_chunk_cut_short_is_refused(given_events: list[Event], data: st.DataObject) -> None:
    chunk = pack(given_events)
    with pytest.raises(ValueError, match=r"chunk|buffer|offset"):
        unpack(chunk[: data.draw(st.integers(1, len(chunk) - 1))])


def test_events_are_processed_by_time_then_request_first_then_source_row() -> None:
    late = Event(2, Kind.REQUEST, 0, b"")
    second, first = Event(1, Kind.REQUEST, 8, b""), Event(1, Kind.REQUEST, 7, b"")
    label = Event(1, Kind.FEEDBACK, 0, b"")
    assert sorted([late, label, second, first]) == [first, second, label, late]


@given(events, st.text(max_size=8))
def test_the_coder_gives_back_what_it_got_and_equal_bytes_for_equal_events(event: Event, model: str) -> None:
    coder, event = EventCoder(), event._replace(model=model)
    assert coder.decode(coder.encode(event)) == event
    assert coder.encode(Event(*event)) == coder.encode(event)
    assert coder.is_deterministic()
