"""Flink's REST interface: the one way to end a job for good, as ``PipelineResult.cancel()`` leaves it running.

Imports no Beam: the commands that use it answer at once.
"""

from __future__ import annotations

import http.client
import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from contbatch.pipelines.errors import JobError, UsageError

ENDED = ("FINISHED", "CANCELED", "FAILED", "SUSPENDED")
"""States that a job does not leave."""
_ADDRESS = "give the REST address of its JobManager with --flink_rest"
_AUTO = ("", "[auto]", "[local]", "[collection]")


@dataclass(frozen=True)
class Job:
    """A job of the cluster.

    Attributes:
        id: 32 hexadecimal digits.
        name: as submitted.
        state: in Flink's words, as ``RUNNING``.
        started: seconds since the epoch.
    """

    id: str
    name: str
    state: str
    started: float

    @property
    def ended(self) -> bool:
        """Whether the job runs no more."""
        return self.state in ENDED


class Flink:
    """A cluster, by its REST interface.

    Args:
        address: of the JobManager, as ``localhost:8081`` or ``https://flink.example``.
        seconds: that an answer may take.

    Raises:
        UsageError: nothing answers there, or no Flink; or a job cannot be found.
        JobError: the cluster says no.
    """

    def __init__(self, address: str, seconds: float = 10.0) -> None:
        address = address.rstrip("/")
        self.address = address if "://" in address else f"http://{address}"
        if urlsplit(self.address).scheme not in ("http", "https"):
            raise UsageError(f"the address of Flink is {address}; give one as localhost:8081 or https://flink.example")
        self._seconds = seconds
        direct = urlsplit(self.address).hostname in ("localhost", "127.0.0.1", "::1")
        proxies = [urllib.request.ProxyHandler({})] if direct else []
        self._open = urllib.request.build_opener(*proxies).open

    def jobs(self) -> list[Job]:
        """Return every job that the cluster remembers, the latest first."""
        found = self._call("GET", "/jobs/overview")["jobs"]
        jobs = (Job(one["jid"], one["name"], one["state"], one["start-time"] / 1e3) for one in found)
        return sorted(jobs, key=lambda job: -job.started)

    def find(self, job: str) -> Job:
        """Return the job of an id, its beginning or a name; of several of a name the one that runs."""
        jobs = self.jobs()
        named = [one for one in jobs if one.name == job]
        found = named or [one for one in jobs if len(job) >= 4 and one.id.startswith(job.lower())]
        live = [one for one in found if not one.ended]
        if len(live) > 1:
            raise UsageError(f"{len(live)} jobs run as {job}: {', '.join(one.id for one in live)}; give an id")
        if not found:
            running = ", ".join(f"{one.name} ({one.id})" for one in jobs if not one.ended)
            raise UsageError(f"no job {job} on {self.address}; running: {running or 'none'}")
        return (live or found)[0]

    def state(self, job: str) -> str:
        """Return the state of the job of an id."""
        return str(self._call("GET", f"/jobs/{job}")["state"])

    def settings(self, job: str) -> Mapping[str, str]:
        """Return the pipeline options that a job was submitted with, their names in camel case."""
        return self._call("GET", f"/jobs/{job}/config").get("execution-config", {}).get("user-config") or {}

    def cancel(self, job: Job, seconds: float = 60.0) -> str:
        """End a job, and return the state that it ends in; its state in Flink is lost."""
        self._check_running(job)
        self._call("PATCH", f"/jobs/{job.id}?mode=cancel")
        return self._wait_for_end(job, seconds)

    def savepoint(
        self,
        job: Job,
        folder: str | None = None,
        *,
        cancel: bool = False,
        seconds: float = 600.0,
        say: Callable[[str], None] = lambda text: None,
    ) -> str:
        """Have a job write a savepoint, and return its path.

        Args:
            job: which one.
            folder: where the cluster can write, as ``s3://...``; ``None`` for ``state.savepoints.dir`` of the cluster.
            cancel: whether the job is cancelled when it is written.
            seconds: that it may take.
            say: is told how it goes, about once a second.
        """
        self._check_running(job)
        body = {"cancel-job": cancel} | ({"target-directory": folder} if folder else {})
        try:
            trigger = self._call("POST", f"/jobs/{job.id}/savepoints", body)["request-id"]
        except JobError as error:
            if folder or "state.savepoints.dir" not in str(error):
                raise
            raise UsageError(
                f"{self.address} has no state.savepoints.dir; give --folder, where it can write"
            ) from error
        began = time.monotonic()
        told = 0
        while (passed := time.monotonic() - began) < seconds:
            answer = self._call("GET", f"/jobs/{job.id}/savepoints/{trigger}")
            if answer["status"]["id"] == "COMPLETED":
                return self._completed(job, answer["operation"], cancel, seconds - passed)
            if int(passed) > told:
                told = int(passed)
                say(f"savepoint of {job.name}: {told} s")
            time.sleep(0.1)
        raise JobError(f"the savepoint of {job.name} was not complete in {seconds:g} s; the job goes on")

    def _completed(self, job: Job, operation: Mapping[str, Any], cancel: bool, seconds: float) -> str:
        if "location" not in operation:
            cause = str(operation.get("failure-cause", {}).get("stack-trace") or operation)
            raise JobError(f"the savepoint of {job.name} failed: {reason(cause)}")
        if cancel:
            self._wait_for_end(job, seconds)
        return str(operation["location"])

    def _check_running(self, job: Job) -> None:
        if job.ended:
            raise UsageError(f"the job {job.name} ({job.id}) is {job.state} and does not run; nothing was done")

    def _wait_for_end(self, job: Job, seconds: float) -> str:
        end = time.monotonic() + seconds
        while (state := self.state(job.id)) not in ENDED:
            if time.monotonic() > end:
                raise JobError(f"the job {job.name} is still {state} after {seconds:g} s; see {self.address}")
            time.sleep(0.1)
        return state

    def _call(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json"} if data else {}
        request = urllib.request.Request(f"{self.address}{path}", data, headers, method=method)  # noqa: S310
        try:
            with self._open(request, timeout=self._seconds) as answer:
                return json.loads(answer.read() or b"{}")
        except urllib.error.HTTPError as error:
            raise JobError(f"Flink at {self.address} says {error.code}: {_said(error.read())}") from error
        except (ValueError, http.client.HTTPException) as error:
            raise UsageError(f"what answers at {self.address} is not Flink; {_ADDRESS}") from error
        except OSError as error:
            cause = getattr(error, "reason", error)
            raise UsageError(f"no Flink answers at {self.address} ({cause}); {_ADDRESS}") from error


def rest_address(given: str | None, master: str | None) -> str | None:
    """Return where Flink's REST interface is, from ``--flink_rest`` or else ``--flink_master``, if either says so."""
    return given or (None if (master or "") in _AUTO else master)


def reason(trace: str) -> str:
    """Return the innermost cause that a Java stack trace names."""
    lines = [line.strip() for line in trace.splitlines()]
    causes = [line for line in lines if line and not line.startswith(("at ", "..."))]
    inner = next((line for line in reversed(causes) if line.startswith("Caused by: ")), causes[0] if causes else "")
    return inner.removeprefix("Caused by: ")[:300]


def _said(content: bytes) -> str:
    try:
        errors = json.loads(content)["errors"]
    except (ValueError, KeyError, TypeError):
        return content.decode(errors="replace").strip()[:300] or "nothing more"
    return next((reason(str(one)) for one in errors if "\n" in str(one)), str(errors[0]) if errors else "nothing more")
