"""The files a job writes: Avro of one record type, and the ledger. Same records, same bytes."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from io import BytesIO
from operator import itemgetter
from typing import Any, NamedTuple, get_type_hints

import apache_beam as beam
import fastavro
from apache_beam.coders import BytesCoder
from apache_beam.io.filesystems import FileSystems
from apache_beam.transforms.timeutil import TimeDomain
from apache_beam.transforms.userstate import BagStateSpec, TimerSpec, on_timer
from apache_beam.transforms.window import GlobalWindows
from apache_beam.utils.windowed_value import WindowedValue

from contbatch.transforms.chunks import END
from contbatch.transforms.files import replacing

_CHUNK = 1_000
_AVRO = {str: "string", float: "double", int: "long", bytes: "bytes"}


class WriteRecords(beam.PTransform):
    """Writes named tuples into one Avro file, sorted, so that equal records make equal files.

    Input that comes to an end, of a size that one worker sorts in memory. Without a record there is no file.

    Args:
        path: the file, on any Beam filesystem.
        record: the named tuple's class; its fields are strings, floats, ints or bytes.
        order: fields to sort by.
    """

    def __init__(self, path: str, record: type[NamedTuple], order: tuple[str, ...]) -> None:
        super().__init__()
        self._path = path
        self._schema = avro_schema(record)
        self._order = order

    def expand(self, records: beam.PCollection[Any]) -> beam.PCollection[str]:
        """Gather the records and write them; returns the path."""
        write = partial(_write_records, schema=self._schema, order=self._order)
        return (
            records
            | "Pack" >> beam.ParDo(_PackFn(self._schema)).with_output_types(tuple[int, bytes])
            | "Part" >> beam.Reshuffle()  # else fused: of two such steps FnApiRunner fired one timer
            | "Write" >> beam.ParDo(_GatherFn(self._path, write)).with_output_types(str)
        )


class _PackFn(beam.DoFn):
    """Encodes a bundle's records in chunks, so that the shuffle moves a chunk where it would move a record."""

    def __init__(self, schema: dict[str, Any]) -> None:
        self._schema = schema

    def start_bundle(self) -> None:
        self._rows: list[dict[str, Any]] = []

    def process(self, record: Any) -> Iterator[tuple[int, bytes]]:
        self._rows.append(record._asdict())
        if len(self._rows) >= _CHUNK:
            yield self._chunk()

    def finish_bundle(self) -> Iterator[WindowedValue]:
        if self._rows:
            yield GlobalWindows.windowed_value(self._chunk())

    def _chunk(self) -> tuple[int, bytes]:
        buffer = BytesIO()
        _write_avro(buffer, self._schema, self._rows, "null")
        self._rows = []
        return 0, buffer.getvalue()


class _GatherFn(beam.DoFn):
    """Gathers chunks in state, as Flink groups no more in one key than its sort buffer holds, some megabytes.

    They stay there: what other timers put out at the end of time may come after the first firing, and the file is
    written again.

    Args:
        path: the file.
        write: writes all chunks into it.
    """

    CHUNKS = BagStateSpec("chunks", BytesCoder())
    LAST = TimerSpec("last", TimeDomain.WATERMARK)

    def __init__(self, path: str, write: Callable[[str, Iterable[bytes]], None]) -> None:
        self._path = path
        self._write = write

    def process(
        self,
        element: tuple[int, bytes],
        chunks: Any = beam.DoFn.StateParam(CHUNKS),
        last: Any = beam.DoFn.TimerParam(LAST),
    ) -> None:
        chunks.add(element[1])
        last.set(END)

    @on_timer(LAST)
    def on_last(self, chunks: Any = beam.DoFn.StateParam(CHUNKS)) -> Iterator[str]:
        self._write(self._path, chunks.read())
        yield self._path


def _write_records(path: str, chunks: Iterable[bytes], schema: dict[str, Any], order: tuple[str, ...]) -> None:
    rows = [row for chunk in chunks for row in fastavro.reader(BytesIO(chunk))]
    rows.sort(key=itemgetter(*order))
    with replacing(path) as file:
        _write_avro(file, schema, rows, "deflate")


def _write_counts(path: str, chunks: Iterable[bytes]) -> None:
    sums: Counter[str] = Counter()
    for name, count in map(json.loads, chunks):
        sums[name] += count
    write_text(path, json.dumps(sums, indent=2, sort_keys=True))


class Tally(beam.PTransform):
    """Counts elements by name: of each bundle, one pair of a name and a count per name.

    Args:
        name: gives an element's name.
    """

    def __init__(self, name: Callable[[Any], str]) -> None:
        super().__init__()
        self._name = name

    def expand(self, elements: beam.PCollection[Any]) -> beam.PCollection[tuple[str, int]]:
        """Count the elements of each bundle."""
        return elements | beam.ParDo(_TallyFn(self._name)).with_output_types(tuple[str, int])


class _TallyFn(beam.DoFn):
    def __init__(self, name: Callable[[Any], str]) -> None:
        self._name = name

    def start_bundle(self) -> None:
        self._counts: Counter[str] = Counter()

    def process(self, element: Any) -> None:
        self._counts[self._name(element)] += 1

    def finish_bundle(self) -> Iterator[WindowedValue]:
        for count in self._counts.items():
            yield GlobalWindows.windowed_value(count)


def _write_avro(file: Any, schema: dict[str, Any], rows: Iterable[dict[str, Any]], codec: str) -> None:
    # A container's blocks are separated by 16 bytes, usually random; these follow from the schema.
    marker = hashlib.md5(json.dumps(schema).encode(), usedforsecurity=False).digest()
    fastavro.writer(file, fastavro.parse_schema(schema), rows, codec=codec, sync_marker=marker)


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


class WriteCounts(beam.PTransform):
    """Adds up pairs of a name and a count, and writes the sums as a JSON object when the input has come to its end.

    Args:
        path: the file, on any Beam filesystem.
    """

    def __init__(self, path: str) -> None:
        super().__init__()
        self._path = path

    def expand(self, counts: beam.PCollection[tuple[str, int]]) -> beam.PCollection[str]:
        """Gather the counts and write the sums; returns the path."""
        return (
            counts
            | "Pack" >> beam.Map(lambda count: (0, json.dumps(count).encode())).with_output_types(tuple[int, bytes])
            | "Part" >> beam.Reshuffle()  # as above
            | "Write" >> beam.ParDo(_GatherFn(self._path, _write_counts)).with_output_types(str)
        )


def write_text(path: str, text: str) -> None:
    """Write a whole file or, on an error, nothing."""
    with replacing(path) as file:
        file.write(text.encode())
