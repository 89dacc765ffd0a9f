"""Handlers that are run step by step, and what wraps them."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, Protocol

from apache_beam.ml.inference.base import KeyedModelHandler, ModelHandler

from contbatch.transforms.engine.call import opened
from contbatch.transforms.engine.slot import Loaded

_LOG = logging.getLogger(__name__)


class IterativeHandler(Protocol):
    """What a Beam ``ModelHandler`` has besides, to be run step by step: a decoder, a diffusion model, a beam search.

    A state is what the handler keeps of one element. A handler may also have ``abandon(state, model)``, which frees
    what an element holds that does not come to its end.
    """

    def start(self, elements: Sequence[Any], model: Any) -> Sequence[Any]:
        """Return a state for each of the elements, as a decoder's prefill does. On an error nothing may be held."""

    def step(self, states: Sequence[Any], model: Any) -> Sequence[bool]:
        """Take all of them one step further; returns for each whether it has come to its end."""

    def finish(self, state: Any, model: Any) -> Any:
        """Return the prediction of an element that has come to its end, and free what it holds."""


def iterative(handler: ModelHandler) -> Any | None:
    """Return the :class:`IterativeHandler` in a handler and its wrappers, or ``None``."""
    handler = opened(handler)
    if isinstance(handler, KeyedModelHandler) and hasattr(handler, "_unkeyed"):
        return iterative(handler._unkeyed)
    return handler if all(hasattr(handler, name) for name in ("start", "step", "finish")) else None


def handler_of(loaded: Loaded) -> Any:
    """Return the :class:`IterativeHandler` that is loaded."""
    return iterative(loaded.handler)


def is_keyed(loaded: Loaded) -> bool:
    """Return whether elements and predictions have a key."""
    return isinstance(opened(loaded.handler), KeyedModelHandler)


def value(element: Any, loaded: Loaded) -> Any:
    """Return what the handler is given of an element."""
    return element[1] if is_keyed(loaded) else element


def abandon(handler: Any, state: Any, model: Any) -> None:
    """Free what an element holds that does not come to its end."""
    if hasattr(handler, "abandon"):
        try:
            handler.abandon(state, model)
        except Exception:  # whatever a handler raises: the others go on
            _LOG.exception("a handler could not abandon an element")
