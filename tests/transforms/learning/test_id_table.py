from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from contbatch.transforms.learning import id_table
from contbatch.transforms.learning.id_table import Eviction, IdTable, key_of
from contbatch.transforms.learning.learner import Arrays


def table(ids: str, capacity: int = 2, admit_after: int = 1, ttl: float = math.inf, *, step: float = 1.0) -> IdTable:
    """Return a table that saw one id a step."""
    result = IdTable(capacity, admit_after, ttl)
    for position, value in enumerate(ids):
        result.see(key_of(value), position * step)
    return result


def rows(of: IdTable, ids: str) -> list[int]:
    return [of.row(key_of(value)) for value in ids]


def same(left: Arrays, right: Arrays) -> bool:
    return left.keys() == right.keys() and all(np.array_equal(left[name], right[name]) for name in left)


sightings = st.lists(st.tuples(st.sampled_from("abcdefgh"), st.floats(0.0, 100.0)), max_size=60)
settings = st.tuples(st.integers(1, 4), st.integers(1, 3), st.sampled_from([5.0, 30.0, math.inf]))


def test_an_id_is_admitted_when_it_was_seen_often_enough() -> None:
    assert rows(table("aab", admit_after=3), "ab") == [0, 0]
    assert rows(table("aaba", admit_after=3), "ab") == [1, 0]


def test_the_least_seen_row_goes_at_the_cap() -> None:
    """a and b have rows 1 and 2; b is seen once, a twice, so c takes b's, though b was seen last."""
    assert rows(table("aabc"), "abc") == [1, 0, 2]
    assert rows(table("abbc"), "abc") == [0, 2, 1]


def test_of_ids_seen_as_often_the_one_seen_earlier_goes() -> None:
    """a and b are seen twice each: a as 1st and 4th, b as 2nd and 3rd, and 2^1 + 2^4 > 2^2 + 2^3."""
    assert rows(table("abc"), "abc") == [0, 2, 1]
    assert rows(table("abbac"), "abc") == [1, 0, 2]


def test_sightings_are_worth_more_the_later_they_are() -> None:
    """Two rows, so a half-life of 20 sightings: the n-th is worth 2^(n/20)."""
    assert table("aab").export()["scores"].tolist() == pytest.approx([math.log2(2**0.05 + 2**0.1), 0.15])


def test_what_was_seen_more_goes_when_its_sightings_have_aged(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a half-life of one sighting a is worth 2 + 4, which is less than b's 8."""
    monkeypatch.setattr(id_table, "HALF_LIFE", 0.5)
    assert rows(table("aabc"), "abc") == [0, 2, 1]


def test_ids_without_a_row_age_nothing() -> None:
    alone = table("aab", admit_after=2).export()
    flooded = table("aab" + "".join(chr(1000 + number) for number in range(500)), admit_after=2).export()
    assert flooded["scores"].tolist() == alone["scores"].tolist() == pytest.approx([1 / 20 + 1.0])
    assert flooded["ticks"].tolist() == [1]


def test_a_row_expires_after_its_time_to_live() -> None:
    held = table("ab", ttl=10.0)  # seen at 0 and 1
    assert held.see(key_of("b"), 10.0) == []  # a: just 10 s
    assert held.see(key_of("b"), 10.5) == [1]
    assert rows(held, "ab") == [0, 2]
    held.see(key_of("c"), 10.5)
    assert rows(held, "abc") == [0, 2, 1]


def test_a_row_that_is_seen_again_does_not_keep_those_behind_it() -> None:
    """a is seen at 0 and 8, b at 1: at 11.5 only b's 10 s are over."""
    held = table("ab", ttl=10.0)
    held.see(key_of("a"), 8.0)
    assert held.see(key_of("a"), 11.5) == [2]


def test_an_id_that_comes_back_too_late_starts_anew() -> None:
    held = table("aa", admit_after=2, ttl=10.0)
    assert held.see(key_of("a"), 100.0) == [1]
    assert (rows(held, "a"), held.waiting) == ([0], 1)


def test_an_id_that_expired_and_came_back_has_only_its_new_sightings() -> None:
    """a is seen five times and expires with b; both come back, b twice, and c takes a's row."""
    held = table("aaaaab", ttl=10.0)
    for position, value in enumerate("abbc"):
        held.see(key_of(value), 100.0 + position)
    assert [held.row(key_of(value)) > 0 for value in "abc"] == [False, True, True]


def test_sightings_too_far_apart_do_not_admit() -> None:
    assert rows(table("aa", admit_after=2, ttl=10.0, step=10.0), "a") == [1]
    assert rows(table("aa", admit_after=2, ttl=10.0, step=10.1), "a") == [0]


@pytest.mark.parametrize("time", [-5.0, math.nan, math.inf, -math.inf])
def test_time_does_not_run_back_nor_to_infinity(time: float) -> None:
    held = table("ab", ttl=10.0)
    assert held.see(key_of("a"), time) == []
    assert held.export()["seen"].tolist() == [1.0, 1.0]


def test_a_flood_of_new_ids_leaves_memory_flat_and_the_rows() -> None:
    held = table("aabb", capacity=50, admit_after=2)
    sizes = set()
    for number in range(5_000):
        held.see(key_of(f"{number}" * 100), 10.0)
        if number > 50:
            sizes.add((len(held), held.waiting, sum(array.nbytes for array in held.export().values())))
    assert sizes == {(2, 50, 2 * 40 + 50 * 32 + 24)}
    assert rows(held, "ab") == [1, 2]


def test_a_flood_of_ids_that_all_get_a_row_spares_what_is_seen() -> None:
    """b rests and goes in the end; a is seen after every id of the flood."""
    held = table("abab", capacity=3)
    for number in range(1_000):
        held.see(key_of(number), 10.0)
        held.see(key_of("a"), 10.0)
    assert (rows(held, "ab"), len(held)) == ([1, 0], 3)


def test_rows_that_expire_and_come_back_leave_memory_flat() -> None:
    held = IdTable(4, 1, 1.0)
    for number in range(1_000):
        held.see(key_of(number % 3), number * 10.0)
        assert len(held._heap) <= 2 * 4


@given(sightings, settings)
def test_the_cap_always_holds_and_the_least_seen_go(
    seen: list[tuple[str, float]], setting: tuple[int, int, float]
) -> None:
    held, (capacity, _, ttl) = IdTable(*setting), setting
    before: dict[str, int] = {}
    for value, time in seen:
        scores = dict(zip(map(bytes, held.export()["keys"]), held.export()["scores"].tolist(), strict=True))
        taken = held.see(key_of(value), time)
        after = {v: held.row(key_of(v)) for v in "abcdefgh" if held.row(key_of(v))}
        assert len(set(after.values())) == len(after) == len(held) <= capacity  # no two share a row
        assert all(1 <= row <= capacity for row in after.values())
        assert held.waiting <= capacity
        lost = {v for v in before if after.get(v) != before[v]}
        assert {before[v] for v in lost} <= set(taken)  # reported, so also each row that passes to another
        assert set(taken) <= {before[v] for v in {value, *lost} if v in before}  # value may have expired and come back
        if ttl == math.inf and lost:
            assert [(scores[key_of(v)], key_of(v)) for v in lost] == [min((s, key) for key, s in scores.items())]
        before = after


@given(sightings, settings, st.integers(0, 60))
def test_export_and_load_go_on_exactly(
    seen: list[tuple[str, float]], setting: tuple[int, int, float], cut: int
) -> None:
    held, restored = IdTable(*setting), IdTable(*setting)
    for value, time in seen[:cut]:
        held.see(key_of(value), time)
    restored.load({name: array.copy() for name, array in held.export().items()})
    assert same(restored.export(), held.export())
    for value, time in seen[cut:]:
        assert restored.see(key_of(value), time) == held.see(key_of(value), time)
    assert same(restored.export(), held.export())


def test_a_free_row_is_still_free_after_a_restore() -> None:
    held, restored = table("ab", ttl=10.0), IdTable(2, 1, 10.0)
    held.see(key_of("b"), 10.5)  # a's row 1 is free
    restored.load(held.export())
    restored.see(key_of("c"), 10.5)
    assert rows(restored, "bc") == [2, 1]


@given(sightings, settings, st.integers(0, 70))
def test_evictions_are_numbered_without_a_gap_and_bounded(
    seen: list[tuple[str, float]], setting: tuple[int, int, float], since: int
) -> None:
    held = IdTable(*setting)
    every: list[Eviction] = []
    for value, time in seen:
        held.see(key_of(value), time)
        every += held.evicted_since(len(every)) or []
    assert [eviction.number for eviction in every] == list(range(1, held.evictions + 1))
    if since < held.evictions - setting[0]:
        assert held.evicted_since(since) is None
    else:
        assert held.evicted_since(since) == every[since:]


def test_evictions_by_hand() -> None:
    held = table("abcd")
    assert held.evicted_since(0) == [Eviction(1, key_of("a"), 1), Eviction(2, key_of("b"), 2)]
    assert held.evicted_since(1) == [Eviction(2, key_of("b"), 2)]
    assert held.evicted_since(2) == []
    held.see(key_of("e"), 9.0)
    assert held.evicted_since(0) is None  # the first of three is no longer known


def test_more_rows_than_the_capacity_are_not_loaded() -> None:
    with pytest.raises(ValueError, match="the arrays have a row 2, but capacity is 1; give at least that"):
        IdTable(1, 1, math.inf).load(table("ab").export())
