"""A sink for runners whose workers are other processes: a file of lines for each of its instances."""

from __future__ import annotations

import json
import os
import time
import uuid
from pathlib import Path
from typing import Any, TextIO

import apache_beam as beam


class FileSink(beam.PTransform):
    """Writes what reaches it as JSON, with the time of arrival, when its bundle ends.

    At least once: what a runner tries again is written again.

    Args:
        folder: for the files; it is made.
        name: of the sink.
    """

    def __init__(self, folder: Path, name: str = "out") -> None:
        super().__init__()
        self._folder, self._name = folder, name

    def expand(self, elements: beam.PCollection[Any]) -> beam.PCollection[None]:
        """Write every element."""
        self._folder.mkdir(parents=True, exist_ok=True)
        return elements | beam.ParDo(_WriteFn(str(self._folder), self._name)).with_output_types(None)

    def read(self) -> list[Any]:
        """Return what has been written, in the order of arrival."""
        return [element for _, element in self.read_timed()]

    def read_timed(self) -> list[tuple[float, Any]]:
        """Return what has been written, in the order of arrival, each with that time in seconds since the epoch."""
        lines = [line for path in self._folder.glob(f"{self._name}-*.jsonl") for line in path.open()]
        rows = (tuple(json.loads(line)) for line in lines if line.endswith("\n"))
        return sorted(rows, key=lambda row: row[0])


class FileFn(beam.DoFn):
    """Appends text to a file of its own, which begins with a name and ends with ``.jsonl``."""

    def __init__(self, folder: str, name: str) -> None:
        self._folder, self._name = folder, name
        self._file: TextIO | None = None

    def append(self, text: str) -> None:
        """Write text, which is there when this returns."""
        if self._file is None:
            path = os.path.join(self._folder, f"{self._name}-{uuid.uuid4().hex}.jsonl")
            self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115
        self._file.write(text)
        self._file.flush()


class _WriteFn(FileFn):
    def start_bundle(self) -> None:
        self._lines: list[str] = []

    def process(self, element: Any) -> None:
        self._lines.append(json.dumps([time.time(), element]) + "\n")

    def finish_bundle(self) -> None:
        self.append("".join(self._lines))
