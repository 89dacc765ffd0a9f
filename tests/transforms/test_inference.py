"""ContinuousInference in a pipeline, beside RunInference and with Beam's real handlers."""

from __future__ import annotations

import math
import threading
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import apache_beam as beam
import numpy as np
import pytest
import torch
from apache_beam.internal import cloudpickle_pickler
from apache_beam.ml.inference.base import (
    KeyedModelHandler,
    KeyModelMapping,
    ModelHandler,
    PredictionResult,
    RunInference,
)
from apache_beam.ml.inference.onnx_inference import OnnxModelHandlerNumpy
from apache_beam.ml.inference.pytorch_inference import PytorchModelHandlerTensor
from apache_beam.ml.inference.sklearn_inference import SklearnModelHandlerNumpy
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from apache_beam.testing.test_stream import TestStream as Script
from apache_beam.transforms.window import FixedWindows, SlidingWindows, TimestampedValue
from apache_beam.utils.timestamp import Timestamp
from hypothesis import given, settings
from hypothesis import strategies as st

from contbatch.transforms import BatchPolicy, ContinuousInference, FailedElement, Reason, ShedElement
from contbatch.transforms.engine.leases import leased
from contbatch.transforms.infer import InferFn
from contbatch.transforms.inference import policy_of
from contbatch.transforms.testing import Sink


class Fake(ModelHandler):
    """Doubles numbers, but for some: 13 fails, and with 14 in it a batch has a result too many, with 15 one too few."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.sizes: list[int] = []

    def load_model(self) -> Any:
        return object()

    def run_inference(self, batch: Sequence[int], model: Any, inference_args: Any = None) -> Any:
        for one in batch:
            if one == 13:
                raise ValueError("13")
            yield PredictionResult(one, 2 * one)
        if 14 in batch:
            yield PredictionResult(14, 0)
        if 15 in batch:
            raise RuntimeError("15 stops the generator")


class Slow(Fake):
    """Sees the sizes of its batches."""

    def run_inference(self, batch: Sequence[Any], model: Any, inference_args: Any = None) -> Any:
        return [PredictionResult(one, len(batch)) for one in batch]


def results(elements: Any, inference: ContinuousInference) -> tuple[list[Any], list[Any], list[Any]]:
    """Run a pipeline on a list, or on a script of live input; returns what was predicted, shed and failed."""
    sinks = Sink(), Sink(), Sink()
    live = not isinstance(elements, list)
    with beam.Pipeline("DirectRunner" if live else FnApiRunner(), options=PipelineOptions(streaming=live)) as pipeline:
        done = pipeline | (elements if live else beam.Create(elements, reshuffle=False)) | inference
        for name, part, sink in zip("psf", (done, done.shed, done.failed), sinks, strict=True):
            _ = part | name >> sink
    return sinks[0].elements, sinks[1].elements, sinks[2].elements


def save(tmp_path: Path) -> str:
    torch.manual_seed(0)
    path = str(tmp_path / "weights.pt")
    torch.save(torch.nn.Linear(3, 1).state_dict(), path)
    return path


def pytorch(tmp_path: Path) -> tuple[ModelHandler, list[Any]]:
    handler = PytorchModelHandlerTensor(save(tmp_path), torch.nn.Linear, {"in_features": 3, "out_features": 1})
    return handler, [torch.tensor([float(n), 1.0, -n]) for n in range(20)]


def sklearn(tmp_path: Path) -> tuple[ModelHandler, list[Any]]:
    import pickle

    from sklearn.linear_model import LinearRegression

    rows = np.arange(60.0).reshape(20, 3)
    (tmp_path / "model.pickle").write_bytes(pickle.dumps(LinearRegression().fit(rows, rows.sum(axis=1))))
    return SklearnModelHandlerNumpy(str(tmp_path / "model.pickle")), list(rows)


def onnx(tmp_path: Path) -> tuple[ModelHandler, list[Any]]:
    from onnx import TensorProto, helper, save

    left, right = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 3]) for name in ("x", "y"))
    graph = helper.make_graph([helper.make_node("Add", ["x", "x"], ["y"])], "double", [left], [right])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    save(model, tmp_path / "model.onnx")
    return OnnxModelHandlerNumpy(str(tmp_path / "model.onnx")), list(np.arange(60, dtype=np.float32).reshape(20, 3))


def plain(result: Any) -> Any:
    """Return a result without arrays, which do not compare, to four digits: batches differ, and so do last digits."""
    if isinstance(result, tuple):
        return tuple(map(plain, result))
    if isinstance(result, np.ndarray | torch.Tensor | np.generic):
        return np.round(np.asarray(result, dtype=np.float64), 4).tolist()
    return result


@pytest.mark.parametrize("keyed", [False, True])
@pytest.mark.parametrize("make", [pytorch, sklearn, onnx])
def test_it_gives_what_run_inference_gives(tmp_path: Path, make: Any, keyed: bool) -> None:
    handler, elements = make(tmp_path)
    if keyed:
        handler, elements = KeyedModelHandler(handler), [(f"k{at % 3}", one) for at, one in enumerate(elements)]
    beams = Sink()
    with beam.Pipeline(FnApiRunner()) as pipeline:
        _ = pipeline | beam.Create(elements, reshuffle=False) | RunInference(handler) | beams
    ours, shed, failed = results(elements, ContinuousInference(handler, BatchPolicy(7)))
    assert sorted(map(plain, ours), key=repr) == sorted(map(plain, beams.elements), key=repr)
    assert (len(ours), shed, failed) == (20, [], [])


def test_functions_around_a_handler_are_applied_and_what_they_raise_fails() -> None:
    handler = (
        Fake()
        .with_preprocess_fn(lambda one: one + 0)
        .with_preprocess_fn(int)
        .with_postprocess_fn(lambda result: 100 // (result.inference - 8))
        .with_postprocess_fn(str)
    )
    predicted, _, failed = results(["1", "four", "4", "5", "13"], ContinuousInference(handler, BatchPolicy(4)))
    assert sorted(predicted) == ["-17", "50"]
    assert sorted((str(one.element), one.stage, one.error.split(":")[0]) for one in failed) == [
        ("13", "inference", "ValueError"),
        ("PredictionResult(example=4, inference=8, model_id=None)", "postprocess", "ZeroDivisionError"),
        ("four", "preprocess", "ValueError"),
    ]
    assert all(type(one) is FailedElement for one in failed)


def test_a_handler_of_many_models_is_as_good_as_one() -> None:
    handler = KeyedModelHandler([KeyModelMapping(["a"], Slow()), KeyModelMapping(["b", "c"], Slow())])
    elements = [("abc"[number % 3], number) for number in range(12)]
    predicted, _, failed = results(elements, ContinuousInference(handler, BatchPolicy(12)))
    assert sorted(predicted) == sorted((key, PredictionResult(number, 4)) for key, number in elements)
    assert failed == []


@settings(max_examples=15)
@given(st.lists(st.integers(0, 16), max_size=40), st.integers(1, 9), st.sampled_from([None, 0.01]))
def test_everything_comes_out_once(elements: list[int], size: int, max_delay: float | None) -> None:
    predicted, shed, failed = results(elements, ContinuousInference(Fake(), BatchPolicy(size), max_delay=max_delay))
    bad = {13, 14, 15}
    assert sorted(one.example for one in predicted) == sorted(one for one in elements if one not in bad)
    assert all(one.inference == 2 * one.example for one in predicted)
    assert sorted(one.element for one in failed) == sorted(one for one in elements if one in bad)
    assert shed == []


class Hanging(Fake):
    """A batch with 12 in it never comes back."""

    forever: ClassVar[threading.Event] = threading.Event()

    def run_inference(self, batch: Sequence[int], model: Any, inference_args: Any = None) -> Any:
        if 12 in batch:
            self.forever.wait()
        yield from super().run_inference(batch, model, inference_args)


@settings(max_examples=15)
@given(st.lists(st.integers(0, 16), max_size=40), st.integers(1, 9))
def test_everything_comes_out_once_beside_what_hangs(elements: list[int], size: int) -> None:
    predicted, _, failed = results(elements, ContinuousInference(Hanging(), BatchPolicy(size), time_limit=0.1))
    assert sorted([one.example for one in predicted] + [one.element for one in failed]) == sorted(elements)
    hung = [one.element for one in failed if one.error.startswith("TimeoutError")]
    assert hung.count(12) == elements.count(12)
    assert len(hung) <= size * elements.count(12)
    assert {one.element for one in failed if one.element not in hung} <= {13, 14, 15}


def test_the_transform_is_pickled_as_a_submission_does_it() -> None:
    inference = ContinuousInference(Fake(), BatchPolicy(3), max_delay=0.01)
    again = cloudpickle_pickler.loads(cloudpickle_pickler.dumps(inference))
    predicted, _, failed = results([1, 2, 13], again)
    assert sorted(one.inference for one in predicted) == [2, 4]
    assert [one.element for one in failed] == [13]


@pytest.mark.parametrize("windows", [None, FixedWindows(5), SlidingWindows(10, 5)])
@pytest.mark.parametrize("max_delay", [None, 0.05])
def test_timestamps_and_windows_are_kept(windows: Any, max_delay: float | None) -> None:
    sink, plain_sink, failed = Sink(), Sink(), Sink()

    def reified(one: Any, time: Any = beam.DoFn.TimestampParam, window: Any = beam.DoFn.WindowParam) -> Any:
        element = one if isinstance(one, int) else one[0]  # of a PredictionResult or FailedElement, its element
        return element, time, window

    with beam.Pipeline(FnApiRunner()) as pipeline:
        numbers = pipeline | beam.Create(range(17), reshuffle=False)
        elements = numbers | beam.Map(lambda number: TimestampedValue(number, number))
        if windows:
            elements |= beam.WindowInto(windows)
        done = elements | ContinuousInference(Fake(), BatchPolicy(4), max_delay=max_delay)
        _ = done | "p" >> beam.Map(reified) | "P" >> sink
        _ = done.failed | "f" >> beam.Map(reified) | "F" >> failed
        _ = elements | "e" >> beam.Map(reified) | "E" >> plain_sink
    assert sorted(sink.elements + failed.elements, key=repr) == sorted(plain_sink.elements, key=repr)
    assert len(failed.elements) == 3 * (2 if isinstance(windows, SlidingWindows) else 1)


def test_no_window_loses_anything_behind_it() -> None:
    counts = Sink()
    with beam.Pipeline(FnApiRunner()) as pipeline:
        numbers = pipeline | beam.Create(range(12), reshuffle=False)
        timed = numbers | beam.Map(lambda number: TimestampedValue(number, number))
        done = timed | beam.WindowInto(FixedWindows(3)) | ContinuousInference(Fake(), BatchPolicy(4), max_delay=0.05)
        _ = done | beam.Map(lambda _: 1) | beam.CombineGlobally(sum).without_defaults() | counts
    assert counts.elements == [3, 3, 3, 3]


def test_live_input_is_shed_by_its_deadline() -> None:
    script = Script().add_elements([TimestampedValue(n, n) for n in range(6)]).advance_watermark_to_infinity()
    policy = BatchPolicy(4, deadline_fn=lambda one: 0.0 if one % 2 else math.inf)
    predicted, shed, failed = results(script, ContinuousInference(Slow(), policy))
    assert sorted(one.example for one in predicted) == [0, 2, 4]
    assert sorted(shed) == [ShedElement(one, Reason.DEADLINE) for one in (1, 3, 5)]
    assert failed == []


def test_bounded_input_has_no_deadlines() -> None:
    policy = BatchPolicy(4, deadline_fn=lambda one: 0.0)
    predicted, shed, _ = results(list(range(6)), ContinuousInference(Slow(), policy))
    assert (len(predicted), shed) == (6, [])


@pytest.mark.parametrize("name", ["weight_fn", "length_fn", "priority_fn"])
def test_an_element_that_the_policy_cannot_judge_fails_alone(name: str) -> None:
    policy = BatchPolicy(4, **{name: lambda one: math.nan if one == 2 else float(one)})
    predicted, _, failed = results(list(range(5)), ContinuousInference(Slow(), policy))
    assert sorted(one.example for one in predicted) == [0, 1, 3, 4]
    ((element, stage, error),) = failed
    assert (element, stage) == (2, "policy")
    assert error.startswith(f"ValueError: {name} returned nan")


def test_more_failures_than_the_threshold_fail_the_bundle() -> None:
    assert len(results([1, 2, 3, 13], ContinuousInference(Fake(), threshold=0.25))[2]) == 1
    with pytest.raises(RuntimeError, match=r"1 of a bundle's 4 elements failed, .* the last one with ValueError: 13"):
        results([1, 2, 3, 13], ContinuousInference(Fake(), threshold=0.2))
    assert leased() == {}


def test_batches_that_the_user_made_are_run_as_they_are() -> None:
    predicted, _, _ = results([[1, 2, 3], [4]], ContinuousInference(Slow().with_no_batching(), BatchPolicy(2)))
    assert sorted(predicted) == [PredictionResult(1, 3), *(PredictionResult(n, m) for n, m in ((2, 3), (3, 3), (4, 1)))]


def test_a_batch_spans_bundles_with_max_delay() -> None:
    sizes = results(list(range(32)), ContinuousInference(Slow(), BatchPolicy(16), max_delay=60.0))[0]
    assert {one.inference for one in sizes} == {16}


def test_without_a_policy_the_handler_says() -> None:
    handler = Fake(min_batch_size=2, max_batch_size=9, max_batch_weight=50, element_size_fn=len)
    assert policy_of(handler) == BatchPolicy(9, min_size=2, max_weight=50, weight_fn=len)
    assert policy_of(Fake(batch_length_fn=len, element_size_fn=len)) == BatchPolicy(length_fn=len)
    assert policy_of(Fake()) == BatchPolicy()
    assert policy_of(Fake(min_batch_size=500, max_batch_weight=3)) == BatchPolicy(500, min_size=500)
    assert ContinuousInference(Fake(max_batch_duration_secs=3))._max_delay == 3
    assert ContinuousInference(Fake(max_batch_duration_secs=3), BatchPolicy())._max_delay is None


def test_inference_arguments_reach_the_handler() -> None:
    class Adding(Fake):
        def run_inference(self, batch: Any, model: Any, inference_args: Any = None) -> Any:
            return [one + inference_args["plus"] for one in batch]

    predicted, _, _ = results([1, 2], ContinuousInference(Adding(), inference_args={"plus": 10}))
    assert sorted(predicted) == [11, 12]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"poll": 0}, "poll is 0 s"),
        ({"max_delay": 0.0}, "max_delay is 0.0 s"),
        ({"time_limit": -1}, "time_limit is -1 s"),
        ({"threshold": 1.1}, "threshold is 1.1"),
    ],
)
def test_arguments_are_checked(arguments: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        ContinuousInference(Fake(), **arguments)


def test_a_step_by_step_handler_has_no_lengths() -> None:
    class Steps(Fake):
        start = step = finish = None

    with pytest.raises(ValueError, match="runs step by step"):
        ContinuousInference(Steps(), BatchPolicy(length_fn=len))


def test_two_models_of_one_kind_are_two_and_one_name_is_one() -> None:
    class Adding(Fake):
        def __init__(self, plus: int) -> None:
            super().__init__()
            self.plus = plus

        def run_inference(self, batch: Any, model: Any, inference_args: Any = None) -> Any:
            return [(one, self.plus) for one in batch]

    sinks = Sink(), Sink()
    with beam.Pipeline(FnApiRunner()) as pipeline:
        numbers = pipeline | beam.Create([1, 2], reshuffle=False)
        for plus, sink in zip((10, 20), sinks, strict=True):
            _ = numbers | f"Add {plus}" >> ContinuousInference(Adding(plus)) | f"Sink {plus}" >> sink
    assert [{plus for _, plus in sink.elements} for sink in sinks] == [{10}, {20}]
    assert leased() == {}
    with beam.Pipeline(FnApiRunner()) as pipeline:
        numbers = pipeline | beam.Create([1, 2], reshuffle=False)
        for plus in (10, 20):
            _ = numbers | f"Add {plus}" >> ContinuousInference(Adding(plus), model_identifier="one")
    assert leased() == {}


def test_predictions_carry_the_version_that_serves(tmp_path: Path) -> None:
    first, second = tmp_path / "1.pt", tmp_path / "2.pt"
    for path, weight in ((first, 1.0), (second, 2.0)):
        torch.save({"weight": torch.tensor([[weight]]), "bias": torch.zeros(1)}, path)
    handler = PytorchModelHandlerTensor(str(second), torch.nn.Linear, {"in_features": 1, "out_features": 1})
    versions = str(tmp_path / "served-*.pt")
    inference = ContinuousInference(handler, BatchPolicy(2), versions=versions, poll=0.01)
    predicted, _, _ = results([torch.ones(1)], inference)
    assert predicted[0].inference.item() == 2  # the handler's own
    fn = InferFn(inference._settings)
    first.rename(tmp_path / "served-1.pt")
    fn.setup()
    for name, expected in (("served-1.pt", 1), ("served-2.pt", 2)):
        if expected == 2:
            second.rename(tmp_path / name)
        while True:  # the slot's thread looks by itself
            fn.start_bundle()
            outputs = [*fn.process(torch.ones(1), Timestamp(0)), *fn.finish_bundle()]
            if outputs[0].value.model_id == str(tmp_path / name):
                break
        assert outputs[0].value.inference.item() == expected
    fn.teardown()


def test_a_failure_after_the_prediction_is_counted_once() -> None:
    pipeline = beam.Pipeline(FnApiRunner())
    handler = Slow().with_postprocess_fn(lambda result: 1 // result.example)
    _ = pipeline | beam.Create(range(4), reshuffle=False) | ContinuousInference(handler)
    done = pipeline.run()
    done.wait_until_finish()
    counters: Counter[str] = Counter()
    for one in done.metrics().query()["counters"]:
        counters[one.key.metric.name] += one.result
    assert (counters["predicted"], counters["failed"]) == (3, 1)


def test_metrics_say_what_happened() -> None:
    pipeline = beam.Pipeline(FnApiRunner())
    policy = BatchPolicy(allowed_sizes=(4, 8))
    _ = pipeline | beam.Create([*range(10), 13], reshuffle=False) | ContinuousInference(Fake(), policy)
    done = pipeline.run()
    done.wait_until_finish()
    found = done.metrics().query()
    counters = {one.key.metric.name: one.result for one in found["counters"]}
    spread = {one.key.metric.name: one.result for one in found["distributions"]}
    assert (counters["predicted"], counters["failed"], counters.get("shed", 0)) == (10, 1, 0)
    assert spread["batch_size"].sum == 11
    assert spread["padding"].sum == 1  # 8, then 3 for which 4 are run
    assert sum(count for name, count in counters.items() if name.startswith("released_")) == spread["batch_size"].count
    assert {"queue_wait_ms", "device_ms"} <= spread.keys()


def test_a_bundle_that_failed_leaves_nothing_for_the_next() -> None:
    inference = ContinuousInference(Fake(), BatchPolicy(100))
    fn = InferFn(inference._settings)
    fn.setup()
    fn.start_bundle()
    for number in range(5):
        assert list(fn.process(number, Timestamp(number))) == []
    fn.start_bundle()  # the runner tries again, on the same instance
    assert list(fn.process(7, Timestamp(7))) == []
    (out,) = fn.finish_bundle()
    assert (out.value, out.timestamp) == (PredictionResult(7, 14), Timestamp(7))
    assert fn._engine.statistics().bundles == 0
    fn.teardown()
    assert leased() == {}
