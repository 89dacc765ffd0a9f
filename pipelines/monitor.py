"""Shows that a job is alive: a progress bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import threading
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

_LINE_EVERY = 5.0


class Monitor:
    """Shows, from a thread of its own, what the caller says it is doing.

    Requests are counted where the workers are threads of this process (DirectRunner, Prism); where they are not,
    the time that has passed is all there is to see.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._stop = threading.Event()
        columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
        self._bar = Progress(*columns, console=console, transient=True)
        self._task = self._bar.add_task("starting", total=None)
        self._doing = "starting"
        self._total = 0
        self._thread = threading.Thread(target=self._show, daemon=True)

    def __enter__(self) -> Monitor:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()

    def say(self, what: str, total: int = 0) -> None:
        """Name what is being done and, where requests are answered meanwhile, how many there are."""
        self._doing, self._total = what, total

    def _show(self) -> None:
        if self._console.is_terminal:
            with self._bar:
                while not self._stop.wait(0.2):
                    self._update()
            return
        next_line = time.monotonic() + _LINE_EVERY
        while not self._stop.wait(0.2):
            if time.monotonic() >= next_line:
                next_line += _LINE_EVERY
                counted = f": {self._done():,} of {self._total:,} requests" if self._total else ""
                self._console.print(f"{self._doing}{counted}", highlight=False)

    def _update(self) -> None:
        total = self._total or None
        self._bar.update(self._task, description=self._doing, total=total, completed=self._done())

    def _done(self) -> int:
        if not self._total:
            return 0
        from contbatch.transforms import progress

        return min(progress.done(), self._total)
