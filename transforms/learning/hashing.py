"""The hashing trick: columns of values become tokens, each a slot of one table of weights."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import chain, repeat
from typing import Any, NamedTuple
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from contbatch.transforms.learning.learner import Columns

Floats = NDArray[np.float64]
Ids = NDArray[np.int64]

BIAS = 0
"""The slot of the token that every row has."""

_REMEMBERED = 1 << 16  # strings per field; a flood of new ids costs hashing again, never memory


class Span(NamedTuple):
    """Where a field's tokens are among those of all rows.

    Attributes:
        at: their positions, in the order of the rows.
        shares: one over the tokens of its row, per token, or ``None`` for one token a row, in order.
    """

    at: slice
    shares: Floats | None


class Tokens(NamedTuple):
    """Encoded rows: token j is slot ``slots[j]`` of row ``rows[j]``; the first ``size`` ones are the bias."""

    size: int
    slots: Ids
    rows: Ids
    spans: dict[str, Span]


class _Slots(dict[str, int]):
    """The slots of one field's strings; what is missing is computed.

    Only strings are kept: 1, 1.0 and True are one key but three texts.
    """

    def __init__(self, field: str, bits: int) -> None:
        self._salt = crc32(field.encode())
        self._mask = (1 << bits) - 1

    def __missing__(self, value: object) -> int:
        if not isinstance(value, str):
            return self[str(value)]
        if len(self) >= _REMEMBERED:
            self.clear()
        slot = self[value] = crc32(value.encode(), self._salt) & self._mask
        return slot


_slots = lru_cache(maxsize=256)(_Slots)  # by field and bits, for all learners of the process: nobody pickles it


def hash_values(field: str, values: Iterable[Any], bits: int) -> Iterator[int]:
    """Yield the slot of each value of a field, 0 to ``2**bits - 1``; of what is no string, its ``str``."""
    return map(_slots(field, bits).__getitem__, values)


def encode(columns: Columns, fields: Sequence[str], bits: int) -> Tokens:
    """Hash every value of the named columns; a column whose first value is a list holds a list per row."""
    size = len(columns[fields[0]])
    every = np.arange(size)
    slots: list[Iterable[int]] = [repeat(BIAS, size)]
    rows, spans, start = [every], {}, size
    for field in fields:
        column, at, shares = columns[field], every, None
        if size and isinstance(column[0], list):
            lengths = np.fromiter(map(len, column), np.int64, size)
            at = every.repeat(lengths)
            shares = 1.0 / lengths[at]
            column = list(chain.from_iterable(column))
        slots.append(hash_values(field, column, bits))
        rows.append(at)
        spans[field] = Span(slice(start, start + len(at)), shares)
        start += len(at)
    return Tokens(size, np.fromiter(chain.from_iterable(slots), np.int64, start), np.concatenate(rows), spans)
