"""``MicroBatch``: what a batching transform returns, and how it crosses a runner's boundary without pickle."""

from __future__ import annotations

import struct
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, get_origin

import numpy as np
from apache_beam import coders
from apache_beam.typehints import typehints

from contbatch.transforms.batching import Reason

T = TypeVar("T")

_REASONS = tuple(Reason)
_HEAD = struct.Struct("<BII")


@dataclass(frozen=True, slots=True)
class MicroBatch(Generic[T]):
    """Elements that were batched together. A sequence of them: ``len``, iteration and indices work.

    Attributes:
        elements: the elements.
        times: their event times, microseconds since the epoch.
        reason: why the batch was released.
        size: what the device should run: as many as there are elements, or the allowed size to pad to.
    """

    elements: list[T]
    times: list[int]
    reason: Reason
    size: int

    def __len__(self) -> int:
        return len(self.elements)

    def __iter__(self) -> Iterator[T]:
        return iter(self.elements)

    def __getitem__(self, index: int) -> T:
        return self.elements[index]


class ElementsCoder(coders.Coder):
    """A list of elements: numpy arrays raw, those of one shape as one block; anything else by its own coder.

    Args:
        coder: of an element. The one for a type that Beam does not know writes bytes, numbers, strings and plain
            containers of them without pickle, and pickles only the rest.
    """

    def __init__(self, coder: coders.Coder) -> None:
        self._coder = coder
        self._list = coders.IterableCoder(coder)

    def encode(self, elements: list[Any]) -> bytes:
        """Encode a list that is not empty."""
        if all(type(element) is np.ndarray for element in elements) and _is_raw(elements):
            return _encode_arrays(elements)
        return b"\x00" + self._list.encode(elements)

    def decode(self, encoded: bytes) -> list[Any]:
        """Decode it; arrays can be written to."""
        if encoded[0]:
            return _decode_arrays(encoded)
        return list(self._list.decode(encoded[1:]))

    def is_deterministic(self) -> bool:
        """As deterministic as the elements' coder."""
        return self._coder.is_deterministic()


class MicroBatchCoder(coders.Coder):
    """A micro-batch: a short head, the times, the elements."""

    def __init__(self, coder: coders.Coder) -> None:
        self._elements = ElementsCoder(coder)

    def encode(self, batch: MicroBatch[Any]) -> bytes:
        """Encode a batch."""
        head = _HEAD.pack(_REASONS.index(batch.reason), batch.size, len(batch.times))
        return head + array("q", batch.times).tobytes() + self._elements.encode(batch.elements)

    def decode(self, encoded: bytes) -> MicroBatch[Any]:
        """Decode a batch."""
        reason, size, count = _HEAD.unpack_from(encoded)
        end = _HEAD.size + 8 * count
        times = array("q", encoded[_HEAD.size : end]).tolist()
        return MicroBatch(self._elements.decode(encoded[end:]), times, _REASONS[reason], size)

    def is_deterministic(self) -> bool:
        """As deterministic as the elements' coder."""
        return self._elements.is_deterministic()

    @classmethod
    def from_type_hint(cls, hint: Any, registry: Any) -> MicroBatchCoder:
        """Return the coder for batches of one type, or of any where nothing more is known."""
        return cls(registry.get_coder(getattr(hint, "element", typehints.Any)))


class MicroBatchOf(typehints.TypeConstraint):
    """Beam's type of batches of one element type. It is what a user means by ``MicroBatch`` or ``MicroBatch[T]``."""

    def __init__(self, element: Any) -> None:
        self.element = typehints.normalize(element)

    def _inner_types(self) -> Iterator[Any]:
        yield self.element

    def _consistent_with_check_(self, sub: Any) -> bool:
        return isinstance(sub, MicroBatchOf) and typehints.is_consistent_with(sub.element, self.element)

    def type_check(self, instance: Any) -> None:
        """Raise unless the instance is a batch."""
        if not isinstance(instance, MicroBatch):
            raise typehints.CompositeTypeHintError(f"expected a MicroBatch, and got {type(instance).__name__}")

    def __eq__(self, other: Any) -> bool:
        if isinstance(other, MicroBatchOf):
            return bool(self.element == other.element)
        return other is MicroBatch or get_origin(other) is MicroBatch

    def __hash__(self) -> int:
        return hash(MicroBatch)

    def __repr__(self) -> str:
        return f"MicroBatch[{self.element!r}]"


def _is_raw(arrays: list[np.ndarray]) -> bool:
    return all(not one.dtype.hasobject and one.dtype.fields is None for one in arrays)


def _encode_arrays(arrays: list[np.ndarray]) -> bytes:
    """Encode arrays as blocks: one for all if they have one shape and type, else one each."""
    first = arrays[0]
    same = all(one.shape == first.shape and one.dtype == first.dtype for one in arrays)
    blocks = [np.stack(arrays).astype(first.dtype, copy=False)] if same else [one[np.newaxis] for one in arrays]
    parts = [struct.pack("<BI", 1, len(blocks))]
    for block in blocks:
        kind = block.dtype.str.encode()
        parts.append(struct.pack(f"<BB{block.ndim}I", len(kind), block.ndim, *block.shape) + kind)
        parts.append(block.tobytes())
    return b"".join(parts)


def _decode_arrays(encoded: bytes) -> list[np.ndarray]:
    (count,) = struct.unpack_from("<I", encoded, 1)
    offset = 5
    arrays: list[np.ndarray] = []
    for _ in range(count):
        length, dimensions = struct.unpack_from("<BB", encoded, offset)
        shape = struct.unpack_from(f"<{dimensions}I", encoded, offset + 2)
        offset += 2 + 4 * dimensions + length
        dtype = np.dtype(encoded[offset - length : offset].decode())
        size = int(np.prod(shape, dtype=np.int64))
        block = np.frombuffer(encoded, dtype, size, offset).reshape(shape).copy()
        arrays.extend(block[at, ...] for at in range(len(block)))
        offset += size * dtype.itemsize
    return arrays


for kind in (MicroBatch, MicroBatchOf):
    coders.registry.register_coder(kind, MicroBatchCoder)
