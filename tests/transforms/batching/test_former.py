from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from contbatch.transforms.batching import BatchFormer, BatchPolicy
from contbatch.transforms.events import MICROS


def form(times: list[int], policy: BatchPolicy) -> list[list[int]]:
    """Drive a former as the serial loop does: close what is due, add, close what is full."""
    former: BatchFormer[int] = BatchFormer(policy)
    batches = []
    for time in sorted(times):
        if former.closes_at is not None and former.closes_at < time:
            batches.append(former.take())
        former.add(time, time)
        if former.is_full:
            batches.append(former.take())
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
