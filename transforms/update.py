"""``PredictThenLearn`` and ``OnlineUpdate``: models that learn from the stream that they serve."""

from __future__ import annotations

import math
import time
import uuid
from collections.abc import Callable
from typing import Any

import apache_beam as beam
from apache_beam.options.pipeline_options import DebugOptions
from apache_beam.transforms.window import GlobalWindows

import contbatch.transforms.coders  # noqa: F401  registers the coders
from contbatch.transforms.batching import BatchPolicy
from contbatch.transforms.chunks import MILLI, PackFn, gathered
from contbatch.transforms.codecs import Codec
from contbatch.transforms.events import MICROS, Event
from contbatch.transforms.learning import GatePolicy, Learner, Order, PrequentialConfig
from contbatch.transforms.learning.wire import event_of
from contbatch.transforms.loop import ArrivalFn, EventTimeFn, LoopSettings
from contbatch.transforms.records import Example, Failed, Learned, Prediction, Published


class PredictThenLearn(beam.PTransform):
    """Predicts requests in micro-batches and learns their feedback, in event-time order, one model per key.

    Takes a PCollection of :class:`~contbatch.transforms.Event` and returns four: ``predictions`` (the main
    output), ``learned``, ``failed`` and ``published``, of the records of those names. Every request comes out as a
    prediction or failed; every feedback as learned or failed. The outputs do not depend on the order of arrival,
    on bundles or on how the watermark moves, as long as nothing is late or forced.

    Args:
        learner: the model.
        policy: bounds of the micro-batches, in event time.
        store: folder for model versions and snapshots, on any Beam filesystem.
        requests: codec of the request payloads: ``request_id`` and the learner's fields.
        feedback: codec of the feedback payloads: ``request_id``, ``label`` in [0, 1] and optionally ``weight``.
        ttl: seconds of event time that a request waits for its label, or a label for its request.
        wait_window: seconds of event time after which a request without a label is learned as a negative, until one
            comes; ``None`` for never. See :class:`~contbatch.transforms.DelayedLabels` for what to make of it.
        publish_every: examples between published versions.
        publish_seconds: seconds of event time after which new examples are published at the latest.
        gate: what keeps a bad update from serving; ``None`` for nothing.
        stride: live only: seconds of event time to which firings are rounded up, at least 0.001. Less latency against
            more firings, each of which reads the buffer once.
        max_buffer: most events buffered per model. Beyond it the older half is processed early, counted as
            ``forced``: events from before that point are late afterwards, so determinism is lost.
        max_wait: live only: seconds of real time after which new input forces the older half of a buffer whose
            watermark does not move; ``None`` to wait for ever.
        snapshot_every: events after which the log in state is replaced by a snapshot in the store.
        poll: seconds between two looks for :meth:`ModelStore.restore <contbatch.transforms.ModelStore.restore>`.
        clock: seconds; for ``max_wait`` and ``poll`` only.

    Raises:
        ValueError: an argument is outside its range, or a codec lacks a field.
    """

    _order = Order.EVENT_TIME

    def __init__(
        self,
        learner: Learner[Any],
        policy: BatchPolicy,
        store: str,
        *,
        requests: Codec,
        feedback: Codec | None,
        ttl: float = 86_400.0,
        wait_window: float | None = None,
        publish_every: int = 10_000,
        publish_seconds: float = math.inf,
        gate: GatePolicy | None = None,
        stride: float = 1.0,
        max_buffer: int = 2_000_000,
        max_wait: float | None = None,
        snapshot_every: int = 50_000,
        poll: float = 0.5,
        clock: Callable[[], float] = time.time,
    ) -> None:
        super().__init__()
        for name, value, least in (
            ("stride", stride, MILLI / MICROS),
            ("max_buffer", max_buffer, 1),
            ("snapshot_every", snapshot_every, 1),
            ("poll", poll, 0),
        ):
            if not (math.isfinite(value) and value >= least):
                raise ValueError(f"{name} is {value!r}; give a finite number of {least:g} or more")
        config = PrequentialConfig(
            learner,
            policy,
            requests,
            feedback,
            ttl,
            wait_window,
            publish_every,
            publish_seconds,
            gate,
            self._order,
        )
        whole = round(stride * MICROS / MILLI) * MILLI
        self._settings = LoopSettings(
            config, store, whole, max_buffer, max_wait, snapshot_every, poll, uuid.uuid4().hex, clock
        )

    def expand(self, events: beam.PCollection[Event]) -> beam.pvalue.DoOutputsTuple:
        """Chunk the events, group them by model, run the loops."""
        # Without it Prism runs one key in two bundles at once and loses state.
        events.pipeline.options.view_as(DebugOptions).add_experiment("prism_disable_sdf_split")
        fn = EventTimeFn if self._settings.config.order is Order.EVENT_TIME else ArrivalFn
        run = beam.ParDo(fn(self._settings, events.is_bounded)).with_output_types(
            Prediction, learned=Learned, failed=Failed, published=Published
        )
        if not isinstance(events.windowing.windowfn, GlobalWindows):
            events |= "Window" >> beam.WindowInto(GlobalWindows())
        chunks = events | "Chunk" >> beam.ParDo(PackFn()).with_output_types(tuple[str, bytes])
        return gathered(chunks) | "Run" >> run.with_outputs("learned", "failed", "published", main="predictions")


class OnlineUpdate(beam.PTransform):
    """Learns the feedback of requests that are predicted elsewhere, and publishes versions that serve there.

    Takes a PCollection of :class:`~contbatch.transforms.Event`, the requests as they were served and their feedback,
    and returns that of the versions, :class:`~contbatch.transforms.Published`. Its attributes are ``learned`` and
    ``failed``: every feedback is in one of the two, once, whatever the runner repeats. Whoever predicts, as
    :class:`~contbatch.transforms.ContinuousInference` with ``versions``, finds the versions in the store.

    Where ``feedback`` is ``None`` it takes a PCollection of :class:`~contbatch.transforms.Example` instead, which
    :class:`~contbatch.transforms.JoinFeedback` has made: it learns the features as they were served elsewhere, holds
    them against the scores that were given there, and need not predict the requests again.

    A deterministic trainer gives the same versions, bit by bit, for the same events in any order of arrival. It waits
    for the watermark; another one learns what comes as it comes. Where the store has versions of an earlier job, or of
    what a failure has undone, it names its own by a later epoch, so that those serve.

    Args:
        learner: the model.
        policy: bounds of the micro-batches in which requests are scored before their feedback is learned, in event
            time: their scores are the progressive metrics.
        store: folder for model versions and snapshots, on any Beam filesystem.
        deterministic: whether events count in the order of their event time.
        **arguments: those of :class:`PredictThenLearn`.

    Raises:
        ValueError: an argument is outside its range, or a codec lacks a field.
    """

    def __init__(
        self, learner: Learner[Any], policy: BatchPolicy, store: str, *, deterministic: bool = True, **arguments: Any
    ) -> None:
        super().__init__()
        kind = PredictThenLearn if deterministic else _Arrival
        self._loop = kind(learner, policy, store, **arguments)
        self._is_joined = arguments.get("feedback") is None

    def expand(self, events: beam.PCollection[Event] | beam.PCollection[Example]) -> beam.PCollection[Published]:
        """Run the loops, whose predictions nobody asked for."""
        if self._is_joined:
            events = events | "Events" >> beam.Map(event_of).with_output_types(Event)
        done = events | "Learn" >> self._loop
        published = done.published
        published.learned = done.learned
        published.failed = done.failed | "Feedback" >> beam.Filter(lambda failed: failed.kind == "feedback")
        return published


class _Arrival(PredictThenLearn):
    _order = Order.ARRIVAL
