"""Rows, packed and in summary."""

from __future__ import annotations

import math

from apache_beam import coders
from hypothesis import given
from hypothesis import strategies as st

from contbatch.transforms.buffer import Head
from contbatch.transforms.microbatch import ElementsCoder
from contbatch.transforms.rows import Rows, pack, summary, unpack

CODER = ElementsCoder(coders.VarIntCoder())
numbers = st.floats(allow_nan=False)


@st.composite
def rows(draw: st.DrawFn) -> Rows:
    count = draw(st.integers(1, 8))

    def column(values: st.SearchStrategy[float]) -> list[float]:
        return draw(st.lists(values, min_size=count, max_size=count))

    made = Rows(list(range(count)), draw(st.lists(st.integers(-(2**62), 2**62), min_size=count, max_size=count)))
    made.arrivals = column(numbers)
    made.deadlines, made.weights, made.priorities = (
        column(values) if draw(st.booleans()) else [] for values in (numbers, st.floats(0, 1e9), numbers)
    )
    return made


@given(rows())
def test_rows_come_back_as_they_were(made: Rows) -> None:
    assert unpack(pack(made, CODER), CODER) == made


@given(rows())
def test_a_summary_is_that_of_the_rows(made: Rows) -> None:
    time, backlog = summary(pack(made, CODER))
    assert time == min(made.times)
    assert backlog.size == len(made.times)
    assert backlog.weight == sum(made.weights)
    assert backlog.arrival == min(made.arrivals)
    assert backlog.deadline == min(made.deadlines, default=math.inf)


@given(st.lists(rows(), max_size=4))
def test_what_the_head_sums_up_comes_back_from_its_cell(chunks: list[Rows]) -> None:
    head = Head.of(pack(chunk, CODER) for chunk in chunks)
    assert head.backlog.size == sum(len(chunk.times) for chunk in chunks)
    assert Head.load(head.dump()) == head
    assert Head.load(None) == Head()


@given(rows(), rows(), st.data())
def test_rows_of_two_policies_are_joined_and_picked(one: Rows, other: Rows, data: st.DataObject) -> None:
    """A column that only one has is filled in the other: no deadline, no weight, no priority."""
    both = Rows()
    both.extend(one)
    both.extend(other)
    count, more = len(one.times), len(other.times)
    assert both.times == one.times + other.times
    if one.deadlines or other.deadlines:
        assert both.deadlines == (one.deadlines or [math.inf] * count) + (other.deadlines or [math.inf] * more)
    if one.weights or other.weights:
        assert both.weights == (one.weights or [0.0] * count) + (other.weights or [0.0] * more)
    at = data.draw(st.integers(0, count + more - 1))
    assert both.pick([at]).times == [both.times[at]]
    assert both.pick([at]).weights == both.weights[at : at + 1]
