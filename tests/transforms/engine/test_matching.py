"""Results find their elements, or are refused."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np
import pytest
from apache_beam.ml.inference.base import (
    KeyedModelHandler,
    KeyModelMapping,
    MaybeKeyedModelHandler,
    ModelHandler,
    PredictionResult,
)
from hypothesis import given
from hypothesis import strategies as st

from contbatch.transforms.engine.call import caller, with_version
from contbatch.transforms.engine.matching import ResultsMismatch, by_key, counted, in_order


class Doubling(ModelHandler):
    """Returns what its function makes of the results 2 * x."""

    def __init__(self, change: Any = lambda results: results) -> None:
        super().__init__()
        self._change = change

    def load_model(self) -> Any:
        return self

    def run_inference(self, batch: Any, model: Any, inference_args: Any = None) -> Any:
        return self._change([PredictionResult(one, 2 * one) for one in batch])


@given(st.lists(st.integers()), st.integers(0, 5))
def test_results_are_counted(elements: list[int], more: int) -> None:
    with pytest.raises(ResultsMismatch, match=f"gave {len(elements) + more + 1} results for {len(elements)} elements"):
        counted(elements, iter([0] * (len(elements) + more + 1)))
    assert counted(elements, (one for one in elements)) == elements


@given(st.permutations(range(8)))
def test_results_that_name_their_elements_are_brought_to_them(order: list[int]) -> None:
    elements = [object() for _ in order]
    results = in_order(elements, [PredictionResult(elements[at], at) for at in order])
    assert [result.inference for result in results] == list(range(8))


def test_one_object_may_be_several_elements() -> None:
    a, b = object(), object()
    results = in_order([a, b, a], [PredictionResult(a, 1), PredictionResult(a, 2), PredictionResult(b, 3)])
    assert [result.example for result in results] == [a, b, a]


def test_an_element_that_is_answered_twice_is_refused() -> None:
    a, b = object(), object()
    with pytest.raises(ResultsMismatch, match="out of order"):
        in_order([a, b], [PredictionResult(a, 1), PredictionResult(a, 2)])


def test_results_that_name_other_objects_are_taken_by_place() -> None:
    results = [PredictionResult("copy", 1), PredictionResult(None, 2)]
    assert in_order(["a", "b"], list(results)) == results
    assert in_order(["a", "b"], [1, 2]) == [1, 2]


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers())))
def test_keyed_results_keep_their_order_within_a_key(elements: list[tuple[str, int]]) -> None:
    grouped: dict[str, list[int]] = defaultdict(list)
    for key, value in elements:
        grouped[key].append(value)
    by_cohort = [(key, value) for key, values in grouped.items() for value in values]
    assert by_key(elements, by_cohort) == elements


def test_a_key_with_the_results_of_another_is_refused() -> None:
    with pytest.raises(ResultsMismatch, match="out of order"):
        by_key([("a", 1), ("b", 2)], [("a", 1), ("a", 2)])


@pytest.mark.parametrize("change", [lambda results: results + results[:1], lambda results: results[:-1]])
@pytest.mark.parametrize("keyed", [KeyedModelHandler, MaybeKeyedModelHandler])
def test_the_zip_of_a_keyed_handler_hides_no_result_that_is_too_many(keyed: Any, change: Any) -> None:
    handler = keyed(Doubling(change))
    with pytest.raises(ResultsMismatch):
        caller(handler, handler.load_model())([("a", 1), ("b", 2)])


def test_a_handler_that_returns_another_order_is_put_right() -> None:
    handler = Doubling(lambda results: results[::-1])
    elements = [object_of(number) for number in range(5)]
    assert [result.example for result in caller(handler, None)(elements)] == elements


def object_of(number: int) -> Any:
    return np.float64(number)


def test_a_users_own_wrapper_is_not_opened() -> None:
    class Outer(Doubling):
        def __init__(self) -> None:
            super().__init__()
            self._base = Doubling()

        def run_inference(self, batch: Any, model: Any, inference_args: Any = None) -> Any:
            return [100 * one for one in batch]

    assert caller(Outer(), None)([2]) == [200]


def test_every_wrapper_of_beam_is_opened() -> None:
    handler = KeyedModelHandler(Doubling()).with_preprocess_fn(str).with_postprocess_fn(str)
    assert caller(handler, None)([("a", 1)]) == [("a", PredictionResult(1, 2))]
    assert caller(MaybeKeyedModelHandler(Doubling()), None)([1, 2]) == [PredictionResult(1, 2), PredictionResult(2, 4)]
    assert caller(Doubling().with_no_batching(), None)([[1, 2], [3]]) == [
        [PredictionResult(1, 2), PredictionResult(2, 4)],
        [PredictionResult(3, 6)],
    ]


def test_a_handler_of_many_keys_answers_each_with_its_own() -> None:
    handler = KeyedModelHandler([KeyModelMapping(["a"], Doubling()), KeyModelMapping(["b", "c"], Doubling())])
    handler.override_metrics("test")
    batch = [("b", 1), ("a", 2), ("c", 3), ("a", 4), ("b", 5)]
    results = caller(handler, handler.load_model())(batch)
    assert results == [(key, PredictionResult(value, 2 * value)) for key, value in batch]


def test_a_version_is_written_into_what_a_handler_returns() -> None:
    assert with_version(PredictionResult(1, 2, "path"), 1, "0.5") == PredictionResult(1, 2, "0.5")
    assert with_version(("k", PredictionResult(1, 2)), ("k", 1), "0.5") == ("k", PredictionResult(1, 2, "0.5"))
    assert with_version(("k", 2), ("k", 1), "0.5") == ("k", PredictionResult(1, 2, "0.5"))
    assert with_version(2, 1, "0.5") == PredictionResult(1, 2, "0.5")
    assert type(with_version(PredictionResult(1, 2), 1, "0.5")) is PredictionResult
