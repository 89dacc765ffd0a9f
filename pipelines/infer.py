"""Inference as a pipeline of its own: requests in, predictions out, with the newest version of a model store."""

from __future__ import annotations

import time
from typing import Any, NamedTuple

import apache_beam as beam
from apache_beam.ml.inference.base import PredictionResult

from contbatch.transforms import BatchPolicy, ContinuousInference, Event, Failed, FailedElement, Prediction, Served
from contbatch.transforms.codecs import Codec
from contbatch.transforms.engine.versions import StoreVersions
from contbatch.transforms.events import MICROS
from contbatch.transforms.handlers.learner import LearnerModelHandler
from contbatch.transforms.infer import ShedElement
from contbatch.transforms.learning import Learner
from contbatch.transforms.learning.manifest import NOTHING


class Inferred(NamedTuple):
    """What becomes of requests; each is in one of the two, once.

    Attributes:
        predictions: PCollection of :class:`~contbatch.transforms.Prediction`; its ``reason`` is empty.
        failed: PCollection of :class:`~contbatch.transforms.Failed`, those that were shed included.
        served: PCollection of :class:`~contbatch.transforms.Served`: the predictions once more, with their features,
            for :class:`~contbatch.transforms.JoinFeedback`.
    """

    predictions: beam.PCollection[Prediction]
    failed: beam.PCollection[Failed]
    served: beam.PCollection[Served]


def infer(
    requests: beam.PCollection[Event],
    learner: Learner[Any],
    store: str,
    *,
    codec: Codec,
    policy: BatchPolicy,
    model: str = "",
    poll: float = 0.1,
) -> Inferred:
    """Predict requests with what a trainer publishes.

    Args:
        requests: the requests.
        learner: as it is trained.
        store: the model store.
        codec: of the requests.
        policy: when a batch is run.
        model: which model of the store.
        poll: seconds between two looks for a newer version.
    """
    inference = ContinuousInference(
        LearnerModelHandler(learner, codec), policy, versions=StoreVersions(store, model), poll=poll
    )
    done = requests | "Infer" >> inference
    predictions = done | "Predictions" >> beam.Map(_prediction).with_output_types(Prediction)
    failed = done.failed | "Failed requests" >> beam.Map(_failed).with_output_types(Failed)
    shed = done.shed | "Shed requests" >> beam.Map(_shed).with_output_types(Failed)
    served = done | "As served" >> beam.Map(_served).with_output_types(Served)
    return Inferred(predictions, (failed, shed) | "Without a prediction" >> beam.Flatten(), served)


def _prediction(result: PredictionResult) -> Prediction:
    event, answer, now = result.example, result.inference, round(time.time() * MICROS)
    version = result.model_id or NOTHING
    return Prediction(answer.request_id, answer.score, version, answer.batch_size, "", event.time, now, event.model)


def _served(result: PredictionResult) -> Served:
    event, answer, version = result.example, result.inference, result.model_id or NOTHING
    features = answer.prepared, answer.fingerprint
    return Served(event.payload, answer.request_id, event.time, answer.score, version, *features, event.model)


def _failed(failed: FailedElement) -> Failed:
    event = failed.element
    return Failed("request", "failed", failed.error, "", event.time, event.row, event.payload, event.model)


def _shed(shed: ShedElement) -> Failed:
    event = shed.element
    return Failed("request", "shed", str(shed.reason), "", event.time, event.row, event.payload, event.model)
