from __future__ import annotations

import pytest

from contbatch.transforms import Event, Failed, Kind
from contbatch.transforms.ledger import name_in, name_out, violations
from contbatch.transforms.testing import assert_conserved


def test_a_law_that_holds_says_nothing() -> None:
    counts = {"requests": 6, "predicted": 3, "shed": 2, "failed": 1}
    counts |= {"feedback": 15, "learned": 1, "duplicate": 2, "late": 3, "unmatched": 4, "refused": 5}
    assert violations(counts) == []


def test_a_broken_law_is_told_with_its_counts() -> None:
    assert violations({"requests": 3, "predicted": 2}) == [
        "requests: 3 went in, but 2 predicted + 0 shed + 0 failed = 2 came out"
    ]
    assert violations({"feedback": 1, "learned": 1, "duplicate": 1}) == [
        "feedback: 1 went in, but 1 learned + 1 duplicate + 0 late + 0 unmatched + 0 refused = 2 came out"
    ]


def test_a_failed_record_goes_in_as_what_it_was_meant_to_be() -> None:
    failed = Failed("feedback", "refused", "why", "", 0, 0, b"", "")
    assert (name_in(failed), name_out(failed)) == ("feedback", "refused")
    assert name_in(Event(0, Kind.REQUEST, 0, b"")) == "requests"


def test_the_check_for_tests_is_the_same_law() -> None:
    with pytest.raises(AssertionError, match="requests: 1 went in, but 0 predicted"):
        assert_conserved([Event(0, Kind.REQUEST, 0, b"")], [])
