"""What is wrong with one element stays with that element."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contbatch.transforms.engine.faults import Failure, is_out_of_memory, run


def doubling(poison: set[int], most: int = 10**9, seen: list[int] | None = None) -> Any:
    """Return a call that fails for poison, runs out of memory beyond a size, and writes down its sizes."""

    def call(batch: list[int]) -> list[int]:
        if seen is not None:
            seen.append(len(batch))
        if len(batch) > most:
            raise MemoryError("too large")
        for one in batch:
            if one in poison:
                raise ValueError(f"{one} is poison")
        return [2 * one for one in batch]

    return call


@given(st.integers(1, 64), st.sets(st.integers(0, 63), max_size=6), st.integers(1, 64))
def test_only_the_poison_fails(count: int, poison: set[int], most: int) -> None:
    done = run(doubling(poison, most), list(range(count)))
    expected = [Failure(f"ValueError: {one} is poison") if one in poison else 2 * one for one in range(count)]
    assert done.outcomes == expected


def test_one_in_256_costs_two_calls_a_halving() -> None:
    done = run(doubling({77}), list(range(256)))
    assert sum(type(one) is Failure for one in done.outcomes) == 1
    assert done.calls == 1 + 2 * 8  # 256 fails, then a half of 128, 64, 32, 16, 8, 4, 2 and 1, and the other half


def test_a_size_that_was_too_large_is_not_tried_again() -> None:
    seen: list[int] = []
    done = run(doubling(set(), 100, seen), list(range(256)))
    assert seen == [256, 128, 64, 64, 64, 64]
    assert (done.outcomes, done.too_large) == ([2 * one for one in range(256)], 128)


def test_an_element_that_does_not_fit_alone_fails_and_says_nothing_of_sizes() -> None:
    done = run(doubling(set(), 0), [1, 2])
    assert (done.outcomes, done.too_large) == ([Failure("MemoryError: too large", memory=True)] * 2, 0)

    def call(batch: list[int]) -> list[int]:
        if 7 in batch or len(batch) > 8:
            raise MemoryError
        return batch

    done = run(call, list(range(32)))
    assert (sum(type(one) is Failure for one in done.outcomes), done.too_large) == (1, 0)


def test_a_handler_that_gives_too_many_after_a_failed_batch_shifts_nothing() -> None:
    kept: list[int] = []

    def call(batch: list[int]) -> list[int]:
        """Keeps the rows before the one that fails, as a decoder of tfx_bsl 1.21 does."""
        rows, kept[:] = kept + batch, []
        if -1 in batch:
            kept[:] = rows[: rows.index(-1)]
            raise RuntimeError("unable to parse")
        if len(rows) != len(batch):
            raise RuntimeError(f"{len(rows)} rows for {len(batch)}")
        return [2 * one for one in rows]

    done = run(call, [1, 2, -1, 3, 4, 5, 6, 7])
    assert done.outcomes == [2, 4, Failure("RuntimeError: unable to parse"), 6, 8, 10, 12, 14]


def test_batches_are_padded_and_the_padding_is_dropped() -> None:
    seen: list[int] = []
    done = run(doubling({5}, seen=seen), [3, 4, 5], lambda size: 4 if size > 2 else 2)
    assert done.outcomes == [6, 8, Failure("ValueError: 5 is poison")]
    assert seen == [4, 2, 2, 2, 2]  # 3, then 1 and 2, which fail, then each


class OutOfMemoryError(RuntimeError):
    """As torch names it."""


@pytest.mark.parametrize(
    ("error", "is_memory"),
    [
        (MemoryError(), True),
        (OutOfMemoryError("on the device"), True),
        (RuntimeError("CUDA error: out of memory"), True),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"), True),
        (Exception("Failed to allocate memory for requested buffer of size 1"), True),
        (RuntimeError("shapes do not match"), False),
        (ValueError("7"), False),
    ],
)
def test_what_is_taken_for_a_lack_of_memory(error: Exception, is_memory: bool) -> None:
    assert is_out_of_memory(error) is is_memory


def test_torch_says_so_in_those_words() -> None:
    torch = pytest.importorskip("torch")
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**50)
    assert is_out_of_memory(caught.value)
