"""Whole files on any Beam filesystem: seen complete or not at all."""

from __future__ import annotations

import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO


@contextmanager
def replacing(path: str) -> Iterator[IO[bytes]]:
    """Open a file for writing that takes its place when the block ends well, and is dropped when it does not."""
    from apache_beam.io.filesystems import FileSystems

    temporary = f"{path}.{uuid.uuid4().hex}.tmp"
    try:
        with FileSystems.create(temporary) as file:
            yield file
        FileSystems.rename([temporary], [path])
    except BaseException:
        if FileSystems.exists(temporary):
            FileSystems.delete([temporary])
        raise


def read_bytes(path: str) -> bytes:
    """Return a file's content.

    Raises:
        OSError: there is no such file, or it cannot be read.
    """
    from apache_beam.io.filesystems import FileSystems

    with FileSystems.open(path) as file:
        content: bytes = file.read()
    return content


@contextmanager
def local_copy(path: str) -> Iterator[str]:
    """Yield the path of a file that libraries can map into memory: itself if it is local, else a copy for the block.

    Raises:
        OSError: there is no such file, or it cannot be read.
    """
    from apache_beam.io.filesystems import FileSystems
    from apache_beam.io.localfilesystem import LocalFileSystem

    if isinstance(FileSystems.get_filesystem(path), LocalFileSystem):
        yield path.removeprefix("file://")
        return
    with tempfile.NamedTemporaryFile() as copy:
        with FileSystems.open(path) as file:
            shutil.copyfileobj(file, copy, 1 << 20)
        copy.flush()
        yield copy.name


def matching(pattern: str) -> list[str]:
    """Return the paths that match a pattern."""
    from apache_beam.io.filesystems import FileSystems

    return [found.path for found in FileSystems.match([pattern])[0].metadata_list]
