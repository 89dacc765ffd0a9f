"""``ContinuousInference``: a model's predictions, with batches formed across all bundles of a worker process."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import apache_beam as beam
from apache_beam.ml.inference.base import ModelHandler
from apache_beam.transforms.window import GlobalWindows

from contbatch.transforms.batch import ContinuousBatch
from contbatch.transforms.batching import BatchPolicy, TimeDomain
from contbatch.transforms.engine.call import opened
from contbatch.transforms.engine.iterative import iterative
from contbatch.transforms.engine.versions import FileVersions, StoreVersions, Versions
from contbatch.transforms.infer import (
    ApplyFn,
    FailedElement,
    InferBatchesFn,
    InferFn,
    InferSettings,
    ShedElement,
    WindowedInferFn,
)
from contbatch.transforms.learning.store import ModelStore
from contbatch.transforms.microbatch import MicroBatch


class ContinuousInference(beam.PTransform):
    """Predictions of a model: what ``RunInference`` gives, with batches formed across bundles, and deadlines.

    Elements of all bundles that are open in a worker process go to one engine, which runs the largest batch that
    meets every deadline when the device is free. No state and no timers are needed. A free device waits for more only
    while bundles are likely to give it at once, and never longer than the fixed cost of a batch. What a bundle has
    given is answered before it ends.

    The result is the PCollection of what the handler returns, ``PredictionResult`` for Beam's handlers, each with the
    timestamp and window of its element, in no order. Its attributes ``shed``
    (:class:`~contbatch.transforms.ShedElement`) and ``failed`` (:class:`~contbatch.transforms.FailedElement`) are the
    elements without one: everything that comes in is in one of the three, once.

    ========================================  ==================================================================
    ``RunInference``                          here
    ========================================  ==================================================================
    ``model_handler``                         the same, unchanged; without a policy, its batching arguments hold
    ``max_batch_size``, ``min_batch_size``    ``BatchPolicy(max_size=..., min_size=...)``
    ``max_batch_duration_secs``               ``max_delay``, if batches have to span bundles
    ``max_batch_weight``, ``batch_length_fn`` ``BatchPolicy(max_weight=..., weight_fn=...)``, ``length_fn``
    ``with_exception_handling()``             always: ``failed``; ``threshold`` and ``time_limit`` as there
    ``watch_model_pattern``                   ``versions``
    ``model_metadata_pcoll``                  none: side inputs are not refreshed on all runners; ``versions``
    ``model_identifier``                      ``model_identifier``
    ``with_preprocess_fn``, ``..._postprocess_fn``  the same, unchanged; what they raise goes to ``failed``
    ========================================  ==================================================================

    Args:
        handler: any of Beam's model handlers.
        policy: when batches are released; by default as the handler says.
        inference_args: what the handler takes beside the batch.
        versions: where newer models are found while the job runs: a pattern of files, a
            :class:`~contbatch.transforms.ModelStore`, or what implements
            :class:`~contbatch.transforms.engine.versions.Versions`. Predictions then carry their version as
            ``model_id``.
        poll: seconds between two looks for a newer model, above 0.
        max_delay: seconds for which elements wait for a full batch in the runner's state, across bundles, before they
            reach the engine: for low rates and bundles of few elements. ``None`` not to wait.
        time_limit: seconds that a call of the handler may take before its elements fail; ``None`` for any.
        threshold: share of a bundle's elements, from 0 to 1, that may fail before the bundle fails and the runner
            tries it again; 0 is what ``RunInference`` does.
        model_identifier: transforms that give the same one share an engine, and so a model.
        metrics_namespace: of the Beam metrics ``predicted``, ``shed``, ``failed``, ``batch_size``, ``padding``,
            ``queue_wait_ms``, ``device_ms``, ``released_REASON`` and ``model_version``.
        clock: seconds since the epoch, of the policy's ``deadline_fn``.

    Raises:
        ValueError: an argument is outside its range.
    """

    def __init__(
        self,
        handler: ModelHandler,
        policy: BatchPolicy | None = None,
        *,
        inference_args: dict[str, Any] | None = None,
        versions: Versions | ModelStore | str | None = None,
        poll: float = 1.0,
        max_delay: float | None = None,
        time_limit: float | None = None,
        threshold: float = 1.0,
        model_identifier: str | None = None,
        metrics_namespace: str = "contbatch",
        clock: Callable[[], float] = time.time,
    ) -> None:
        super().__init__()
        if policy is None and max_delay is None:
            max_delay = _arguments(handler).get("max_batch_duration_secs") or None
        if not poll > 0:
            raise ValueError(f"poll is {poll} s; give seconds above 0")
        if max_delay is not None and not max_delay > 0:
            raise ValueError(f"max_delay is {max_delay} s; give seconds above 0, or None not to wait")
        if time_limit is not None and not time_limit > 0:
            raise ValueError(f"time_limit is {time_limit} s; give seconds above 0, or None")
        if not 0 <= threshold <= 1:
            raise ValueError(f"threshold is {threshold}; give a share from 0 to 1")
        handler.validate_inference_args(inference_args)
        policy = policy or policy_of(handler)
        if iterative(handler) and (policy.length_fn or policy.allowed_sizes):
            raise ValueError(
                "length_fn or allowed_sizes is given for a handler that runs step by step, whose batch changes with "
                "every step; bound it with max_size, and with max_weight and weight_fn"
            )
        self._handler = handler
        self._policy = policy
        self._max_delay = max_delay
        self._clock = clock
        self._settings = InferSettings(
            opened(handler),
            self._policy,
            model_identifier or uuid.uuid4().hex,
            _versions(versions),
            poll,
            inference_args,
            time_limit,
            threshold,
            metrics_namespace,
            clock,
        )

    def expand(self, elements: beam.PCollection[Any]) -> beam.PCollection[Any]:
        """Apply the handler's functions around the engine."""
        handler = self._handler
        shed: list[Any] = []
        failed: list[Any] = []
        elements = self._apply(elements, handler.get_preprocess_fns(), "preprocess", failed)
        policy = self._policy.unhurried() if elements.is_bounded else self._policy
        fn = InferFn if isinstance(elements.windowing.windowfn, GlobalWindows) else WindowedInferFn
        if handler.should_skip_batching():
            policy = replace(policy, max_size=1, min_size=1, allowed_sizes=())
        elif self._max_delay is not None:
            batching = ContinuousBatch(replace(policy, max_delay=self._max_delay), clock=self._clock)
            elements, fn = elements | "Wait" >> batching, InferBatchesFn
            shed.append(elements.shed | "ShedWaiting" >> beam.FlatMap(_shed).with_output_types(ShedElement))
            policy = replace(policy, latency_slo=None, time_domain=TimeDomain.REAL_TIME)  # the wait is over
        settings = replace(self._settings, policy=policy)
        infer = beam.ParDo(fn(settings)).with_resource_hints(**handler.get_resource_hints())
        types = {"shed": ShedElement, "failed": FailedElement}
        done = elements | "Infer" >> infer.with_output_types(Any, **types).with_outputs(*types, main="predictions")
        shed.append(done.shed)
        failed.append(done.failed)
        predictions = self._apply(done.predictions, handler.get_postprocess_fns(), "postprocess", failed)
        predictions.shed = shed[0] if len(shed) == 1 else shed | "Shed" >> beam.Flatten()
        predictions.failed = failed[0] if len(failed) == 1 else failed | "Failed" >> beam.Flatten()
        return predictions

    def _apply(
        self, elements: beam.PCollection[Any], functions: Iterable[Any], stage: str, failed: list[Any]
    ) -> beam.PCollection[Any]:
        """Apply functions, if there are any, and add what they fail for."""
        functions = list(functions)
        if not functions:
            return elements
        apply = beam.ParDo(ApplyFn(functions, stage, self._settings.namespace))
        typed = apply.with_output_types(Any, failed=FailedElement)
        done = elements | stage.capitalize() >> typed.with_outputs("failed", main="done")
        failed.append(done.failed)
        return done.done


def policy_of(handler: ModelHandler) -> BatchPolicy:
    """Return the policy that a handler's batching arguments ask for."""
    given = _arguments(handler)
    names = {
        "max_batch_size": "max_size",
        "min_batch_size": "min_size",
        "max_batch_weight": "max_weight",
        "length_fn": "length_fn",
        "element_size_fn": "weight_fn",
    }
    policy = {ours: given[theirs] for theirs, ours in names.items() if given.get(theirs) is not None}
    if "length_fn" in policy:
        policy.pop("weight_fn", None)
    if not policy.keys() & {"length_fn", "weight_fn"}:
        policy.pop("max_weight", None)
    if "max_size" not in policy and "min_size" in policy:
        policy["max_size"] = max(BatchPolicy.max_size, policy["min_size"])
    return BatchPolicy(**policy)


def _arguments(handler: ModelHandler) -> Mapping[str, Any]:
    return {} if handler.should_skip_batching() else handler.batch_elements_kwargs()


def _versions(given: Versions | ModelStore | str | None) -> Versions | None:
    if isinstance(given, str):
        return FileVersions(given)
    return StoreVersions(given) if isinstance(given, ModelStore) else given


def _shed(batch: MicroBatch[Any]) -> Iterator[ShedElement]:
    for element in batch:
        yield ShedElement(element, batch.reason)
