"""Errors that the command line turns into one line."""

from __future__ import annotations

from signal import Signals


class UsageError(Exception):
    """What was asked for cannot be done; the text says what to do instead. Exit code 2."""


class JobError(Exception):
    """The job ran and did not end well. Exit code 1."""


class Stopped(KeyboardInterrupt):
    """A signal ended the job. Exit code 128 and the signal's number, as shells have it.

    Attributes:
        signal: which.
        drained: whether everything that was read has come out; else the job was cancelled.
    """

    def __init__(self, number: Signals, drained: bool, text: str) -> None:
        super().__init__(text)
        self.signal = number
        self.drained = drained
