"""Shows that a job is alive: a progress bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

_LINE_EVERY = 5.0


class Monitor:
    """What the job is doing; told by the job's caller, shown by a thread.

    Requests are counted where the workers are threads of this process (DirectRunner, Prism); where they are not,
    the time that has passed is all there is to see.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._stop = threading.Event()
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=console,
            transient=True,
        )
        self._task = self._bar.add_task("starting", total=None)
        self._total: int | None = None
        self._thread = threading.Thread(target=self._show, daemon=True)

    def say(self, what: str) -> None:
        """Name what is being done."""
        self._bar.update(self._task, description=what)

    def expect(self, total: int) -> None:
        """Start to count answered requests, out of a total."""
        self._total = total
        self._bar.update(self._task, description="reading", total=total)

    def _show(self) -> None:
        if self._console.is_terminal:
            with self._bar:
                while not self._stop.wait(0.2):
                    self._update()
            return
        last = time.monotonic()
        while not self._stop.wait(0.2):
            self._update()
            if time.monotonic() - last >= _LINE_EVERY:
                last = time.monotonic()
                (task,) = self._bar.tasks
                of = f", {int(task.completed):,} of {self._total:,} requests" if self._total else ""
                self._console.print(f"{task.description}{of}", highlight=False)

    def _update(self) -> None:
        if self._total is None:
            return
        from contbatch.transforms import progress

        done = progress.done()
        if done and self._bar.tasks[0].description == "reading":
            self.say("predicting and learning")
        if done >= self._total and self._bar.tasks[0].description == "predicting and learning":
            self.say("writing")
        self._bar.update(self._task, completed=min(done, self._total))


@contextmanager
def watch(console: Console) -> Iterator[Monitor]:
    """Show a monitor while the block runs."""
    monitor = Monitor(console)
    monitor._thread.start()
    try:
        yield monitor
    finally:
        monitor._stop.set()
        monitor._thread.join()
