"""The files a job writes: Avro of one record type, and the ledger. Same records, same bytes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple, get_type_hints

import apache_beam as beam
import fastavro
from apache_beam.io.filesystems import FileSystems

from contbatch.transforms.files import replacing

_AVRO = {str: "string", float: "double", int: "long", bytes: "bytes"}


class WriteRecords(beam.PTransform):
    """Writes named tuples into one Avro file, sorted, so that equal records make equal files.

    Bounded input only, of a size that one worker sorts in memory. Without a record there is no file.

    Args:
        path: the file, on any Beam filesystem.
        record: the named tuple's class; its fields are strings, floats, ints or bytes.
        order: fields to sort by.
    """

    def __init__(self, path: str, record: type[NamedTuple], order: tuple[str, ...]) -> None:
        super().__init__()
        self._path = path
        self._record = record
        self._order = order

    def expand(self, records: beam.PCollection[Any]) -> beam.PCollection[str]:
        """Gather the records and write them; returns the path."""
        return (
            records
            | "One group" >> beam.GroupBy(_nothing)
            | "Write" >> beam.FlatMapTuple(self._write).with_output_types(str)
        )

    def _write(self, _: None, records: Iterable[Any]) -> Iterator[str]:
        order = self._order
        rows = sorted(records, key=lambda row: tuple(getattr(row, field) for field in order))
        schema = fastavro.parse_schema(avro_schema(self._record))
        # A container's blocks are separated by 16 bytes, usually random; these follow from the schema.
        marker = hashlib.md5(json.dumps(schema).encode(), usedforsecurity=False).digest()
        with replacing(self._path) as file:
            fastavro.writer(file, schema, (row._asdict() for row in rows), codec="deflate", sync_marker=marker)
        yield self._path


def avro_schema(record: type[Any]) -> dict[str, Any]:
    """Return the Avro schema of a named tuple of strings, floats, ints and bytes."""
    hints = get_type_hints(record)
    return {
        "type": "record",
        "name": record.__name__,
        "fields": [{"name": name, "type": _AVRO[hints[name]]} for name in record._fields],
    }


def read_records(path: str) -> Iterator[dict[str, Any]]:
    """Yield the records of such a file; none when it does not exist."""
    if not FileSystems.exists(path):
        return
    with FileSystems.open(path) as file:
        yield from fastavro.reader(file)


class WriteJson(beam.PTransform):
    """Writes each element, one in all, as a JSON file."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self._path = path

    def expand(self, values: beam.PCollection[Any]) -> beam.PCollection[str]:
        """Write the value; returns the path."""
        return values | beam.Map(self._write).with_output_types(str)

    def _write(self, value: Any) -> str:
        write_text(self._path, json.dumps(value, indent=2, sort_keys=True))
        return self._path


def write_text(path: str, text: str) -> None:
    """Write a whole file or, on an error, nothing."""
    with replacing(path) as file:
        file.write(text.encode())


def _nothing(_: Any) -> None:
    return None
