"""Beam coders of the package's element types. Importing it registers them; nothing goes through pickle."""

from __future__ import annotations

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


coders.registry.register_coder(Event, EventCoder)
for record in (Prediction, Served, Example, Learned, Failed, Published):
    coders.registry.register_coder(record, coders.RowCoder)
