"""A learner as a Beam ``ModelHandler``: it serves the versions that a trainer publishes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import safetensors.numpy
from apache_beam.ml.inference.base import ModelHandler, PredictionResult

from contbatch.transforms.codecs import Codec
from contbatch.transforms.events import Event
from contbatch.transforms.files import local_copy
from contbatch.transforms.learning import Learner
from contbatch.transforms.learning.features import keep
from contbatch.transforms.learning.learner import prepare


class Answer(NamedTuple):
    """What a model says to one request.

    Attributes:
        request_id: whose answer it is.
        score: the model's output.
        batch_size: how many requests were run together.
        prepared: what the model's state added to the features; see :class:`~contbatch.transforms.Served`.
        fingerprint: of all features.
    """

    request_id: str
    score: float
    batch_size: int
    prepared: str
    fingerprint: int


class LearnerModelHandler(ModelHandler):
    """Predicts requests with a learner; a result is ``PredictionResult(event, Answer)``.

    Elements are :class:`~contbatch.transforms.Event`; each batch is decoded once.

    Args:
        learner: as it was trained.
        requests: codec of the requests: ``request_id`` and the learner's fields.
        path: a version's weights file; ``None`` for a model that has learned nothing.
        **kwargs: those of Beam's ``ModelHandler``.
    """

    def __init__(self, learner: Learner[Any], requests: Codec, path: str | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._learner = learner
        self._requests = requests
        self._path = path

    def update_model_path(self, model_path: str | None = None) -> None:
        """Take the weights from another file when the model is loaded next; ``None`` changes nothing."""
        self._path = model_path or self._path

    def load_model(self) -> Any:
        """Return the learner's state.

        Raises:
            ValueError: the file is of another configuration.
        """
        if self._path is None:
            return self._learner.init()
        with local_copy(self._path) as path:
            return self._learner.load(safetensors.numpy.load_file(path))

    def run_inference(
        self, batch: Sequence[Event], model: Any, inference_args: dict[str, Any] | None = None
    ) -> list[PredictionResult]:
        """Return the answers.

        Raises:
            ValueError: a request cannot be decoded.
        """
        columns, _, errors = self._requests.decode([event.payload for event in batch])
        if errors:
            raise ValueError(errors[0][1])
        served = prepare(self._learner, model, columns)
        scores = self._learner.predict(model, served).tolist()
        answers = zip(batch, columns["request_id"], scores, keep(self._learner, served), strict=True)
        return [
            PredictionResult(event, Answer(name, score, len(batch), *features))
            for event, name, score, features in answers
        ]
