"""The Beam shell of asynchronous training: on Beam's own runner, and its stateful half on a runner that fails."""

from __future__ import annotations

from collections import Counter
from copy import copy
from pathlib import Path
from typing import Any

import apache_beam as beam
import numpy as np
import pytest
from apache_beam import coders
from apache_beam.options.pipeline_options import DebugOptions, PipelineOptions
from apache_beam.testing.test_stream import TestStream
from apache_beam.transforms.window import FixedWindows, GlobalWindows, TimestampedValue
from apache_beam.utils.timestamp import Timestamp

from contbatch.transforms import ModelStore, Published, SparseLearner
from contbatch.transforms.learning import mean_log_loss
from contbatch.transforms.learning.batches import Batch, pack_batch
from contbatch.transforms.learning.staleness import Applier
from contbatch.transforms.parallel_apply import ApplyFn, Update
from contbatch.transforms.parallel_gradient import BadChunk
from contbatch.transforms.parallel_update import ParallelUpdate
from contbatch.transforms.testing import ManualClock, Sink
from tests.transforms.places import Bag, Cell

LEARNER = SparseLearner(("user", "item"), ((("user",), ("item",)),), factors=2, bits=6)
SHARDS = ("a", "b", "c")
CODER = coders.TupleCoder((coders.StrUtf8Coder(), coders.BytesCoder()))


def batch(number: int) -> Batch:
    """One to three rows about three users and four items."""
    numbers = range(number, number + 1 + number % 3)
    columns = {"user": [f"u{n % 3}" for n in numbers], "item": [f"i{n % 4}" for n in numbers]}
    return Batch(columns, np.array([float(n % 3 == n % 4) for n in numbers]), np.ones(len(numbers)))


def chunks(count: int) -> list[tuple[str, bytes]]:
    return [(SHARDS[number % 3], pack_batch(batch(number))) for number in range(count)]


def rows(count: int) -> int:
    return sum(batch(number).size for number in range(count))


def stream(given: list[tuple[str, bytes]], together: int = 1) -> TestStream:
    """An unbounded source that brings some chunks at a time, a second apart."""
    source = TestStream(coder=CODER)
    for start in range(0, len(given), together):
        source.add_elements([TimestampedValue(chunk, Timestamp(start)) for chunk in given[start : start + together]])
        source.advance_watermark_to(Timestamp(start + together))
    return source.advance_watermark_to_infinity()


def run(source: beam.PTransform, transform: ParallelUpdate) -> dict[type, list[Any]]:
    """Return what comes out, by type."""
    sink = Sink()
    with beam.Pipeline("DirectRunner", options=PipelineOptions([], streaming=True)) as pipeline:
        updates = pipeline | source | transform
        _ = (updates, updates.published, updates.failed) | beam.Flatten() | sink
    return {kind: [each for each in sink.elements if type(each) is kind] for kind in (Update, Published, BadChunk)}


def serial(count: int) -> Any:
    state = LEARNER.init()
    for number in range(count):
        state = LEARNER.step(state, *batch(number))
    return state


def latest(folder: Path, model: str = "") -> Any:
    found = ModelStore(str(folder)).latest(model)
    assert found is not None
    return LEARNER.load(found[1])


def test_every_chunk_is_learned_and_versions_are_published(tmp_path: Path) -> None:
    """21 chunks, a version each; published every 4 and at the end."""
    done = run(stream(chunks(21)), ParallelUpdate(LEARNER, str(tmp_path), publish_every=4, poll_every=0, model="m"))
    assert Counter(update.shard for update in done[Update]) == {"a": 7, "b": 7, "c": 7}
    assert sum(update.examples for update in done[Update]) == rows(21)
    assert [update.version for update in done[Update]] == [f"0.{number + 1}" for number in range(21)]
    assert [record.version for record in done[Published]] == ["0.4", "0.8", "0.12", "0.16", "0.20", "0.21"]
    manifests = ModelStore(str(tmp_path)).versions("m")
    assert [manifest.examples for manifest in manifests][-1] == rows(21)
    assert [manifest.parent for manifest in manifests] == [None, "0.4", "0.8", "0.12", "0.16", "0.20"]
    assert 0 < manifests[-1].loss < 1


def test_workers_read_what_is_published(tmp_path: Path) -> None:
    """One chunk a bundle, a look at the store each: a gradient is behind by what is not yet published."""
    done = run(stream(chunks(9)), ParallelUpdate(LEARNER, str(tmp_path), bound=2, publish_every=3, poll_every=0))
    assert [update.staleness for update in done[Update]] == [0, 1, 2] * 3
    assert {update.fate for update in done[Update]} == {"applied"}


def test_with_bound_0_it_is_serial_training_to_the_bit(tmp_path: Path) -> None:
    done = run(stream(chunks(20)), ParallelUpdate(LEARNER, str(tmp_path), bound=0, publish_every=7, poll_every=0))
    assert Counter(update.fate for update in done[Update]) == {"applied": 3, "recomputed": 17}
    assert np.array_equal(latest(tmp_path).weights, serial(20).weights)


def test_dropped_chunks_are_counted(tmp_path: Path) -> None:
    """Four chunks at a time read the same version: with bound 1 the third and fourth are dropped."""
    transform = ParallelUpdate(LEARNER, str(tmp_path), bound=1, on_stale="drop", publish_every=2, poll_every=0)
    sink, pipeline = Sink(), beam.Pipeline("DirectRunner", options=PipelineOptions([], streaming=True))
    _ = pipeline | stream(chunks(12), together=4) | transform | sink
    result = pipeline.run()
    result.wait_until_finish()
    assert Counter(update.fate for update in sink.elements) == {"applied": 6, "dropped": 6}
    (counter,) = result.metrics().query(beam.metrics.MetricsFilter().with_name("dropped"))["counters"]
    assert counter.committed > 0  # of unbounded input this runner reports one bundle's counts
    learned = sum(update.examples for update in sink.elements if update.fate == "applied")
    assert ModelStore(str(tmp_path)).versions()[-1].examples == learned


def test_a_bad_chunk_comes_out_with_its_reason_and_moves_no_other(tmp_path: Path) -> None:
    given = chunks(6)
    infinite = pack_batch(batch(0)._replace(weights=np.array([np.inf])))
    missing = pack_batch(Batch({"user": ["u1"]}, np.ones(1), np.ones(1)))
    bad = [("a", b"junk"), ("b", infinite), ("c", missing)]
    done = run(stream([*given[:3], *bad, *given[3:]]), ParallelUpdate(LEARNER, str(tmp_path)))
    assert [(each.shard, each.chunk) for each in done[BadChunk]] == bad
    assert [each.reason.split(":")[0] for each in done[BadChunk]][1:] == ["ValueError", "KeyError"]
    assert len(done[Update]) == 6


def test_a_windowed_aggregation_downstream_loses_nothing(tmp_path: Path) -> None:
    sink = Sink()
    with beam.Pipeline("DirectRunner", options=PipelineOptions([], streaming=True)) as pipeline:
        updates = pipeline | stream(chunks(20)) | ParallelUpdate(LEARNER, str(tmp_path))
        _ = (
            updates
            | beam.Map(lambda _: 1)
            | beam.WindowInto(FixedWindows(5))
            | beam.CombineGlobally(sum).without_defaults()
            | sink
        )
    assert sink.elements == [5, 5, 5, 5]


def test_windows_of_the_input_do_not_part_the_model(tmp_path: Path) -> None:
    transform = ParallelUpdate(LEARNER, str(tmp_path))
    sink = Sink()
    with beam.Pipeline("DirectRunner", options=PipelineOptions([], streaming=True)) as pipeline:
        updates = pipeline | stream(chunks(6)) | beam.WindowInto(FixedWindows(2)) | transform
        _ = updates | sink
    assert all(isinstance(out.windowing.windowfn, GlobalWindows) for out in (updates, updates.published))
    assert [update.version for update in sink.elements] == [f"0.{number + 1}" for number in range(6)]


def test_bounded_input_is_refused_in_one_sentence(tmp_path: Path) -> None:
    pipeline = beam.Pipeline(options=PipelineOptions([]))
    with pytest.raises(ValueError, match=r"asynchronous training needs an unbounded source.*PredictThenLearn$"):
        pipeline | beam.Create(chunks(1)) | ParallelUpdate(LEARNER, str(tmp_path))


def test_the_transform_itself_keeps_prism_from_splitting_its_bundles(tmp_path: Path) -> None:
    pipeline = beam.Pipeline(options=PipelineOptions([], streaming=True))
    _ = pipeline | stream(chunks(1)) | ParallelUpdate(LEARNER, str(tmp_path))
    assert "prism_disable_sdf_split" in pipeline.options.view_as(DebugOptions).experiments


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        ({"publish_every": 0}, "publish_every is 0; give a finite number of 1 or more"),
        ({"poll_every": -1}, "poll_every is -1; give a finite number of 0 or more"),
        ({"snapshot_every": 0}, "snapshot_every is 0; give a finite number of 1 or more"),
        ({"bound": -1}, "bound is -1; give a whole number of versions"),
        (
            {"on_stale": "drop", "bound": 2, "publish_every": 4},
            "publish_every is 4 with bound 2: .*give .* of 3 or less",
        ),
    ],
)
def test_settings_outside_their_range_are_refused(tmp_path: Path, settings: Any, error: str) -> None:
    with pytest.raises(ValueError, match=error):
        ParallelUpdate(LEARNER, str(tmp_path), **settings)


class Unordered(Bag):
    """A bag promises no order."""

    def read(self) -> list[bytes]:
        return self[::-1]


class Bench:
    """The stateful step of one model, on a runner that forgets what a failed bundle did."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        given = {"publish_every": 4, "poll_every": 0, "snapshot_every": 3, **settings}
        self._transform = ParallelUpdate(LEARNER, str(folder), **given)
        self.log, self.head = Unordered(), Cell()
        self.worker = self._transform._gradient
        self.worker.setup()
        self.outputs: list[Any] = []
        self.messages: list[Any] = []

    def instance(self) -> ApplyFn:
        fn = copy(self._transform._apply)
        fn.setup()
        return fn

    def message(self, number: int) -> Any:
        (value,) = self.worker.process(("a", pack_batch(batch(number))), Timestamp(number))
        self.messages.append(value.value)
        return value.value

    def bundle(self, fn: ApplyFn, messages: list[Any], fails: bool = False) -> None:
        before, outputs = (list(self.log), self.head.value), []
        fn.start_bundle()
        for message in messages:
            outputs += fn.process(message, Timestamp(0), self.log, self.head, self)
        if fails:
            self.log[:], self.head.value = before
        else:
            self.outputs += [output.value.value if hasattr(output, "tag") else output.value for output in outputs]

    def set(self, time: Any) -> None:
        """Stand in for the timer."""

    def weights(self) -> Any:
        fn = self.instance()
        fn.start_bundle()
        return fn._open(self.log, self.head)[1].state.weights


def test_failed_bundles_and_other_instances_change_nothing(tmp_path: Path) -> None:
    """Bundles of 2, each tried first by another instance that fails; the weights are those of one who saw each once."""
    bench, submitted = Bench(tmp_path / "a", bound=1), []
    instances = [bench.instance(), bench.instance()]
    for number in range(0, 20, 2):
        messages = [bench.message(number), bench.message(number + 1)]
        bench.bundle(instances[number // 2 % 2], messages, fails=True)
        bench.bundle(instances[number // 2 % 2 - (number % 3 == 0)], messages)
        submitted += messages
    plain = Bench(tmp_path / "b", bound=1)
    plain.bundle(plain.instance(), submitted)
    assert np.array_equal(bench.weights(), plain.weights())
    assert bench.outputs == plain.outputs
    assert sum(update.examples for update in bench.outputs if isinstance(update, Update)) == rows(20)
    versions = [ModelStore(str(tmp_path / name)).versions() for name in "ab"]
    assert versions[0] == versions[1]


def test_a_cache_that_a_failed_bundle_advanced_is_not_used(tmp_path: Path) -> None:
    bench = Bench(tmp_path, bound=0)
    fn, messages = bench.instance(), [bench.message(number) for number in range(2)]
    bench.bundle(fn, messages[:1])
    bench.bundle(fn, messages[1:], fails=True)
    bench.bundle(fn, messages[1:])
    assert np.array_equal(bench.weights(), serial(2).weights)


def test_a_log_that_does_not_lead_to_the_head_is_refused(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    bench.bundle(bench.instance(), [bench.message(0), bench.message(1)])
    bench.log.pop()
    with pytest.raises(RuntimeError, match="the log in state does not lead to the state's own"):
        bench.bundle(bench.instance(), [bench.message(2)])


@pytest.mark.parametrize("on_stale", ["recompute", "drop"])
def test_after_a_restore_the_versions_of_the_lost_line_are_left_behind(tmp_path: Path, on_stale: Any) -> None:
    """State goes back from version 8 to 4, the store keeps 0.8 (lost). Its gradients are recomputed; then comes 1.8."""
    bench = Bench(tmp_path, on_stale=on_stale, bound=3)
    for number in range(4):
        bench.bundle(bench.instance(), [bench.message(number)])
    saved = list(bench.log), bench.head.value
    for number in range(4, 8):
        bench.bundle(bench.instance(), [bench.message(number)])
    bench.log[:], bench.head.value = saved
    bench.outputs.clear()
    for number in range(8, 14):
        bench.bundle(bench.instance(), [bench.message(number)])
    updates = [output for output in bench.outputs if isinstance(output, Update)]
    assert [(update.version, update.staleness, update.fate) for update in updates] == [
        *[(f"1.{step}", -1, "recomputed") for step in (5, 6, 7, 8)],
        ("1.9", 0, "applied"),
        ("1.10", 1, "applied"),
    ]
    assert [manifest.version for manifest in ModelStore(str(tmp_path)).versions()] == ["0.4", "0.8", "1.8"]


def test_a_version_of_the_same_number_but_other_weights_is_not_ours(tmp_path: Path) -> None:
    """A worker reads 0.4; then that bundle turns out to have failed, and another batch makes 0.4."""
    bench = Bench(tmp_path)
    for number in range(3):
        bench.bundle(bench.instance(), [bench.message(number)])
    other = bench.message(7)
    bench.bundle(bench.instance(), [bench.message(3)], fails=True)
    lost = bench.message(4)
    bench.bundle(bench.instance(), [other, lost])
    updates = [output for output in bench.outputs if isinstance(output, Update)][-2:]
    assert [(update.version, update.staleness) for update in updates] == [("0.4", 3), ("1.5", -1)]


def test_the_loss_of_a_version_is_of_what_was_learned(tmp_path: Path) -> None:
    """Batch 0 (1 row) is learned as the initial weights score it, 1 and 2 are dropped, 3 (1 row) as version 1 does."""
    clock = ManualClock()
    bench = Bench(tmp_path, bound=0, on_stale="drop", publish_every=1, poll_every=1.0, clock=clock)
    for number in range(4):
        clock.advance(1.0 if number == 3 else 0.0)
        bench.bundle(bench.instance(), [bench.message(number)])
    (first,) = LEARNER.predict(LEARNER.init(), batch(0).columns)
    (second,) = LEARNER.predict(LEARNER.step(LEARNER.init(), *batch(0)), batch(3).columns)
    labels = [*batch(0).labels, *batch(3).labels]
    newest = ModelStore(str(tmp_path)).versions()[-1]
    assert (newest.version, newest.examples) == ("0.2", 2)
    assert newest.loss == pytest.approx(mean_log_loss([first, second], labels))


def test_a_new_job_supersedes_the_versions_of_an_earlier_one(tmp_path: Path) -> None:
    for first in (0, 50):
        bench = Bench(tmp_path, bound=0)
        for number in range(first, first + 8):
            bench.bundle(bench.instance(), [bench.message(number)])
    versions = [manifest.version for manifest in ModelStore(str(tmp_path)).versions()]
    assert versions == ["0.4", "0.8", "1.4", "1.8"]


def test_a_late_gradient_of_a_version_long_gone_is_stale(tmp_path: Path) -> None:
    """A worker stalls with a gradient of the initial weights while others make 12 versions."""
    bench = Bench(tmp_path, bound=3)
    stalled = bench.message(99)
    for number in range(12):
        bench.bundle(bench.instance(), [bench.message(number)])
    bench.bundle(bench.instance(), [stalled])
    assert bench.outputs[-1] == Update("a", batch(99).size, "recomputed", 12, "0.13", "")


def test_a_worker_looks_at_the_store_no_more_often_than_it_may(tmp_path: Path) -> None:
    """While the clock stands still the initial weights fall behind the bound of 2; a second later it looks again."""
    clock = ManualClock()
    bench = Bench(tmp_path, bound=2, publish_every=1, poll_every=1.0, clock=clock)
    fn = bench.instance()
    for number in range(6):
        clock.advance(1.0 if number == 5 else 0.0)
        bench.bundle(fn, [bench.message(number)])
    assert [(update.staleness, update.fate) for update in bench.outputs if isinstance(update, Update)] == [
        (0, "applied"),
        (1, "applied"),
        (2, "applied"),
        (3, "recomputed"),
        (4, "recomputed"),
        (0, "applied"),
    ]


def test_torn_weights_in_the_store_leave_a_worker_with_the_version_before(tmp_path: Path) -> None:
    bench = Bench(tmp_path, publish_every=1)
    for number in range(2):
        bench.bundle(bench.instance(), [bench.message(number)])
    store = ModelStore(str(tmp_path))
    Path(store.weights(store.versions()[-1])).write_bytes(b"torn")
    bench.bundle(bench.instance(), [bench.message(2)])
    assert bench.outputs[-2].staleness == 1


def test_the_pure_applier_gives_the_same_weights(tmp_path: Path) -> None:
    """No worker ever reads anew: each gradient is of the initial weights."""
    bench = Bench(tmp_path, bound=4, poll_every=1, clock=ManualClock())
    applier = Applier(LEARNER, bound=4)
    for number in range(10):
        bench.bundle(bench.instance(), [bench.message(number)])
        applier.submit(0, LEARNER.gradient(LEARNER.init(), *batch(number)), batch(number))
    assert np.array_equal(bench.weights(), applier.state.weights)
