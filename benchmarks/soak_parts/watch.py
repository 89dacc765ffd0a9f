"""What a running job takes: memory of every process, files of its model store."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

from tests.runners.alive import processes

_ROLES = {
    "StandaloneSessionClusterEntrypoint": "JobManager",
    "TaskManagerRunner": "TaskManager",
    "JobServer": "job server",
    "--service_port": "pool of workers",
    "benchmarks.soak_parts.job": "job and workers",
    "--job_port": "Prism",
}
"""Part of a command line, and whose it is."""
_POOL = "pool of workers"


def memory() -> dict[str, float]:
    """Return the resident bytes of the processes that descend from this one, by what they are."""
    alive = {each.pid: each for each in processes()}
    roles: dict[int, str] = {}
    for pid, each in sorted(alive.items()):  # parents come first, but for ids that have begun anew
        ancestors, at = [], each.parent
        while at in alive and at != os.getpid():
            ancestors.append(at)
            at = alive[at].parent
        if at == os.getpid():
            known = [role for part, role in _ROLES.items() if part in each.command]
            roles[pid] = known[0] if known else "worker" if _POOL in map(roles.get, ancestors) else ""
    found: Counter[str] = Counter()
    for pid, role in roles.items():
        found[role] += alive[pid].memory
    found.pop("", None)
    return dict(found)


def files(folder: Path) -> tuple[int, int]:
    """Return how many files there are below a folder, and their bytes."""
    count = size = 0
    for place, _, names in os.walk(folder):
        for name in names:
            try:
                size += os.stat(os.path.join(place, name)).st_size
            except FileNotFoundError:  # thinned out meanwhile
                continue
            count += 1
    return count, size
