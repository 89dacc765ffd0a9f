"""The columns of the matrix: the runners, and what each is given to read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

from tests.runners.cluster import LIVE

Input = Literal["bounded", "live", "unbounded"]
"""A list that ends; a source whose watermark follows its elements; a source where the runner knows no watermark."""

Fixture = Callable[[str], Any]
"""Returns a pytest fixture by name."""
Flags = AbstractContextManager[Sequence[str]]


@dataclass(frozen=True)
class Place:
    """A runner.

    Attributes:
        name: of the column.
        flags: gives the flags of one job.
        inputs: what it is given, one job for each.
        needs: tools.
        is_flink: whether it is Flink, where a job takes many seconds.
        is_scripted: whether its live source is a ``TestStream``, whose clock is its own and stands still for workers.
        has_limit: whether its jobs can be waited for with a limit of time.
        ends: whether a job is over when its input is. Flink keeps a live job open, and where it is told not to
            (``--shutdown_sources_after_idle_ms``) it announces the end while the source goes on, and the rest is lost
            as late: so its jobs are cancelled after the end of their outputs.
    """

    name: str
    flags: Callable[[Fixture], Flags]
    inputs: tuple[Input, ...]
    needs: tuple[str, ...] = ()
    is_flink: bool = False
    is_scripted: bool = False
    has_limit: bool = True
    ends: bool = True


def _direct(_: Fixture) -> Flags:
    return nullcontext(["--runner=DirectRunner"])


def _fn_api(*more: str) -> Callable[[Fixture], Flags]:
    return lambda _: nullcontext(["--runner=FnApiRunner", *more])


def _embedded(fixture: Fixture) -> Flags:
    pool = ("--environment_type=EXTERNAL", f"--environment_config=localhost:{fixture('pool')}")
    quick = "--experiments=disable_logging_submission_environment"
    return nullcontext(["--runner=PortableRunner", "--job_endpoint=embed", *pool, quick])


def _prism(fixture: Fixture) -> Flags:
    own = ("--experiments=disable_prism_server_singleton", f"--prism_location={fixture('prism')}")
    return nullcontext(["--runner=PrismRunner", *own])


def _flink(*more: str) -> Callable[[Fixture], Flags]:
    return lambda fixture: fixture("flink").flags(*more)


_GRPC = "--direct_running_mode=multi_threading"
_JAVA = ("javac", "mvn")

PLACES = (
    Place("DirectRunner", _direct, ("bounded", "live"), is_scripted=True, has_limit=False),
    Place("FnApiRunner", _fn_api(), ("bounded", "unbounded"), has_limit=False),
    Place("FnApiRunner, gRPC", _fn_api(_GRPC), ("bounded", "unbounded"), has_limit=False),
    Place("embedded server", _embedded, ("bounded", "unbounded")),
    Place("Prism", _prism, ("bounded", "live"), needs=("go",)),
    Place("Flink, batch", _flink(), ("bounded",), needs=_JAVA, is_flink=True),
    Place("Flink, streaming", _flink(*LIVE), ("live",), needs=_JAVA, is_flink=True, ends=False),
)
