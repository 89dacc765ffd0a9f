"""The processes of this machine: who has started whom, and how much memory each holds."""

from __future__ import annotations

import subprocess
from typing import NamedTuple


class Process(NamedTuple):
    """A process of this machine.

    Attributes:
        pid: its id.
        parent: the id of who has started it.
        group: the id of its process group.
        memory: resident, bytes.
        command: the command line.
    """

    pid: int
    parent: int
    group: int
    memory: int
    command: str


def processes() -> list[Process]:
    """Return the processes that are alive."""
    listed = subprocess.run(
        ["ps", "-A", "-ww", "-o", "pid=,ppid=,pgid=,rss=,stat=,args="],  # noqa: S607
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    found = []
    for line in listed.stdout.splitlines():
        pid, parent, group, memory, state, command = line.split(None, 5)
        if not state.startswith("Z"):
            found.append(Process(int(pid), int(parent), int(group), int(memory) * 1024, command))
    return found
