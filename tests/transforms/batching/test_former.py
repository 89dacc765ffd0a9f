from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from contbatch.transforms.batching import BatchFormer, BatchPolicy, Reason
from contbatch.transforms.events import MICROS


def form(times: list[int], policy: BatchPolicy) -> list[list[int]]:
    """Form the batches of elements that are their own times and weigh 1."""
    former: BatchFormer[int] = BatchFormer(policy)
    batches = []
    for time in sorted(times):
        if former.reason_before(time, 1.0):
            batches.append(former.take())
        former.add(time, time, 1.0)
    if former.elements:
        batches.append(former.take())
    return batches


@given(
    st.lists(st.integers(0, 20 * MICROS), max_size=60),
    st.integers(1, 5),
    st.sampled_from([0.0, 0.5, 3.0]),
)
def test_nothing_is_lost_reordered_above_the_size_or_beyond_the_delay(
    times: list[int], size: int, delay: float
) -> None:
    batches = form(times, BatchPolicy(size, delay))
    assert [time for batch in batches for time in batch] == sorted(times)
    assert all(len(batch) <= size and batch[-1] - batch[0] <= delay * MICROS for batch in batches)


def test_a_batch_closes_by_size_or_by_the_delay_of_its_first_element() -> None:
    # delay 2 us: 0, 1, 2 share a batch, which is then full; 3 and 5 another; 6 is 3 us after 3
    assert form([0, 1, 2, 3, 5, 6], BatchPolicy(3, 2e-6)) == [[0, 1, 2], [3, 5], [6]]


def test_without_delay_the_elements_of_one_instant_share_a_batch() -> None:
    assert form([1, 1, 2, 2, 2, 3], BatchPolicy(9, 0.0)) == [[1, 1], [2, 2, 2], [3]]


def test_the_reason_is_what_would_be_broken_by_one_more() -> None:
    former: BatchFormer[str] = BatchFormer(BatchPolicy(2, 5e-6, max_weight=10.0, weight_fn=len))
    assert former.reason_before(100, 99.0) is None  # an element that is too heavy runs alone
    former.add("a", 0, 6.0)
    assert former.reason_before(5, 4.0) is None
    assert former.reason_before(5, 4.5) is Reason.WEIGHT
    assert former.reason_before(6, 4.0) is Reason.DELAY
    former.add("b", 5, 4.0)
    assert former.reason_before(5, 0.0) is Reason.SIZE
    assert former.take() == ["a", "b"]
    assert former.reason_before(6, 10.0) is None  # the next batch weighs nothing yet


def test_without_end_of_the_delay_only_the_size_closes() -> None:
    assert form([0, 10**12, 10**15], BatchPolicy(2, math.inf)) == [[0, 10**12], [10**15]]
