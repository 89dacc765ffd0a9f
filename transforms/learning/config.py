"""What a serial loop does: its learner, its batches, its codecs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum
from typing import Generic, TypeVar

from contbatch.transforms.batching import BatchPolicy
from contbatch.transforms.codecs import Codec
from contbatch.transforms.learning.gate import GatePolicy
from contbatch.transforms.learning.join import Terms
from contbatch.transforms.learning.learner import Learner, needs_settled

State = TypeVar("State")


class Order(StrEnum):
    """In which order events are processed.

    With ``EVENT_TIME`` the outcome does not depend on how events arrive, and what comes from before the frontier is
    late. With ``ARRIVAL`` nothing waits for the watermark, and nothing is late by its order.
    """

    EVENT_TIME = "event_time"
    ARRIVAL = "arrival"


@dataclass(frozen=True)
class PrequentialConfig(Generic[State]):
    """What a loop does; everything that changes is in the loop.

    Attributes:
        learner: predicts and learns.
        policy: bounds of the prediction micro-batches, in event time.
        requests: codec of the requests; needs a field ``request_id`` and the learner's fields.
        feedback: codec of the feedback; needs ``request_id`` and ``label``, and may have ``weight`` and ``name``;
            ``None`` where all feedback comes as examples, joined by ``JoinFeedback``.
        ttl: how long a request waits for its label, and a label for its request, in seconds of event time.
        wait_window: seconds of event time after which a request without a label is learned as a negative; ``None``
            for never.
        publish_every: examples between published versions.
        publish_seconds: seconds of event time after which new examples are published at the latest.
        gate: keeps bad updates from serving; ``None`` for no gate.
        order: in which events count.

    Raises:
        ValueError: a codec lacks a field, or a number is outside its range.
    """

    learner: Learner[State]
    policy: BatchPolicy
    requests: Codec
    feedback: Codec | None
    ttl: float = 86_400.0
    wait_window: float | None = None
    publish_every: int = 10_000
    publish_seconds: float = math.inf
    gate: GatePolicy | None = None
    order: Order = Order.EVENT_TIME

    def __post_init__(self) -> None:
        for name, codec, needed in (
            ("requests", self.requests, ("request_id", *self.learner.fields)),
            ("feedback", self.feedback, ("request_id", "label")),
        ):
            if codec is None:
                continue
            missing = [field for field in needed if field not in codec.fields]
            if missing:
                raise ValueError(f"the {name} codec has fields {codec.fields}; it also needs {missing}")
        policy = self.policy
        if policy != BatchPolicy(policy.max_size, policy.max_delay, time_domain=policy.time_domain):
            raise ValueError(f"{policy} has more bounds than the serial loop knows; give max_size and max_delay alone")
        _ = self.terms
        if not self.ttl >= self.policy.max_delay:
            raise ValueError(f"ttl is {self.ttl} s; give at least the policy's max_delay, {self.policy.max_delay} s")
        if self.publish_every < 1:
            raise ValueError(f"publish_every is {self.publish_every}; give 1 example or more")
        if not self.publish_seconds > 0:
            raise ValueError(f"publish_seconds is {self.publish_seconds}; give seconds above 0, or math.inf")

    @property
    def terms(self) -> Terms:
        """How long requests and feedback wait for each other."""
        return Terms(self.ttl, self.wait_window, self.wait_window is not None and needs_settled(self.learner))
