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


class Served(NamedTuple):
    """A request that was predicted, with its features as they were served: what its feedback is joined to.

    Attributes:
        payload: the encoded request, as it arrived.
        request_id: whose it is.
        time: when the request was made.
        score: what was predicted.
        version: the weights, and the statistics of the features, that made it, ``epoch.step``.
        prepared: what the model's state added to the features, as a JSON list; empty for nothing. See
            :class:`~contbatch.transforms.learning.learner.Preparing`.
        fingerprint: of all features as the model got them, 0 for none; see
            :mod:`contbatch.transforms.learning.skew`.
        model: which model answered.
    """

    payload: bytes
    request_id: str
    time: int
    score: float
    version: str
    prepared: str = ""
    fingerprint: int = 0
    model: str = ""


class Example(NamedTuple):
    """A row to learn: a label, or the lack of one, and the request as it was served.

    Attributes:
        served: the request.
        label: 0 to 1.
        weight: its importance.
        name: which of several labels of a request this is, such as ``click``; empty where there is one.
        observed: its standing, a number of :class:`~contbatch.transforms.learning.observed.Observed`.
        time: when the label was given, or a window ended without one.
        row: position of the feedback in its source.
    """

    served: Served
    label: float
    weight: float
    name: str
    observed: int
    time: int
    row: int = 0


class Learned(NamedTuple):
    """A row that was learned, beside what had been predicted for it.

    Attributes:
        request_id: the request that it answers.
        label: what was learned.
        weight: its importance.
        score: what had been predicted.
        served_by: the weights that had predicted it, ``epoch.step``.
        version: the first weights that know it, ``epoch.step``.
        request_time: when the request was made.
        time: when the feedback was given, or a window ended without one.
        model: which model learned it.
        name: which of several labels of the request this is.
        observed: ``label`` or ``corrected`` for feedback; ``assumed`` or ``settled`` for a request without any. See
            :class:`~contbatch.transforms.learning.observed.Observed`.
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
    name: str = ""
    observed: str = "label"


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
