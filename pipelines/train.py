"""Training as a pipeline of its own: served requests and their feedback in, versions in a model store out."""

from __future__ import annotations

from typing import Any, NamedTuple

import apache_beam as beam

from contbatch.transforms import (
    BatchPolicy,
    Event,
    Failed,
    GatePolicy,
    Learned,
    OnlineUpdate,
    Published,
    Served,
)
from contbatch.transforms.codecs import Codec
from contbatch.transforms.events import is_feedback
from contbatch.transforms.learning import Learner
from contbatch.transforms.learning.learner import prepared_fields
from contbatch.transforms.learning.wire import event_of


class Trained(NamedTuple):
    """What becomes of feedback; each is in ``learned`` or ``failed``, once.

    Attributes:
        published: PCollection of :class:`~contbatch.transforms.Published`.
        learned: PCollection of :class:`~contbatch.transforms.Learned`.
        failed: PCollection of :class:`~contbatch.transforms.Failed`.
    """

    published: beam.PCollection[Published]
    learned: beam.PCollection[Learned]
    failed: beam.PCollection[Failed]


def train(
    events: beam.PCollection[Event],
    served: beam.PCollection[Served],
    learner: Learner[Any],
    store: str,
    *,
    requests: Codec,
    feedback: Codec,
    gate: GatePolicy | None = None,
    ttl: float = 86_400.0,
    wait_window: float | None = None,
    publish_every: int = 10_000,
    publish_seconds: float = 0.25,
) -> Trained:
    """Learn feedback as it comes, and publish often: an answer is as fresh as the newest version.

    A learner that prepares features is trained on those that were served, and a label waits until its request is
    answered. Any other is trained on the requests as they came, which were served as they came.

    Args:
        events: requests and their feedback.
        served: the requests with their features as they were served, such as those of
            :func:`~contbatch.pipelines.infer.infer`.
        learner: the model.
        store: the model store.
        requests: codec of the requests.
        feedback: codec of the feedback.
        gate: keeps bad updates from serving.
        ttl: seconds that requests and feedback wait for each other.
        wait_window: seconds after which a request without a label is learned as a negative; ``None`` for never.
        publish_every: examples after which a version is published.
        publish_seconds: seconds after which one is published at the latest.
    """
    if prepared_fields(learner):
        asked = served | "As events" >> beam.Map(event_of).with_output_types(Event)
        told = events | "Feedback" >> beam.Filter(is_feedback)
        events = (asked, told) | "Served and told" >> beam.Flatten()
    published = events | "Train" >> OnlineUpdate(
        learner,
        BatchPolicy(max_size=256, max_delay=1.0),
        store,
        deterministic=False,
        requests=requests,
        feedback=feedback,
        gate=gate,
        ttl=ttl,
        wait_window=wait_window,
        publish_every=publish_every,
        publish_seconds=publish_seconds,
    )
    return Trained(published, published.learned, published.failed)
