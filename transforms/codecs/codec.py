"""What a codec is: encoded records in, columns out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol


class Decoded(NamedTuple):
    """Columns of the records that decoded, and what was wrong with the others.

    Attributes:
        columns: one list per field; entry i of each belongs to input position ``positions[i]``.
        positions: input positions of the decoded records, ascending.
        errors: (input position, reason) of every other record.
    """

    columns: dict[str, list[Any]]
    positions: list[int]
    errors: list[tuple[int, str]]


class Codec(Protocol):
    """Decodes a micro-batch of records at once.

    Every input position is in exactly one of ``positions`` and ``errors``: a bad record is reported with its
    reason, and neither hides nor shifts its neighbours.
    """

    @property
    def fields(self) -> tuple[str, ...]:
        """Names of the columns."""

    def decode(self, records: Sequence[bytes]) -> Decoded:
        """Decode records into columns."""
