"""What leaves :class:`~contbatch.transforms.PredictThenLearn`. Times are microseconds since the epoch."""

from __future__ import annotations

from typing import NamedTuple


class Prediction(NamedTuple):
    """The answer to one request.

    Attributes:
        request_id: whose answer it is.
        score: the model's output.
        version: the weights that made it, ``epoch.step``.
        batch_size: how many requests were predicted together.
        reason: why the micro-batch was released, a :class:`~contbatch.transforms.Reason`.
        request_time: when the request was made.
        time: when its micro-batch was released.
        model: which model answered.
    """

    request_id: str
    score: float
    version: str
    batch_size: int
    reason: str
    request_time: int
    time: int
    model: str


class Learned(NamedTuple):
    """A feedback that was learned, beside what had been predicted for it.

    Attributes:
        request_id: the request that it answers.
        label: what was learned.
        weight: its importance.
        score: what had been predicted.
        served_by: the weights that had predicted it, ``epoch.step``.
        version: the first weights that know it, ``epoch.step``.
        request_time: when the request was made.
        time: when the feedback was given.
        model: which model learned it.
    """

    request_id: str
    label: float
    weight: float
    score: float
    served_by: str
    version: str
    request_time: int
    time: int
    model: str


class Failed(NamedTuple):
    """An event that was neither predicted nor learned, and why.

    Attributes:
        kind: ``request`` or ``feedback``.
        status: ``failed`` for a request; ``duplicate``, ``late``, ``unmatched`` or ``refused`` for feedback.
        reason: what was wrong, in words.
        request_id: the id, where the record could be decoded; else empty.
        time: event time.
        row: position in the source.
        payload: the record as it arrived.
        model: where it was sent.
    """

    kind: str
    status: str
    reason: str
    request_id: str
    time: int
    row: int
    payload: bytes
    model: str


class Published(NamedTuple):
    """A model version that was written to the store.

    Attributes:
        version: ``epoch.step``.
        digest: SHA-256 of the weights file.
        examples: examples learned since the first version.
        time: event time up to which feedback is learned.
        model: which model.
    """

    version: str
    digest: str
    examples: int
    time: int
    model: str
