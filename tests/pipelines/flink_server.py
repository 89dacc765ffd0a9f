"""Flink's REST interface, as far as the commands use it: jobs that run, are cancelled, and have savepoints."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

STARTED = 1_795_700_000_000
"""Milliseconds since the epoch."""


class FakeFlink:
    """What the server knows.

    Attributes:
        states: of the jobs, by id.
        names: of the jobs, by id.
        pools: of workers, by id.
        savepoint: what becomes of one: ``done``, ``refused``, ``fails`` or ``hangs``.
        polls: times that a savepoint is asked for before it is complete.
    """

    def __init__(self) -> None:
        self.states: dict[str, str] = {}
        self.names: dict[str, str] = {}
        self.pools: dict[str, str] = {}
        self.savepoint = "done"
        self.polls = 2
        self.asked: list[Any] = []
        self.address = ""

    def add(self, name: str, state: str = "RUNNING", pool: str = "") -> str:
        """Add a job and return its id; later ones have started later."""
        job = f"{len(self.states) + 1:08x}" * 4
        self.states[job], self.names[job], self.pools[job] = state, name, pool
        return job

    def answer(self, method: str, path: str, body: Any) -> tuple[int, Any]:  # noqa: PLR0911
        """Answer a request."""
        _, *parts = path.partition("?")[0].split("/")
        match method, parts:
            case "GET", ["jobs", "overview"]:
                jobs = [
                    {"jid": job, "name": self.names[job], "state": state, "start-time": STARTED + 1_000 * index}
                    for index, (job, state) in enumerate(self.states.items())
                ]
                return 200, {"jobs": jobs}
            case "GET", ["jobs", job]:
                return 200, {"state": self.states[job]}
            case "GET", ["jobs", job, "config"]:
                return 200, {"execution-config": {"user-config": {"environmentConfig": self.pools[job]}}}
            case "PATCH", ["jobs", job] if path.endswith("?mode=cancel"):
                self.states[job] = "CANCELED"
                return 202, {}
            case "POST", ["jobs", job, "savepoints"]:
                self.asked.append(body)
                if not body.get("target-directory"):
                    missing = "Config key [state.savepoints.dir] is not set."
                    return 400, {"errors": [f"a.RestHandlerException: {missing}\n\tat x"]}
                if self.savepoint == "refused":
                    return 500, {"errors": ["a.B: outer\n\tat x\nCaused by: c.D: inner\n\tat y"]}
                if body["cancel-job"] and self.savepoint == "done":
                    self.states[job] = "CANCELED"
                return 202, {"request-id": "one"}
            case "GET", ["jobs", job, "savepoints", "one"]:
                self.polls -= 1
                if self.polls > 0 or self.savepoint == "hangs":
                    return 200, {"status": {"id": "IN_PROGRESS"}}
                trace = "a.B: outer\n\tat c.D\nCaused by: java.io.IOException: disk full\n\tat e.F\n\t... 3 more"
                failed = {"failure-cause": {"class": "a.B", "stack-trace": trace}}
                done = {"location": f"{self.asked[-1]['target-directory']}/savepoint-{job[:6]}"}
                return 200, {"status": {"id": "COMPLETED"}, "operation": failed if self.savepoint == "fails" else done}
        return 404, {"errors": ["Not found."]}


@contextmanager
def fake_flink() -> Iterator[FakeFlink]:
    """Serve one."""
    flink = FakeFlink()

    class Handler(BaseHTTPRequestHandler):
        def _do(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            status, answer = flink.answer(self.command, self.path, json.loads(self.rfile.read(length) or b"null"))
            content = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = do_PATCH = _do

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("localhost", 0), Handler)
    flink.address = f"localhost:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield flink
    finally:
        server.shutdown()
        server.server_close()
