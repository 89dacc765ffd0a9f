"""Runs a batch so that what is wrong with one element stays with that element."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from contbatch.transforms.engine.call import Call


class Failure(NamedTuple):
    """Why an element has no prediction.

    Attributes:
        error: the type of the error, and its text.
        memory: whether the memory was not enough.
    """

    error: str
    memory: bool = False


class Run(NamedTuple):
    """What became of a batch.

    Attributes:
        outcomes: for each element its prediction, or a :class:`Failure`.
        too_large: size of the smallest batch that ran out of memory though each of its elements fits, or 0.
        calls: how often the handler was called; 1 if nothing went wrong.
    """

    outcomes: list[Any]
    too_large: int
    calls: int


def run(call: Call, elements: Sequence[Any], padded: Callable[[int], int] = int) -> Run:
    """Run a batch; what fails is run again in halves, down to the elements that fail alone.

    A batch that runs out of memory is halved too, and so is the rest of it, without another try at the size that
    failed.

    Args:
        call: runs the handler.
        elements: at least one.
        padded: how many elements the device is given for so many: the last one is repeated, and the results of the
            repetitions are dropped.
    """
    outcomes: list[Any] = [None] * len(elements)
    todo, most, calls = [(0, len(elements))], len(elements), 0
    too_large: list[range] = []
    hopeless: list[int] = []
    while todo:
        start, end = todo.pop()
        size = end - start
        if size > most:
            todo += [(start + most, end), (start, start + most)]
            continue
        calls += 1
        batch = list(elements[start:end])
        batch += batch[-1:] * (padded(size) - size)
        memory = False
        try:
            outcomes[start:end] = call(batch)[:size]
        except Exception as error:  # whatever a handler raises
            memory = is_out_of_memory(error)
            if size == 1:
                outcomes[start] = failure_of(error)
            else:
                middle = start + size // 2
                todo += [(middle, end), (start, middle)]
        if memory:  # outside of the handling, which keeps the memory alive
            free_memory()
            if size > 1:
                most = size // 2
                too_large.append(range(start, end))
            else:
                hopeless.append(start)
    # a batch with an element that does not even fit alone says nothing of sizes
    sizes = [len(part) for part in too_large if not any(one in part for one in hopeless)]
    return Run(outcomes, min(sizes, default=0), calls)


def failure_of(error: BaseException) -> Failure:
    """Return what an error means for the one element that was run."""
    return Failure(f"{type(error).__name__}: {error}", is_out_of_memory(error))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that a device's or the host's memory was not enough."""
    if isinstance(error, MemoryError):
        return True
    names = {kind.__name__ for kind in type(error).__mro__}
    text = str(error).lower()
    return bool(names & _MEMORY_ERRORS) or any(words in text for words in _MEMORY_WORDS)


_MEMORY_ERRORS = {"OutOfMemoryError", "ResourceExhaustedError"}
_MEMORY_WORDS = ("out of memory", "can't allocate memory", "failed to allocate memory", "cublas_status_alloc_failed")


def free_memory() -> None:
    """Give back what a failed batch has left."""
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()
