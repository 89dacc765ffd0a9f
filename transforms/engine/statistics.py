"""What an engine counts."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class EngineStatistics:
    """Counts since the engine was made: submitted = predicted + shed + failed + abandoned + waiting + running.

    Attributes:
        submitted: tasks that came.
        predicted: tasks with a prediction.
        shed: tasks given up, as their deadline could not be met or too much waited.
        failed: tasks with an error.
        abandoned: tasks whose bundle was given up before they had an outcome.
        waiting: tasks in the queue now.
        waiting_seconds: what they would take, by the cost model.
        running: tasks on the device now, without those that are abandoned.
        bundles: bundles open now.
        batches: batches that ran.
        device_seconds: what they took.
        hung: calls that were given up as hanging.
        restarts: device threads that died and were replaced.
        version: of the model that serves, ``None`` if it is the handler's own.
        swaps: versions that have taken over from another.
        refused: versions that were not taken, as they were torn or did not load.
    """

    submitted: int
    predicted: int
    shed: int
    failed: int
    abandoned: int
    waiting: int
    waiting_seconds: float
    running: int
    bundles: int
    batches: int
    device_seconds: float
    hung: int
    restarts: int
    version: str | None
    swaps: int
    refused: int
