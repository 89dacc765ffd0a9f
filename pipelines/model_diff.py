"""What differs between the arrays of two versions of a model. Pure."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from contbatch.transforms.learning import Arrays

SLOTS = "slots"
"""The array that names the rows of the others, where a learner exports only the rows that it has changed."""

Shape = tuple[int, ...]


class Slots(NamedTuple):
    """How many rows two versions have in common, and how many only one of them has."""

    common: int
    added: int
    removed: int


class Change(NamedTuple):
    """How an array differs; of arrays whose rows have slots, the rows that both have are compared.

    Attributes:
        name: of the array.
        before: its shape in A, or ``None``.
        after: its shape in B, or ``None``.
        share: share of the compared entries that differ; this and what follows is ``None`` if none can be compared.
        largest: largest absolute change.
        mean: mean absolute change, over all compared entries.
        relative: L2 norm of the change over that of A; infinite if A is 0 and B is not.
    """

    name: str
    before: Shape | None
    after: Shape | None
    share: float | None = None
    largest: float | None = None
    mean: float | None = None
    relative: float | None = None


def compare(a: Arrays, b: Arrays) -> tuple[Slots | None, list[Change]]:
    """Compare two versions array by array; rows are aligned by their slots, if both have these."""
    slots, rows = None, None
    if all(SLOTS in arrays and arrays[SLOTS].ndim == 1 for arrays in (a, b)):
        common, *rows = np.intersect1d(a[SLOTS], b[SLOTS], return_indices=True)
        slots = Slots(len(common), len(b[SLOTS]) - len(common), len(a[SLOTS]) - len(common))
    changes = []
    for name in sorted(a.keys() | b.keys()):
        if name == SLOTS and slots:
            continue
        before, after = a.get(name), b.get(name)
        if before is None or after is None:
            changes.append(Change(name, _shape(before), _shape(after)))
            continue
        change = Change(name, before.shape, after.shape)
        if rows and _has_rows(before, a) and _has_rows(after, b):
            before, after = before[rows[0]], after[rows[1]]
        if before.shape == after.shape and before.size:
            change = Change(name, change.before, change.after, *_figures(before, after))
        changes.append(change)
    return slots, changes


def _has_rows(array: NDArray[Any], arrays: Arrays) -> bool:
    return array.ndim > 0 and len(array) == len(arrays[SLOTS])


def _shape(array: NDArray[Any] | None) -> Shape | None:
    return None if array is None else array.shape


def _figures(before: NDArray[Any], after: NDArray[Any]) -> tuple[float, float, float, float]:
    """Return the last fields of a :class:`Change`; an entry that is no number both times has not changed."""
    same = (before == after) | (np.isnan(before) & np.isnan(after))
    with np.errstate(invalid="ignore", over="ignore"):
        change = np.where(same, 0.0, after.astype(np.float64) - before.astype(np.float64))
        norm, of_a = float(np.linalg.norm(change)), float(np.linalg.norm(before.astype(np.float64)))
    size = np.abs(change)
    relative = 0.0 if not norm else norm / of_a if of_a else np.inf
    return float(np.mean(~same)), float(size.max()), float(size.mean()), relative
