"""What the soak calls flat, and the events that it makes."""

from __future__ import annotations

import pytest

from benchmarks.soak_parts.flat import bound, growth, versions
from benchmarks.soak_parts.job import FEEDBACK, REQUESTS, expected, make
from contbatch.transforms import Kind
from contbatch.transforms.learning.manifest import superfluous


def test_growth_is_from_the_second_quarter_to_the_last() -> None:
    """The first quarter, here 100, is warm-up; the third says nothing."""
    assert growth([100.0, 100.0, 1.0, 3.0, 50.0, 50.0, 4.0, 6.0]) == (2.0, 5.0)
    with pytest.raises(ValueError, match="7 samples say nothing of a slope; take 8 or more"):
        growth([1.0] * 7)


def test_flat_is_five_percent_or_a_grain() -> None:
    assert bound(1_000e6, "memory") == 1_050e6
    assert bound(100e6, "memory") == 120e6
    assert bound(100e6, "checkpoint") == 105e6
    assert bound(2e6, "checkpoint") == 3e6


def test_no_more_versions_are_kept_than_is_said() -> None:
    """A version for each update, thinned out after every 32nd, as a trainer does."""
    kept: list[str] = []
    for update in range(1, 5_000):
        kept.append(f"0.{update}")
        assert len(kept) <= versions(update)
        if update % 32 == 0:
            gone = set(superfluous(kept))
            kept = [one for one in kept if one not in gone]
    assert len(kept) > versions(4_999) / 2


def test_every_label_is_for_a_request_made_before_it() -> None:
    requests, labels = set(), set()
    for place in range(3_000):
        event = make(place)
        if event.kind is Kind.REQUEST:
            requests.add(REQUESTS.decode([event.payload])[0]["request_id"][0])
        else:
            request = FEEDBACK.decode([event.payload])[0]["request_id"][0]
            assert request in requests - labels
            labels.add(request)
    assert expected(3_000) == {"requests": len(requests), "labels": len(labels)} == {"requests": 2_000, "labels": 1_000}
