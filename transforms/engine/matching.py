"""Which result belongs to which element."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Hashable, Iterable, Sequence
from typing import Any

from apache_beam.ml.inference.base import PredictionResult


class ResultsMismatch(RuntimeError):
    """A handler's results cannot be told apart: too many, too few, or not those of the elements that it was given."""


def counted(elements: Sequence[Any], results: Iterable[Any]) -> list[Any]:
    """Return the results as a list of one for each element.

    Raises:
        ResultsMismatch: there are more or fewer of them.
        TypeError: they are not iterable.
    """
    listed = list(results)
    if len(listed) != len(elements):
        raise ResultsMismatch(f"the handler gave {len(listed)} results for {len(elements)} elements; give one for each")
    return listed


def in_order(elements: Sequence[Any], results: list[Any]) -> list[Any]:
    """Return the results in the order of the elements.

    A result that names its element (``PredictionResult.example``) is brought to it; one that names none of them is
    taken to be at its place.

    Raises:
        ResultsMismatch: some name an element that is not at their place, and they are no permutation.
    """
    for one, element in zip(results, elements, strict=True):
        if type(one) is PredictionResult and one[0] is not element:
            break
    else:
        return results
    named = [one[0] if type(one) is PredictionResult else None for one in results]
    places = _places(map(id, elements))
    strays = [id(one) in places and one is not element for one, element in zip(named, elements, strict=True)]
    if not any(strays):
        return results
    return _placed(map(id, named), places, results)


def by_key(elements: Sequence[tuple[Any, Any]], results: list[tuple[Any, Any]]) -> list[tuple[Any, Any]]:
    """Return keyed results in the order of the keyed elements; those of one key keep their order.

    Raises:
        ResultsMismatch: a key has more or fewer results than elements.
    """
    return _placed((key for key, _ in results), _places(key for key, _ in elements), results)


def _places(names: Iterable[Hashable]) -> dict[Hashable, deque[int]]:
    places: dict[Hashable, deque[int]] = defaultdict(deque)
    for place, name in enumerate(names):
        places[name].append(place)
    return dict(places)


def _placed(names: Iterable[Hashable], places: dict[Hashable, deque[int]], results: list[Any]) -> list[Any]:
    placed: list[Any] = [None] * len(results)
    for name, result in zip(names, results, strict=True):
        if not places.get(name):
            raise ResultsMismatch("the handler's results are out of order, and not one for each of its elements")
        placed[places[name].popleft()] = result
    return placed
