"""Avro records, one per message, without the container's header."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from io import BytesIO
from typing import Any

import fastavro

from contbatch.transforms.codecs.codec import Decoded


class AvroCodec:
    """Encodes and decodes records of one Avro schema (schemaless binary encoding).

    Args:
        schema: the record's schema, as parsed JSON. Its fields become the columns.

    Raises:
        ValueError: the schema is not a valid record schema.
    """

    def __init__(self, schema: Mapping[str, Any]) -> None:
        self._text = json.dumps(schema, sort_keys=True)
        try:
            self._schema = fastavro.parse_schema(json.loads(self._text))
            self.fields = tuple(field["name"] for field in schema["fields"])
        except (fastavro.schema.SchemaParseException, KeyError, TypeError) as error:
            raise ValueError(f"not an Avro record schema ({error!r}): {self._text}") from None

    def __reduce__(self) -> tuple[type[AvroCodec], tuple[dict[str, Any]]]:
        return type(self), (json.loads(self._text),)

    def encode(self, record: Mapping[str, Any]) -> bytes:
        """Encode one record.

        Raises:
            ValueError: the record does not fit the schema.
        """
        buffer = BytesIO()
        try:
            fastavro.schemaless_writer(buffer, self._schema, record)
        except Exception as error:
            raise ValueError(f"record does not fit the schema: {error}") from error
        return buffer.getvalue()

    def decode(self, records: Sequence[bytes]) -> Decoded:
        """Decode records into columns; one that does not decode is an error of its own and moves no other."""
        rows, errors, kept = [], [], []
        for position, record in enumerate(records):
            buffer = BytesIO(record)
            try:
                row = fastavro.schemaless_reader(buffer, self._schema)
            except Exception as error:  # fastavro raises whatever the bytes happen to break
                errors.append((position, f"not an Avro record of this schema: {type(error).__name__}: {error}"))
                continue
            if buffer.tell() != len(record):
                errors.append((position, f"{len(record) - buffer.tell()} bytes follow the Avro record"))
                continue
            kept.append(position)
            rows.append(row)
        return Decoded({field: [row[field] for row in rows] for field in self.fields}, kept, errors)
