"""Processes that a test owns: each logs into a folder, and is stopped by its id, with all that it has started."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

_ROOT = Path(__file__).parents[2]


def start(name: str, command: Sequence[str], folder: Path, stack: ExitStack) -> subprocess.Popen[bytes]:
    """Start a process whose output goes into a log, and which the stack stops."""
    log = stack.enter_context((folder / f"{name}.log").open("ab"))
    # The pool starts its workers as "python", and they import the tests' own steps.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(_ROOT)}
    process = subprocess.Popen(
        command, stdout=log, stderr=subprocess.STDOUT, cwd=folder, env=environment, start_new_session=True
    )
    stack.callback(stop, process)
    return process


def stop(process: subprocess.Popen[bytes]) -> None:
    """Stop a process and what it has started."""
    for signal in (15, 9):
        try:
            os.killpg(process.pid, signal)
        except ProcessLookupError:
            return
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            continue
        return


def free_ports(count: int) -> list[int]:
    """Return ports of localhost that nobody listens on."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("localhost", 0))
        return [one.getsockname()[1] for one in sockets]


def is_open(port: int) -> bool:
    """Return whether somebody listens on a port of localhost."""
    with socket.socket() as one:
        one.settimeout(1)
        return one.connect_ex(("localhost", port)) == 0


def wait_for(what: str, is_there: Callable[[], Any], folder: Path, seconds: float = 90.0) -> None:
    """Wait until something is there.

    Raises:
        TimeoutError: it is not, and the logs may say why.
    """
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            if is_there():
                return
        except OSError:
            pass
        time.sleep(0.2)
    raise TimeoutError(f"{what} did not come up in {seconds:g} s; see the logs in {folder}")
