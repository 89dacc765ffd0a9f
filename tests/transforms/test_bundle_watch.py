"""Start-up checks: gaps between bundles on a manual clock, and options without what was set."""

from __future__ import annotations

import logging
import math

import apache_beam as beam
import pytest
from apache_beam.options.value_provider import RuntimeValueProvider

from contbatch.transforms import BatchPolicy, ContinuousBatch
from contbatch.transforms import bundle_watch as watching
from contbatch.transforms.batch import _ChunkFn
from contbatch.transforms.bundle_watch import EXPERIMENT, BundleWatch, allowed_wait, lost_flags
from contbatch.transforms.testing import ManualClock


def run(watch: BundleWatch, clock: ManualClock, bundles: int, gap: float, elements: int = 10) -> list[str]:
    said = []
    for _ in range(bundles):
        said.append(watch.start())
        clock.advance(gap / 2)
        watch.finish(elements)
        clock.advance(gap / 2)
    return [text for text in said if text]


def test_bundles_of_a_second_are_named_when_elements_may_wait_50_ms() -> None:
    clock = ManualClock()
    said = run(BundleWatch(0.05, clock), clock, 100, 1.2)
    assert said == [
        "bundles begin 1.2 s apart (median of 20), and elements are to wait 0.05 s at most: on Flink set "
        "--max_bundle_time_mills (its default is 1000, which also counts when the flag got lost on the way); "
        "elsewhere the workers are too slow for the load"
    ]


def test_the_verdict_comes_with_the_21st_bundle() -> None:
    """20 gaps lie between 21 starts."""
    clock = ManualClock()
    watch = BundleWatch(0.05, clock)
    assert run(watch, clock, 20, 1.2) == []
    assert len(run(watch, clock, 1, 1.2)) == 1


def test_bundles_within_the_deadline_say_nothing_and_nor_do_a_few_slow_ones() -> None:
    clock = ManualClock()
    watch = BundleWatch(0.05, clock)
    assert run(watch, clock, 9, 3.0) == []  # while the model is loaded: 9 of 20 are no median
    assert run(watch, clock, 91, 0.05) == []


def test_far_apart_bundles_of_one_element_are_a_slow_stream_and_not_a_slow_runner() -> None:
    clock = ManualClock()
    watch = BundleWatch(0.05, clock)
    assert run(watch, clock, 100, 10.0, elements=1) == []
    assert len(run(watch, clock, 21, 1.2)) == 1


@pytest.mark.parametrize(
    ("policy", "seconds"),
    [
        (BatchPolicy(max_delay=0.5), 0.5),
        (BatchPolicy(max_delay=0.5, latency_slo=0.1), 0.1),
        (BatchPolicy(max_delay=0.5, latency_slo=2.0), 0.5),
        (BatchPolicy(max_delay=5.0, time_domain="event_time"), math.inf),  # type: ignore[arg-type]
        (BatchPolicy(max_delay=0.5, latency_slo=0.1).unhurried(), math.inf),
    ],
)
def test_what_a_policy_allows_on_the_workers_clock(policy: BatchPolicy, seconds: float) -> None:
    assert allowed_wait(policy) == seconds


def test_without_a_bound_no_clock_is_read() -> None:
    def clock() -> float:
        raise AssertionError("the clock was read")

    watch = BundleWatch(math.inf, clock)
    assert [watch.start() for _ in range(50)] == [None] * 50


def test_options_that_lack_our_experiment_were_lost_on_the_way() -> None:
    assert lost_flags(None) is None  # a worker in the process of the pipeline
    assert lost_flags({}) is None
    assert lost_flags({"experiments": ["beam_fn_api", EXPERIMENT]}) is None
    assert lost_flags({"experiments": ["beam_fn_api"]}) == lost_flags({"streaming": True})
    assert lost_flags({"streaming": True}) == (
        "the experiment prism_disable_sdf_split, which the pipeline had set, has not reached the worker: Prism may "
        "lose keyed state. Give --experiments=prism_disable_sdf_split to the runner, and see which other flags got lost"
    )


@pytest.fixture
def unsaid(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "_SAID", set())


@pytest.mark.usefixtures("unsaid")
def test_a_batcher_in_a_worker_says_both_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    clock = ManualClock()
    monkeypatch.setattr(RuntimeValueProvider, "runtime_options", {"experiments": ["beam_fn_api"]})
    monkeypatch.setattr("contbatch.transforms.batch.BundleWatch", lambda allowed: BundleWatch(allowed, clock))
    with caplog.at_level(logging.WARNING):
        for _ in range(2):  # a runner makes many instances
            fn = _chunks(BatchPolicy(max_delay=0.05), clock)
            fn.setup()
            for _ in range(30):
                fn.start_bundle()
                for element in ("a", "b"):
                    assert list(fn.process(element, beam.utils.timestamp.Timestamp(0), "window")) == []
                assert len(list(fn.finish_bundle())) == 1
                clock.advance(1.0)
    assert [record.message.split()[:3] for record in caplog.records] == [
        ["the", "experiment", EXPERIMENT + ","],
        ["bundles", "begin", "1"],
    ]


def _chunks(policy: BatchPolicy, clock: ManualClock) -> _ChunkFn:
    """The first step of a live batcher."""
    from apache_beam.testing.test_stream import TestStream

    pipeline = beam.Pipeline()
    done = pipeline | TestStream() | ContinuousBatch(policy, clock=clock)
    fns: list[_ChunkFn] = []

    class Find(beam.pipeline.PipelineVisitor):
        def visit_transform(self, node: beam.pipeline.AppliedPTransform) -> None:
            fn = getattr(node.transform, "fn", None)
            if isinstance(fn, _ChunkFn):
                fns.append(fn)

    assert done.pipeline is pipeline
    pipeline.visit(Find())
    (fn,) = fns
    return fn
