"""ContinuousBatch in pipelines: nothing lost, nothing mixed, and every timer that fires, fires rightly."""

from __future__ import annotations

import math
import random
from collections import Counter
from pathlib import Path
from typing import Any

import apache_beam as beam
import numpy as np
import pytest
from apache_beam import coders
from apache_beam.options.pipeline_options import DebugOptions, PipelineOptions
from apache_beam.testing.test_stream import TestStream as Script
from apache_beam.transforms.window import FixedWindows, GlobalWindow, TimestampedValue
from apache_beam.utils.shared import Shared
from apache_beam.utils.timestamp import Timestamp

import contbatch.transforms.batch as batch_module
from contbatch.transforms import BatchPolicy, ContinuousBatch, MicroBatch, Reason
from contbatch.transforms.buffer import Settings
from contbatch.transforms.testing import ManualClock, Sink


def bounded(elements: list[Any], transform: ContinuousBatch, window: float | None = None) -> list[Any]:
    """Run on bounded input, each element at the second that it says, and return what came out."""
    sink, counted = Sink(), Sink()
    with beam.Pipeline(runner="DirectRunner") as pipeline:
        timed = pipeline | beam.Create(elements) | beam.MapTuple(lambda time, what: TimestampedValue(what, time))
        if window:
            timed |= "Window" >> beam.WindowInto(FixedWindows(window))
        batches = timed | transform
        _ = batches | "Keep" >> sink
        sizes = batches | "Size" >> beam.Map(lambda one: len(one[1] if isinstance(one, tuple) else one))
        narrow = sizes | beam.WindowInto(FixedWindows(5)) | beam.CombineGlobally(sum).without_defaults()
        _ = narrow | "Count" >> counted
    assert sum(counted.elements) == len(elements)  # no batch was late for the aggregation behind it
    return sink.elements


def live(script: Script, transform: ContinuousBatch) -> tuple[list[Any], list[Any]]:
    """Run a script; returns batches and shed ones."""
    batches, shed = Sink(), Sink()
    with beam.Pipeline(options=PipelineOptions([], streaming=True)) as pipeline:
        done = pipeline | script | transform
        _ = done | "Keep" >> batches
        _ = done.shed | "Shed" >> shed
    return batches.elements, shed.elements


def test_keys_are_not_mixed_and_their_order_is_kept() -> None:
    elements = [(number, (f"k{number % 3}", number)) for number in range(100)]
    done = bounded(elements, ContinuousBatch(BatchPolicy(max_size=8), keyed=True))
    for key in range(3):
        mine = [batch for name, batch in done if name == f"k{key}"]
        assert [number for batch in mine for number in batch] == list(range(key, 100, 3))
        # 34 or 33 elements: four full batches, and the last one
        assert [len(batch) for batch in mine] == [8, 8, 8, 8, 2 if key == 0 else 1]
        assert [batch.reason for batch in mine] == [Reason.SIZE] * 4 + [Reason.DRAIN]


def test_windows_are_not_mixed() -> None:
    done = bounded([(number, number) for number in range(100)], ContinuousBatch(BatchPolicy(8), shards=1), window=30)
    assert all(len({number // 30 for number in batch}) == 1 for batch in done)
    assert all(batch.times == [number * 1_000_000 for number in batch] for batch in done)
    # three windows of 30 and one of 10
    assert Counter(batch.reason for batch in done) == {Reason.SIZE: 3 * 3 + 1, Reason.WINDOW_END: 4}


def test_what_cannot_be_hashed_is_a_key_and_equal_hashes_are_two() -> None:
    elements = [(0, (key, 1)) for key in (True, 1, 1.0, (1, 2), True)]
    done = bounded(elements, ContinuousBatch(BatchPolicy(8), keyed=True))
    assert sorted((repr(key), len(batch)) for key, batch in done) == [
        ("(1, 2)", 1),
        ("1", 1),
        ("1.0", 1),
        ("True", 2),
    ]


def test_elements_that_are_no_pairs_are_refused_with_keyed() -> None:
    with pytest.raises(ValueError, match="keyed is True, and the elements are <class 'int'>; give pairs"):
        _ = beam.Pipeline() | beam.Create([1, 2]) | ContinuousBatch(BatchPolicy(), keyed=True)


def test_arrays_arrive_as_they_were() -> None:
    arrays = [(0, np.full((2, 3), number, np.float32)) for number in range(5)]
    (batch,) = bounded(arrays, ContinuousBatch(BatchPolicy(8)))
    assert all(one.dtype == np.float32 and (one == number).all() for number, one in enumerate(batch))


def test_a_consumer_may_name_the_type() -> None:
    def total(batch: MicroBatch[int]) -> int:
        return sum(batch)

    sink = Sink()
    with beam.Pipeline(runner="DirectRunner") as pipeline:
        batches = pipeline | beam.Create([1, 2, 3]) | ContinuousBatch(BatchPolicy(8))
        _ = batches | beam.Map(total) | sink
    assert sink.elements == [6]


def test_nobody_waits_on_bounded_input_however_short_or_long_the_delay() -> None:
    for delay in (0.0, 3_600.0, math.inf):
        done = bounded([(0, number) for number in range(5)], ContinuousBatch(BatchPolicy(8, delay), shards=1))
        assert [(list(batch), batch.reason) for batch in done] == [([0, 1, 2, 3, 4], Reason.DRAIN)]


def test_weights_bound_a_batch_and_an_oversize_element_runs_alone() -> None:
    policy = BatchPolicy(8, max_weight=10, weight_fn=float)
    done = bounded([(0, weight) for weight in (4, 5, 3, 30, 2)], ContinuousBatch(policy, shards=1))
    assert [list(batch) for batch in done] == [[4, 5], [3], [30], [2]]


@pytest.mark.parametrize("weight", [-1.0, math.nan, math.inf])
def test_a_weight_is_not_negative(weight: float) -> None:
    policy = BatchPolicy(8, max_weight=10, weight_fn=lambda _: weight)
    with pytest.raises(ValueError, match=f"weight_fn returned {weight}; it has to return a number from 0 to"):
        bounded([(0, 1)], ContinuousBatch(policy))


EVENT_TIME = BatchPolicy(max_size=4, max_delay=2.0, time_domain="event_time")


def test_event_time_batches_do_not_depend_on_the_order_of_arrival_or_the_watermark() -> None:
    rng = random.Random(7)
    elements = [(rng.randrange(60) / 2, number) for number in range(120)]
    expected = [list(batch) for batch in bounded(elements, ContinuousBatch(EVENT_TIME, shards=1))]
    assert sorted(number for batch in expected for number in batch) == list(range(120))
    rng.shuffle(elements)
    done = bounded(elements, ContinuousBatch(EVENT_TIME, shards=1))
    assert sorted(list(batch) for batch in done) == sorted(expected)
    for step in (7, 30):
        script = Script()
        for end in range(step, 30 + step, step):
            script.add_elements([TimestampedValue(what, at) for at, what in elements if end - step <= at < end])
            script.advance_watermark_to(end)
        batches, _ = live(script.advance_watermark_to_infinity(), ContinuousBatch(EVENT_TIME, shards=1))
        assert sorted(list(batch) for batch in batches) == sorted(expected)


def test_event_time_batches_do_not_depend_on_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    elements = [(number, number) for number in range(20)]
    expected = [list(range(start, min(start + 3, 20))) for start in range(0, 20, 3)]  # delay 2 s: three of them
    monkeypatch.setattr(batch_module, "_CHUNK", 4)
    random.Random(1).shuffle(elements)
    assert sorted(list(batch) for batch in bounded(elements, ContinuousBatch(EVENT_TIME))) == expected


def test_a_delay_runs_out_in_real_time() -> None:
    script = Script().add_elements(["a", "b"]).advance_processing_time(0.5).add_elements(["c"])
    script.advance_processing_time(0.6).add_elements(["d"]).advance_watermark_to_infinity()
    batches, shed = live(script, ContinuousBatch(BatchPolicy(8, 1.0), shards=1, clock=ManualClock()))
    assert [(list(batch), batch.reason) for batch in batches] == [
        (["a", "b", "c"], Reason.DELAY),
        (["d"], Reason.DELAY),  # its timer, at 1 s by a clock that stands still, has run out when it comes
    ]
    assert shed == []


def test_what_waits_when_a_live_input_ends_is_released_then() -> None:
    script = Script().add_elements(["a", "b"]).advance_watermark_to_infinity()
    batches, _ = live(script, ContinuousBatch(BatchPolicy(8, 3_600.0), shards=1))
    assert [(list(batch), batch.reason) for batch in batches] == [(["a", "b"], Reason.DRAIN)]


def test_a_full_batch_leaves_at_once_and_its_timer_does_nothing() -> None:
    script = Script().add_elements(["a", "b", "c"]).add_elements(["d", "e"]).advance_processing_time(9)
    batches, _ = live(script.advance_watermark_to_infinity(), ContinuousBatch(BatchPolicy(2, 1.0), shards=1))
    assert [list(batch) for batch in batches] == [["a", "b"], ["c", "d"], ["e"]]


def test_what_cannot_be_answered_in_time_is_shed_and_nothing_is_lost() -> None:
    """Deadlines are absolute: the clock stands at 100, and an element's deadline is its own number."""
    policy = BatchPolicy(8, deadline_fn=float)
    script = Script().add_elements([90, 400, 99, 300]).advance_watermark_to_infinity()
    batches, shed = live(script, ContinuousBatch(policy, shards=1, clock=ManualClock(100.0)))
    assert sorted(number for batch in batches for number in batch) == [300, 400]
    assert [(sorted(batch), batch.reason) for batch in shed] == [([90, 99], Reason.DEADLINE)]


@pytest.mark.parametrize("domain", ["real_time", "event_time"])
def test_beyond_the_capacity_the_latest_are_shed_or_the_oldest_released(domain: str) -> None:
    for overflow in ("shed", "block"):
        policy = BatchPolicy(4, math.inf, capacity=6, overflow=overflow, time_domain="event_time")
        if domain == "real_time":
            policy = BatchPolicy(4, math.inf, capacity=6, overflow=overflow, length_fn=lambda _: 1.0, pool_size=6)
        script = Script()
        for number in range(20):
            script.add_elements([TimestampedValue(number, number)])
        batches, shed = live(script.advance_watermark_to_infinity(), ContinuousBatch(policy, shards=1))
        everything = [number for batch in batches + shed for number in batch]
        assert sorted(everything) == list(range(20))
        if overflow == "shed" and domain == "event_time":
            assert [(list(batch), batch.reason) for batch in shed] == [([n], Reason.CAPACITY) for n in range(6, 20)]
        else:
            assert shed == []


def test_a_worker_fills_as_many_batches_at_once_as_there_are_shards() -> None:
    """1,024 are two chunks: each its own, or 1,000 and the rest."""
    for shards, sizes in ((1, [24, 1_000]), (2, [512, 512])):
        done = bounded([(0, number) for number in range(1_024)], ContinuousBatch(BatchPolicy(1_000), shards=shards))
        assert sorted(map(len, done)) == sizes


class Stepping:
    """A clock that moves by a thousand seconds whenever it is asked."""

    def __init__(self) -> None:
        self._now = 0.0

    def __call__(self) -> float:
        self._now += 1_000.0
        return self._now


def test_arrivals_mean_nothing_on_bounded_input() -> None:
    """Of two chunks, the second is the more urgent by its priority, whenever it was read."""
    policy = BatchPolicy(1_024, priority_fn=float)
    transform = ContinuousBatch(policy, shards=1, clock=Stepping())
    (batch,) = bounded([(0, number) for number in range(1_024)], transform)
    assert list(batch) == list(reversed(range(1_024)))


def run_device(batch: MicroBatch[int], clock: ManualClock) -> int:
    """Take 10 ms and 1 ms an element."""
    clock.advance(0.010 + 0.001 * len(batch))
    return len(batch)


def test_what_was_learned_is_kept_for_the_next_run(tmp_path: Path) -> None:
    """40 fit into 50 ms."""
    clock, path, first = ManualClock(), str(tmp_path / "cost.json"), []
    for _ in range(2):
        sink = Sink()
        with beam.Pipeline(runner="DirectRunner") as pipeline:
            policy = BatchPolicy(100, latency_slo=0.05)
            batches = pipeline | beam.Create(range(400)) | ContinuousBatch(policy, cost_path=path, clock=clock)
            _ = batches | beam.Map(run_device, clock) | sink
        first.append(sink.elements[0])
    assert first[0] == 1
    assert 35 <= first[1] <= 40


def test_a_bundle_of_many_keys_is_let_go_in_parts_each_at_its_earliest_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch_module, "_BUNDLE", 10)
    coder = coders.VarIntCoder()
    settings = Settings(BatchPolicy(), True, coder, coder, Shared(), None, ManualClock(), ManualClock())
    chunk = batch_module._ChunkFn(settings, 1)
    chunk.setup()
    chunk.start_bundle()
    out = [list(chunk.process((number // 2, number), Timestamp(number), GlobalWindow())) for number in range(25)]
    assert [len(part) for part in out if part] == [5, 5]
    assert [value.timestamp for value in out[9]] == [Timestamp(2 * key) for key in range(5)]
    assert len(list(chunk.finish_bundle())) == 3


@pytest.mark.parametrize(("runner", "idle"), [("PrismRunner", True), ("FlinkRunner", False)])
def test_timers_are_for_idle_keys_on_prism(runner: str, idle: bool) -> None:
    pipeline = beam.Pipeline(runner=runner)
    done = pipeline | Script().advance_watermark_to_infinity() | ContinuousBatch(BatchPolicy())
    assert done.producer.transform.fn._settings.idle_timer is idle


def test_prism_is_told_not_to_split_a_key() -> None:
    pipeline = beam.Pipeline()
    _ = pipeline | beam.Create([1]) | ContinuousBatch(BatchPolicy())
    assert "prism_disable_sdf_split" in pipeline.options.view_as(DebugOptions).experiments


def test_shards_are_one_or_more() -> None:
    with pytest.raises(ValueError, match="shards is 0; give 1 to 256"):
        ContinuousBatch(BatchPolicy(), shards=0)
