"""Errors that the command line turns into one line."""


class UsageError(Exception):
    """What was asked for cannot be done; the text says what to do instead. Exit code 2."""


class JobError(Exception):
    """The job ran and did not end well. Exit code 1."""
