"""Beam coders of the package's element types. Importing it registers them; nothing goes through pickle."""

from __future__ import annotations

from typing import Any, get_type_hints

from apache_beam import coders

from contbatch.transforms.events import Event, pack, unpack
from contbatch.transforms.records import Example, Failed, Learned, Prediction, Published, Served


class EventCoder(coders.Coder):
    """An event as its model's name and a chunk of one."""

    def encode(self, value: Event) -> bytes:
        """Encode one event."""
        model = value.model.encode()
        return len(model).to_bytes(4, "little") + model + pack([value])

    def decode(self, encoded: bytes) -> Event:
        """Decode one event."""
        end = 4 + int.from_bytes(encoded[:4], "little")
        (event,) = unpack(encoded[end:])
        return event._replace(model=encoded[4:end].decode())

    def is_deterministic(self) -> bool:
        """Equal events have equal bytes."""
        return True


class RecordCoder(coders.Coder):
    """A record in the bytes of Beam's ``RowCoder``, decoded as the record that it was.

    ``RowCoder`` itself does so only in the process that has built the pipeline: a worker in another one gets tuples of
    a class of its own, which are no ``Example`` or ``Failed`` to ``isinstance``.

    Args:
        record: a ``NamedTuple``.
    """

    def __init__(self, record: Any) -> None:
        self._record = record
        self._row = coders.RowCoder.from_type_hint(record, None)
        self._nested = [(at, kind) for at, kind in enumerate(_kinds(record)) if hasattr(kind, "_fields")]

    def __reduce__(self) -> tuple[Any, tuple[Any]]:
        return RecordCoder, (self._record,)

    @classmethod
    def from_type_hint(cls, typehint: Any, registry: Any) -> RecordCoder:
        """Return the coder of a record."""
        return cls(typehint)

    def encode(self, value: Any) -> bytes:
        """Encode one record."""
        return self._row.encode(value)

    def decode(self, encoded: bytes) -> Any:
        """Decode one record."""
        values = [*self._row.decode(encoded)]
        for at, kind in self._nested:
            values[at] = kind._make(values[at])
        return self._record._make(values)

    def is_deterministic(self) -> bool:
        """As deterministic as the row."""
        return self._row.is_deterministic()

    def to_type_hint(self) -> Any:
        """Return the record's class."""
        return self._record

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and self._record is other._record

    def __hash__(self) -> int:
        return hash(self._record)


def _kinds(record: Any) -> list[Any]:
    """Return the types of a record's fields."""
    hints = get_type_hints(record)
    return [hints[name] for name in record._fields]


coders.registry.register_coder(Event, EventCoder)
for record in (Prediction, Served, Example, Learned, Failed, Published):
    coders.registry.register_coder(record, RecordCoder)
