"""Features on their way from a prediction to the learner: kept with the request, and given back as they were served."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any
from zlib import crc32

from contbatch.transforms.learning.learner import Columns, prepared_fields
from contbatch.transforms.learning.observed import FIELD
from contbatch.transforms.records import Example


def keep(learner: Any, columns: Columns) -> list[tuple[str, int]]:
    """Return, for each of n rows that a learner predicts, what has to be kept beside the request itself.

    Returns:
        what the learner has prepared, as a JSON list ("" for nothing), and the fingerprint of all its features.
    """
    names = prepared_fields(learner)
    prints = fingerprints(learner, columns)
    if not names:
        return [("", mark) for mark in prints]
    rows = zip(*(columns[name] for name in names), strict=True)
    return [(json.dumps(row), mark) for row, mark in zip(rows, prints, strict=True)]


def give_back(learner: Any, columns: Columns, examples: Sequence[Example]) -> Columns:
    """Return the columns to learn from.

    What was prepared for another configuration of the learner is left out: it has to be computed anew, and the
    fingerprints tell.

    Args:
        learner: that of :func:`keep`.
        columns: the decoded requests.
        examples: for each of them.
    """
    names = prepared_fields(learner)
    rows = [_values(example.served.prepared) for example in examples] if names else []
    prepared = {}
    if all(len(row) == len(names) for row in rows):
        prepared = {name: [row[place] for row in rows] for place, name in enumerate(names)}
    return {**columns, **prepared, FIELD: [example.observed for example in examples]}


def _values(prepared: str) -> list[Any]:
    try:
        values = json.loads(prepared)
    except ValueError:
        return []
    return values if isinstance(values, list) else []


def fingerprints(learner: Any, columns: Columns) -> list[int]:
    """Return a number for each of n rows that depends on a learner's features: their names, types and every bit."""
    names = tuple(dict.fromkeys((*learner.fields, *prepared_fields(learner))))
    start = crc32(repr(names).encode())
    rows = zip(*(columns[name] for name in names), strict=True)
    return [crc32(repr(row).encode("utf-8", "surrogatepass"), start) or 1 for row in rows]  # 0 is none
