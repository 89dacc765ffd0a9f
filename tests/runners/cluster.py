"""A real Flink cluster on free ports of localhost: JobManager, TaskManager, Beam's job server, pools of workers.

Everything is resolved by Maven once and kept in the user's cache; every process is owned, logs into a folder, and is
stopped by its id. One pool serves one job: workers of two jobs in one pool stop each other.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from zipfile import ZipFile

from contbatch.pipelines.flink import Flink
from tests.runners.alive import processes
from tests.runners.binaries import classpath
from tests.runners.processes import free_ports, is_open, start, wait_for

SLOTS = 4
LIVE = (
    "--streaming",
    "--checkpointing_interval=2000",
    "--max_bundle_time_mills=50",
    "--finish_bundle_before_checkpointing",
)
"""Flags of a streaming job."""

_OPENED = (
    "java.base/java.lang java.base/java.lang.invoke java.base/java.lang.reflect java.base/java.io java.base/java.net "
    "java.base/java.nio java.base/java.text java.base/java.time java.base/java.util java.base/java.util.concurrent "
    "java.base/java.util.concurrent.atomic java.base/java.util.concurrent.locks java.base/sun.nio.ch "
    "java.base/sun.net.util java.base/sun.security.util"
)

_LOGGED = [f"-Dorg.slf4j.simpleLogger.{name}" for name in ("showDateTime=true", "dateTimeFormat=HH:mm:ss.SSS")]

_MEMORY = {
    "taskmanager.cpu.cores": "1.0",
    "taskmanager.memory.task.heap.size": "512m",
    "taskmanager.memory.task.off-heap.size": "0b",
    "taskmanager.memory.managed.size": "128m",
    "taskmanager.memory.network.min": "128m",
    "taskmanager.memory.network.max": "128m",
    "taskmanager.memory.framework.heap.size": "128m",
    "taskmanager.memory.framework.off-heap.size": "128m",
    "taskmanager.memory.jvm-metaspace.size": "256m",
    "taskmanager.memory.jvm-overhead.min": "192m",
    "taskmanager.memory.jvm-overhead.max": "192m",
}


class FlinkCluster:
    """A running cluster.

    Args:
        folder: for logs, checkpoints and configuration.
        stack: stops the processes.

    Attributes:
        folder: that was given.
        address: of its REST interface.
        flink: the cluster by that interface.
        jobs: the port of Beam's job server.
        taskmanager: its process.
    """

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.folder = folder
        self._stack = stack
        rest, rpc, self.jobs = free_ports(3)
        self.address = f"localhost:{rest}"
        self.flink = Flink(self.address)
        conf = {
            "jobmanager.rpc.address": "localhost",
            "jobmanager.rpc.port": rpc,
            "rest.address": "localhost",
            "rest.bind-address": "localhost",
            "rest.port": rest,
            "taskmanager.host": "localhost",
            "taskmanager.bind-host": "localhost",
            "taskmanager.numberOfTaskSlots": SLOTS,
            "taskmanager.resource-id": "contbatch",
            "parallelism.default": 1,
            "io.tmp.dirs": folder / "tmp",
            "state.checkpoints.dir": f"file://{folder / 'checkpoints'}",
        }
        (folder / "tmp").mkdir()
        (folder / "flink-conf.yaml").write_text("".join(f"{name}: {value}\n" for name, value in conf.items()))
        self._flags = [flag for package in _OPENED.split() for flag in ("--add-opens", f"{package}=ALL-UNNAMED")]
        self._java("jobmanager", self._runtime("entrypoint.StandaloneSessionClusterEntrypoint"))
        self.start_taskmanager()
        wait_for("the cluster's slots", lambda: self.rest("overview")["slots-total"] >= SLOTS, folder)
        ports = [f"--{name}-port={port}" for name, port in zip(("artifact", "expansion"), free_ports(2), strict=True)]
        hidden = ["-Djava.system.class.loader=HiddenJars", f"-Djars={classpath()}", "-cp", str(_hidden_jars(folder))]
        server = [*hidden, "org.apache.beam.runners.flink.FlinkJobServerDriver"]
        master = f"--flink-master={self.address}"
        self._java("jobserver", [*server, "--job-host=localhost", f"--job-port={self.jobs}", *ports, master])
        wait_for("the job server", lambda: is_open(self.jobs), folder)

    def start_taskmanager(self) -> None:
        """Start the TaskManager: the first, or another one in place of one that is dead."""
        memory = [part for name, value in _MEMORY.items() for part in ("-D", f"{name}={value}")]
        self.taskmanager = self._java("taskmanager", [*self._runtime("taskexecutor.TaskManagerRunner"), *memory])

    def kill_taskmanager(self) -> None:
        """Kill the TaskManager with SIGKILL."""
        self.taskmanager.kill()
        self.taskmanager.wait()

    def workers(self, flags: Sequence[str]) -> list[int]:
        """Return the process ids of the workers that a job's pool has started and that are alive."""
        (port,) = (flag.rpartition(":")[2] for flag in flags if flag.startswith("--environment_config="))
        alive = processes()
        pools = {each.pid for each in alive if f"--service_port={port}" in each.command.split()}
        return sorted(each.pid for each in alive if each.parent in pools)

    def kill_worker(self, flags: Sequence[str]) -> None:
        """Kill a job's worker with SIGKILL, and one that a dead TaskManager may have left.

        Raises:
            LookupError: it has none.
        """
        workers = self.workers(flags)
        if not workers:
            raise LookupError("the job has no worker now")
        for worker in workers:
            os.kill(worker, signal.SIGKILL)

    def job(self, name: str) -> str:
        """Return the id of the job that runs under a name.

        Raises:
            LookupError: none does.
        """
        for job in self.flink.jobs():
            if job.name == name and not job.ended:
                return job.id
        raise LookupError(f"no job {name} runs")

    def cancel(self, job: str) -> None:
        """Cancel a job, and wait until it has ended."""
        self.flink.cancel(self.flink.find(job))

    def savepoint(self, job: str) -> str:
        """Cancel a job with a savepoint, wait until it has ended, and return the savepoint's path."""
        return self.flink.savepoint(self.flink.find(job), f"file://{self.folder / 'savepoints'}", cancel=True)

    def checkpoints(self, job: str) -> Any:
        """Return what is known of a job's checkpoints: ``counts``, ``latest``, ``history``."""
        return self.rest(f"jobs/{job}/checkpoints")

    def rest(self, path: str) -> Any:
        """Return what the cluster's REST interface says at a path."""
        with urllib.request.urlopen(f"http://{self.address}/{path}", timeout=5) as answer:
            return json.load(answer)

    @contextmanager
    def flags(self, *more: str) -> Iterator[list[str]]:
        """Give a job's flags, with a pool of workers of its own."""
        (port,) = free_ports(1)
        with ExitStack() as stack:
            pool = [sys.executable, "-m", "contbatch.pipelines.cli", "worker-pool", f"--service_port={port}"]
            start(f"pool-{port}", pool, self.folder, stack)
            wait_for("the pool of workers", lambda: is_open(port), self.folder)
            yield [
                "--runner=PortableRunner",
                f"--job_endpoint=localhost:{self.jobs}",
                "--environment_type=EXTERNAL",
                f"--environment_config=localhost:{port}",
                f"--flink_master={self.address}",
                "--experiments=disable_logging_submission_environment",
                *more,
            ]

    def _runtime(self, main: str) -> list[str]:
        return ["-cp", classpath(), f"org.apache.flink.runtime.{main}", "--configDir", str(self.folder)]

    def _java(self, name: str, arguments: Sequence[str]) -> subprocess.Popen[bytes]:
        java = [shutil.which("java") or "java", "-Xmx1g", *_LOGGED, *self._flags]
        return start(name, [*java, *arguments], self.folder, self._stack)


def _hidden_jars(folder: Path) -> Path:
    """Return a jar with the loader of classes from jars that are not uploaded with a job; it is uploaded itself."""
    source = Path(__file__).with_name("HiddenJars.java")
    subprocess.run([shutil.which("javac") or "javac", "-d", str(folder), str(source)], check=True)
    jar = folder / "hidden.jar"
    with ZipFile(jar, "w") as archive:
        archive.write(folder / "HiddenJars.class", "HiddenJars.class")
    return jar
