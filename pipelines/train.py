"""Training as a pipeline of its own: requests and feedback in, versions in a model store out."""

from __future__ import annotations

from typing import Any, NamedTuple

import apache_beam as beam

from contbatch.transforms import BatchPolicy, Event, Failed, GatePolicy, Learned, OnlineUpdate, Published
from contbatch.transforms.codecs import Codec
from contbatch.transforms.learning import Learner


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
    learner: Learner[Any],
    store: str,
    *,
    requests: Codec,
    feedback: Codec,
    gate: GatePolicy | None = None,
    ttl: float = 86_400.0,
    publish_every: int = 10_000,
    publish_seconds: float = 0.25,
) -> Trained:
    """Learn feedback as it comes, and publish often: an answer is as fresh as the newest version.

    Args:
        events: requests and their feedback.
        learner: the model.
        store: the model store.
        requests: codec of the requests.
        feedback: codec of the feedback.
        gate: keeps bad updates from serving.
        ttl: seconds that requests and feedback wait for each other.
        publish_every: examples after which a version is published.
        publish_seconds: seconds after which one is published at the latest.
    """
    published = events | "Train" >> OnlineUpdate(
        learner,
        BatchPolicy(max_size=256, max_delay=1.0),
        store,
        deterministic=False,
        requests=requests,
        feedback=feedback,
        gate=gate,
        ttl=ttl,
        publish_every=publish_every,
        publish_seconds=publish_seconds,
    )
    return Trained(published, published.learned, published.failed)
