"""A job server that says which flags it knows, and does nothing."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent import futures
from contextlib import contextmanager
from typing import Any

import grpc
from apache_beam.portability.api import beam_job_api_pb2, beam_job_api_pb2_grpc

_KINDS = beam_job_api_pb2.PipelineOptionType
FLINK = {
    "max_bundle_time_mills": _KINDS.INTEGER,
    "checkpointing_interval": _KINDS.INTEGER,
    "shutdown_sources_after_idle_ms": _KINDS.INTEGER,
    "state_backend": _KINDS.STRING,
    "state_backend_storage_path": _KINDS.STRING,
    "finish_bundle_before_checkpointing": _KINDS.BOOLEAN,
    "object_reuse": _KINDS.BOOLEAN,
    "streaming": _KINDS.BOOLEAN,  # Beam's Python has it, too
}


class _Server(beam_job_api_pb2_grpc.JobServiceServicer):
    def __init__(self, known: dict[str, Any]) -> None:
        self._known = known

    def DescribePipelineOptions(self, request: Any, context: Any) -> Any:
        options = [
            beam_job_api_pb2.PipelineOptionDescriptor(name=name, type=kind) for name, kind in self._known.items()
        ]
        return beam_job_api_pb2.DescribePipelineOptionsResponse(options=options)


@contextmanager
def job_server(known: dict[str, Any]) -> Iterator[str]:
    """Give the address of a server that knows these flags."""
    server = grpc.server(futures.ThreadPoolExecutor(2))
    beam_job_api_pb2_grpc.add_JobServiceServicer_to_server(_Server(known), server)
    port = server.add_insecure_port("localhost:0")
    server.start()
    try:
        yield f"localhost:{port}"
    finally:
        server.stop(0)
