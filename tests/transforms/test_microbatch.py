"""Micro-batches and how they are encoded."""

from __future__ import annotations

import pickle
from typing import Any

import apache_beam as beam
import numpy as np
import pytest
from apache_beam import coders
from apache_beam.typehints import typehints
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from contbatch.transforms import MicroBatch, Reason
from contbatch.transforms.microbatch import ElementsCoder, MicroBatchCoder, MicroBatchOf

ANY = coders.registry.get_coder(typehints.Any)
values = st.one_of(st.none(), st.booleans(), st.integers(), st.text(), st.binary(), st.floats(allow_nan=False))
dtypes = st.one_of(
    arrays.integer_dtypes(), arrays.floating_dtypes(), arrays.boolean_dtypes(), arrays.datetime64_dtypes()
)
some_arrays = st.lists(arrays.arrays(dtypes, arrays.array_shapes(min_dims=0, min_side=0, max_side=4)), min_size=1)


@given(
    st.lists(st.tuples(values, st.integers(-(2**63), 2**63 - 1)), min_size=1),
    st.sampled_from(Reason),
    st.integers(0, 5),
)
def test_a_batch_comes_back_as_it_was(rows: list[tuple[Any, int]], reason: Reason, padding: int) -> None:
    batch = MicroBatch([value for value, _ in rows], [time for _, time in rows], reason, len(rows) + padding)
    coder = MicroBatchCoder(ANY)
    again = coder.decode(coder.encode(batch))
    assert again == batch
    assert list(map(type, again)) == list(map(type, batch))


@given(some_arrays)
def test_arrays_come_back_as_they_were_and_can_be_written_to(given_arrays: list[np.ndarray]) -> None:
    coder = ElementsCoder(ANY)
    again = coder.decode(coder.encode(given_arrays))
    assert len(again) == len(given_arrays)
    for one, other in zip(given_arrays, again, strict=True):
        assert (one.dtype, one.shape, one.tobytes()) == (other.dtype, other.shape, other.tobytes())
        assert other.flags.writeable


def test_arrays_of_records_and_of_objects_come_back_too() -> None:
    coder = ElementsCoder(ANY)
    for one in (np.array([(1, 2.0)], [("a", "i4"), ("b", "f8")]), np.array(["x", None], object)):
        (again,) = coder.decode(coder.encode([one]))
        assert again.dtype == one.dtype
        assert again.tolist() == one.tolist()


def test_bytes_and_arrays_are_never_pickled(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("pickled")

    for name in ("dumps", "loads", "Pickler", "Unpickler"):
        monkeypatch.setattr(pickle, name, refuse)
    coder = ElementsCoder(ANY)
    for elements in ([b"a", b"bc"], [np.ones(3)], [np.ones(3), np.ones(4)], ["a", 1, (b"b", 2.0)]):
        assert len(coder.decode(coder.encode(elements))) == len(elements)


def test_arrays_of_one_shape_cost_what_they_hold() -> None:
    """100 arrays of 64 float32 are 25,600 bytes, and the rest is one head."""
    assert len(ElementsCoder(ANY).encode([np.zeros(64, np.float32)] * 100)) < 25_600 + 32


def test_the_coder_is_as_deterministic_as_that_of_its_elements() -> None:
    assert MicroBatchCoder(coders.VarIntCoder()).is_deterministic()
    assert not MicroBatchCoder(coders.PickleCoder()).is_deterministic()


def test_a_batch_is_a_sequence() -> None:
    batch = MicroBatch(["a", "b"], [1, 2], Reason.SIZE, 4)
    assert (len(batch), list(batch), batch[1]) == (2, ["a", "b"], "b")


def test_beam_finds_the_coder_by_the_type() -> None:
    coder = coders.registry.get_coder(MicroBatchOf(int))
    assert isinstance(coder, MicroBatchCoder)
    batch = MicroBatch([1, 2], [0, 0], Reason.SIZE, 2)
    assert coder.encode(batch) == MicroBatchCoder(coders.VarIntCoder()).encode(batch)


def test_a_consumer_of_another_element_type_is_refused() -> None:
    assert typehints.is_consistent_with(MicroBatchOf(int), MicroBatchOf(Any))
    assert not typehints.is_consistent_with(MicroBatchOf(int), MicroBatchOf(str))
    assert typehints.is_consistent_with(MicroBatchOf(int), MicroBatch[int])
    pipeline = beam.Pipeline()
    batches = pipeline | beam.Create([MicroBatch([1], [0], Reason.SIZE, 1)]).with_output_types(MicroBatchOf(int))
    with pytest.raises(beam.typehints.TypeCheckError):
        _ = batches | beam.Map(len).with_input_types(MicroBatchOf(str))
