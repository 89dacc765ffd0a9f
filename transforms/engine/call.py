"""How a Beam ``ModelHandler`` is called for a batch: its wrappers opened, its results counted and in order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from apache_beam.ml.inference.base import (
    KeyedModelHandler,
    MaybeKeyedModelHandler,
    ModelHandler,
    PredictionResult,
    _PostProcessingModelHandler,
    _PreProcessingModelHandler,
)

from contbatch.transforms.engine.matching import by_key, counted, in_order

Call = Callable[[Sequence[Any]], list[Any]]
"""Elements to as many results, in their order."""

_WRAPPERS = (_PreProcessingModelHandler, _PostProcessingModelHandler)


def caller(handler: ModelHandler, model: Any, inference_args: dict[str, Any] | None = None) -> Call:
    """Return how to run a handler on a batch.

    Beam's keyed handlers zip keys and results, which hides results that are too many: a key could get the result of
    another one. So the handler inside is called, and what it returns is counted before it meets the keys.
    """
    handler = opened(handler)
    if isinstance(handler, KeyedModelHandler | MaybeKeyedModelHandler):
        inside = getattr(handler, "_unkeyed", None)
        if inside is not None:
            unkeyed = caller(inside, model, inference_args)
            return lambda batch: _keyed(unkeyed, batch, isinstance(handler, KeyedModelHandler))
        return lambda batch: by_key(batch, counted(batch, handler.run_inference(batch, model, inference_args)))
    if handler.should_skip_batching():
        return lambda batch: [list(handler.run_inference(one, model, inference_args)) for one in batch]
    return lambda batch: in_order(batch, counted(batch, handler.run_inference(batch, model, inference_args)))


def opened(handler: ModelHandler) -> ModelHandler:
    """Return the handler inside the wrappers that add functions before and after it."""
    while isinstance(handler, _WRAPPERS) and not handler.should_skip_batching():
        handler = handler._base
    return handler


def _keyed(unkeyed: Call, batch: Sequence[Any], always: bool) -> list[Any]:
    if not always and not isinstance(batch[0], tuple):
        return unkeyed(batch)
    results = unkeyed([value for _, value in batch])
    return [(key, result) for (key, _), result in zip(batch, results, strict=True)]


def with_version(result: Any, element: Any, version: str) -> Any:
    """Return a result as a ``PredictionResult`` that carries the version; of a keyed one, its value."""
    if type(result) is PredictionResult:
        return tuple.__new__(PredictionResult, (result[0], result[1], version))
    if isinstance(result, tuple) and len(result) == 2 and isinstance(element, tuple) and result[0] is element[0]:
        return result[0], with_version(result[1], element[1], version)
    return PredictionResult(element, result, version)
