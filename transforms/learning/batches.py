"""Labelled rows of one gradient, and their form as bytes."""

from __future__ import annotations

import json
from typing import NamedTuple

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray

from contbatch.transforms.learning.learner import Arrays, Columns, prefixed, unprefixed

Floats = NDArray[np.float64]


class Batch(NamedTuple):
    """The rows of one gradient.

    Attributes:
        columns: n values for each field.
        labels: shape (n,).
        weights: importance, shape (n,).
    """

    columns: Columns
    labels: Floats
    weights: Floats

    @property
    def size(self) -> int:
        """The number of rows."""
        return len(self.labels)


def pack_batch(batch: Batch) -> bytes:
    """Encode labelled rows as a chunk. Columns are numeric arrays, or sequences of what JSON can hold.

    Raises:
        ValueError: it has no rows, or not one value for each of them everywhere.
    """
    _check(batch)
    numbers: Arrays = {}
    lists = {}
    for name, column in batch.columns.items():
        if isinstance(column, np.ndarray) and column.dtype.kind in "biuf":
            numbers[name] = np.ascontiguousarray(column)
        else:
            lists[name] = column.tolist() if isinstance(column, np.ndarray) else list(column)
    arrays = {
        "labels": np.array(batch.labels, float),
        "weights": np.array(batch.weights, float),
        "lists": np.frombuffer(json.dumps(lists).encode(), np.uint8),
    }
    return safetensors.numpy.save(arrays | prefixed(numbers, "column/"))


def unpack_batch(chunk: bytes) -> Batch:
    """Decode what :func:`pack_batch` encoded.

    Raises:
        Exception: the bytes are not such a chunk; of the kind that what is wrong with them leads to.
    """
    arrays = safetensors.numpy.load(chunk)
    columns = json.loads(arrays["lists"].tobytes()) | unprefixed(arrays, "column/")
    batch = Batch(columns, arrays["labels"], arrays["weights"])
    _check(batch)
    return batch


def _check(batch: Batch) -> None:
    sizes = {"labels": len(batch.labels), "weights": len(batch.weights)}
    sizes |= {name: len(column) for name, column in batch.columns.items()}
    if batch.size == 0 or len(set(sizes.values())) > 1:
        raise ValueError(f"the sizes of a batch are {sizes}; give the same number everywhere, 1 or more")
