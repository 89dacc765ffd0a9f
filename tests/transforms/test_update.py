"""The Beam shell of the serial loop, on Beam's own runner: bounded, and live with a watermark that moves in steps."""

from __future__ import annotations

import logging
import random
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import apache_beam as beam
import numpy as np
import pytest
from apache_beam.options.pipeline_options import DebugOptions, PipelineOptions
from apache_beam.pvalue import TaggedOutput
from apache_beam.testing.test_stream import TestStream
from apache_beam.transforms.window import FixedWindows, TimestampedValue
from apache_beam.utils.timestamp import Timestamp

from contbatch.transforms import BatchPolicy, Event, Failed, GatePolicy, Learned, ModelStore, Prediction, Published
from contbatch.transforms.coders import EventCoder
from contbatch.transforms.events import END_OF_TIME, MICROS, pack
from contbatch.transforms.keyed_state import Bag, Cell, KeyedState, Timer
from contbatch.transforms.learning import PrequentialLoop, Version
from contbatch.transforms.loop import ArrivalFn, EventTimeFn, _Head
from contbatch.transforms.testing import ManualClock, Sink, assert_conserved, stepwise

OUTPUTS = ("predictions", "learned", "failed", "published")


def run(source: beam.PTransform, transform: beam.PTransform, live: bool = False) -> list[Any]:
    """Return everything that comes out."""
    sink = Sink()
    with beam.Pipeline(options=PipelineOptions([], streaming=live)) as pipeline:
        done = pipeline | source | transform
        _ = [done[name] for name in OUTPUTS] | beam.Flatten() | sink
    return sink.elements


def as_text(outputs: list[Any]) -> list[str]:
    return sorted(map(repr, outputs))


def expected(small: Any, events: list[Event], tmp_path: Path) -> list[str]:
    """Return what the pure loop puts out for the sorted events; a version as its record."""
    transform = small.transform(tmp_path / "unused")
    loop = PrequentialLoop(transform._settings.config)
    outputs = list(loop.advance(sorted(events), END_OF_TIME))
    return as_text([output for output in outputs if not isinstance(output, Version)])


def without_versions(outputs: list[Any]) -> list[str]:
    return as_text([output for output in outputs if not isinstance(output, Published)])


def test_bounded_input_gives_what_the_pure_loop_gives(small: Any, tmp_path: Path) -> None:
    events = small.events()
    outputs = run(beam.Create(events), small.transform(tmp_path / "store"))
    assert_conserved(events, outputs)
    assert without_versions(outputs) == expected(small, events, tmp_path)
    assert Counter(type(output) for output in outputs)[Prediction] == 60


def test_the_order_of_arrival_does_not_matter(small: Any, tmp_path: Path) -> None:
    events = small.events()
    straight = run(beam.Create(events), small.transform(tmp_path / "a"))
    shuffled = random.Random(1).sample(events, len(events))
    again = run(beam.Create(shuffled), small.transform(tmp_path / "b"))
    assert as_text(again) == as_text(straight)


@pytest.mark.parametrize("stride", [0.1, 1.0, 7.0])
@pytest.mark.parametrize("step", [0.25, 3.0, 1_000.0])
def test_live_gives_the_same_however_the_watermark_moves(
    small: Any, tmp_path: Path, step: float, stride: float
) -> None:
    events = small.events(40)
    shuffled = random.Random(2).sample(events, len(events))
    transform = small.transform(tmp_path / "store", stride=stride, snapshot_every=25)
    outputs = run(stepwise(shuffled, step), transform, live=True)
    assert without_versions(outputs) == expected(small, events, tmp_path)


def test_live_and_bounded_publish_the_same_versions(small: Any, tmp_path: Path) -> None:
    events = small.events(50)
    run(beam.Create(events), small.transform(tmp_path / "bounded"))
    run(stepwise(events, 1.0), small.transform(tmp_path / "live"), live=True)
    bounded, live = (ModelStore(str(tmp_path / name)).versions() for name in ("bounded", "live"))
    assert bounded[-1].examples == 50
    assert len(bounded) == 3
    assert live == bounded


def test_a_live_batch_does_not_wait_for_the_end_of_input(small: Any, tmp_path: Path) -> None:
    """Deadline 0.5 s, stride 1 s: requests of 0 s and 0.9 s leave at 1 s and 2 s. The next event comes at 50 s."""
    source, sink = (
        (
            TestStream(coder=EventCoder())
            .add_elements([TimestampedValue(small.request(row, at), Timestamp(at)) for row, at in ((0, 0.0), (2, 0.9))])
            .advance_watermark_to(Timestamp(10))
            .add_elements([TimestampedValue(small.request(1, 50.0), Timestamp(50))])
            .advance_watermark_to_infinity()
        ),
        Sink(),
    )
    with beam.Pipeline(options=PipelineOptions([], streaming=True)) as pipeline:
        done = pipeline | source | small.transform(tmp_path / "store")
        _ = done.predictions | beam.Map(lambda _, timestamp=beam.DoFn.TimestampParam: float(timestamp)) | sink
    assert sorted(sink.elements)[:2] == [1.0, 2.0]


def test_a_windowed_aggregation_downstream_loses_nothing(small: Any, tmp_path: Path) -> None:
    """Bounded; live it is tested on Prism, as this runner's timers hold no watermark."""
    events, sink = small.events(50), Sink()
    with beam.Pipeline(options=PipelineOptions([])) as pipeline:
        done = pipeline | beam.Create(events) | small.transform(tmp_path / "store")
        _ = (
            [done[name] for name in ("predictions", "learned", "failed")]
            | beam.Flatten()
            | beam.Map(lambda _: 1)
            | beam.WindowInto(FixedWindows(1))
            | beam.CombineGlobally(sum).without_defaults()
            | sink
        )
    assert sum(sink.elements) == 100
    assert len(sink.elements) > 1


def test_models_learn_apart(small: Any, tmp_path: Path) -> None:
    ours, theirs = small.events(30, seed=1, model="ours"), small.events(30, seed=2, model="theirs")
    both = run(beam.Create(ours + theirs), small.transform(tmp_path / "both"))
    alone = run(beam.Create(ours), small.transform(tmp_path / "alone"))
    assert as_text([output for output in both if output.model == "ours"]) == as_text(alone)
    assert_conserved(ours + theirs, both)


def test_bad_records_come_out_with_their_reason_and_move_no_neighbour(small: Any, tmp_path: Path) -> None:
    events = small.events(20)
    junk = [events[6]._replace(payload=b"\xff", row=900), events[7]._replace(payload=b"", row=901)]
    outputs = run(beam.Create(events + junk), small.transform(tmp_path / "store", policy=BatchPolicy(99, 0.5)))
    assert_conserved(events + junk, outputs)
    failed = {(record.row, record.status): record.reason for record in outputs if isinstance(record, Failed)}
    assert set(failed) == {(900, "failed"), (901, "refused")}
    assert all("not an Avro record" in reason for reason in failed.values())
    clean = run(beam.Create(events), small.transform(tmp_path / "clean", policy=BatchPolicy(99, 0.5)))
    scores = {record.request_id: record.score for record in clean if isinstance(record, Prediction)}
    assert {record.request_id: record.score for record in outputs if isinstance(record, Prediction)} == scores


def test_what_arrives_behind_the_watermark_is_late_and_counted(small: Any, tmp_path: Path) -> None:
    """Request 0 opens a batch at 0 s, due at 0.5 s, so at the next stride, 1 s: the model has moved on to there."""
    early, late = [small.request(0, 0.0), small.request(1, 20.0)], [small.request(2, 0.9), small.label(0, 0.95)]
    stream = TestStream(coder=EventCoder())
    for event in early:
        stream.add_elements([TimestampedValue(event, Timestamp(micros=event.time))])
    stream.advance_watermark_to(Timestamp(15))
    # Beam itself drops what is behind the watermark of a windowed step; a source may also stamp late data with now.
    stream.add_elements([TimestampedValue(event, Timestamp(16)) for event in late])
    stream.advance_watermark_to_infinity()
    outputs = run(stream, small.transform(tmp_path / "store"), live=True)
    assert_conserved(early + late, outputs)
    fates = {(record.kind, record.status) for record in outputs if isinstance(record, Failed)}
    assert fates == {("request", "failed"), ("feedback", "late")}


def test_a_full_buffer_is_processed_early_and_counted(small: Any, tmp_path: Path, caplog: Any) -> None:
    events = small.events(60)
    transform = small.transform(tmp_path / "store", max_buffer=50)
    sink, pipeline = Sink(), beam.Pipeline(options=PipelineOptions([], streaming=True))
    done = pipeline | stepwise(events, 1_000.0) | transform
    _ = [done[name] for name in OUTPUTS] | beam.Flatten() | sink
    with caplog.at_level(logging.WARNING):
        result = pipeline.run()
        result.wait_until_finish()
    assert_conserved(events, sink.elements)
    (counter,) = result.metrics().query(beam.metrics.MetricsFilter().with_name("forced"))["counters"]
    assert counter.committed >= 60
    assert "max_buffer" in caplog.text


def test_a_stuck_watermark_is_not_waited_for_longer_than_max_wait(small: Any, tmp_path: Path, caplog: Any) -> None:
    """Every look at the clock takes 20 s: with the third chunk the buffer has waited for over 30 s."""
    events = small.events(30)
    stream = TestStream(coder=EventCoder())
    for number, event in enumerate(events):  # a bundle each: the watermark creeps, far behind the first event
        stream.advance_watermark_to(Timestamp(number - 1_000))
        stream.add_elements([TimestampedValue(event, Timestamp(micros=event.time))])
    stream.advance_watermark_to_infinity()
    transform = small.transform(tmp_path / "store", max_wait=30.0, clock=SteppingClock(20.0))
    with caplog.at_level(logging.WARNING):
        outputs = run(stream, transform, live=True)
    assert_conserved(events, outputs)
    assert "(max_wait)" in caplog.text


class SteppingClock(ManualClock):
    """Every look at it takes some seconds."""

    def __init__(self, step: float) -> None:
        super().__init__()
        self._step = step

    def __call__(self) -> float:
        self.advance(self._step)
        return super().__call__()


def test_the_transform_itself_keeps_prism_from_splitting_its_bundles(small: Any, tmp_path: Path) -> None:
    pipeline = beam.Pipeline(options=PipelineOptions([]))
    _ = pipeline | beam.Create(small.events(1)) | small.transform(tmp_path / "store")
    assert "prism_disable_sdf_split" in pipeline.options.view_as(DebugOptions).experiments


@pytest.mark.parametrize("name", ["stride", "max_buffer", "snapshot_every"])
@pytest.mark.parametrize("value", [0, -1, float("nan")])
def test_settings_outside_their_range_are_refused(small: Any, tmp_path: Path, name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{name} is {value!r}; give a finite number of"):
        small.transform(tmp_path, **{name: value})


def learn(
    source: beam.PTransform, small: Any, store: Path, live: bool = False, **settings: Any
) -> dict[str, list[Any]]:
    """Run the trainer alone; returns its versions, what it learned, and what it did not."""
    sinks = {name: Sink() for name in ("published", "learned", "failed")}
    with beam.Pipeline(options=PipelineOptions([], streaming=live)) as pipeline:
        published = pipeline | source | small.trainer(store, **settings)
        for name, part in (("published", published), ("learned", published.learned), ("failed", published.failed)):
            _ = part | name >> sinks[name]
    return {name: sink.elements for name, sink in sinks.items()}


def test_a_trainer_learns_what_predict_then_learn_learns(small: Any, tmp_path: Path) -> None:
    events = small.events()
    both = run(beam.Create(events), small.transform(tmp_path / "both"))
    shuffled = random.Random(3).sample(events, len(events))
    trained = learn(beam.Create(shuffled), small, tmp_path / "trainer")
    assert as_text([*trained["published"], *trained["learned"]]) == as_text(
        [one for one in both if isinstance(one, Published | Learned)]
    )
    assert trained["failed"] == []


@pytest.mark.parametrize("live", [False, True])
def test_in_order_of_arrival_every_label_counts_once_and_none_is_late(small: Any, tmp_path: Path, live: bool) -> None:
    events = small.events(40)
    twice = [small.label(row, 20.0) for row in range(0, 40, 8)]
    junk = [events[6]._replace(payload=b"\xff", row=900), events[7]._replace(payload=b"", row=901)]
    mixed = random.Random(4).sample([*events, *twice, *junk], len(events) + 7)
    source = stepwise(mixed, 0.5) if live else beam.Create(mixed)
    done = learn(source, small, tmp_path / "store", live, deterministic=False)
    assert len({one.request_id for one in done["learned"]}) == len(done["learned"]) == 40
    assert Counter(one.status for one in done["failed"]) == {"duplicate": 5, "refused": 1}
    assert max(one.examples for one in done["published"]) == 40


def keyed() -> KeyedState:
    return KeyedState(buffer=Bag(), log=Bag(), head_cell=Cell(), due=Timer(), last=Timer())


def advance(state: KeyedState, fn: EventTimeFn, events: list[Event], upto: float) -> list[Any]:
    """One bundle with the events, and one with the firing of the timer at so many seconds; returns the values."""
    if not hasattr(fn, "_journal"):
        fn.setup()
    at = Timestamp(events[0].time / MICROS)
    outputs = state.bundle(fn, partial(fn.process, ("", pack(events)), at))
    outputs += state.bundle(fn, lambda last, **parts: fn.on_due("", Timestamp(upto), **parts))
    return [(one.value if isinstance(one, TaggedOutput) else one).value for one in outputs]


def test_in_order_of_arrival_what_comes_after_later_events_is_learned(small: Any, tmp_path: Path) -> None:
    events = small.events(20)
    fn = ArrivalFn(small.trainer(tmp_path, deterministic=False)._loop._settings, bounded=False)
    fn.setup()
    state, outputs = keyed(), []
    for part in (events[20:], events[:20]):
        call = partial(fn.process, ("", pack(part)), Timestamp(0))
        outputs += state.bundle(fn, lambda buffer, call=call, **parts: call(**parts))
    values = [one.value.value for one in outputs if isinstance(one, TaggedOutput)]
    assert sum(isinstance(one, Learned) for one in values) == 20
    assert not any(isinstance(one, Failed) for one in values)


def test_what_an_operator_restores_is_where_learning_goes_on(small: Any, tmp_path: Path) -> None:
    """The first half is learned; then its first version is restored; then the second half is learned."""
    events, store, clock = small.events(90), ModelStore(str(tmp_path / "store")), ManualClock()
    middle = events[90].time
    settings = small.transform(tmp_path / "store", clock=clock)._settings
    state, fn = keyed(), EventTimeFn(settings, bounded=False)
    first = advance(state, fn, [event for event in events if event.time < middle], middle / MICROS)
    chosen, *_ = [one.version for one in first if isinstance(one, Published)]
    assert len(store.versions()) == 2
    store.restore(chosen, "worse since")
    clock.advance(1.0)
    second = advance(state, fn, [event for event in events if event.time >= middle], 1e6)
    restored, *later = [one.version for one in second if isinstance(one, Published)]
    manifests = {manifest.version: manifest for manifest in store.versions()}
    assert manifests[restored].parent == chosen
    assert manifests[restored].digest == manifests[chosen].digest
    assert [manifests[version].parent for version in later] == [restored, *later[:-1]]
    assert len(later) == 2

    def digest(fn: EventTimeFn) -> dict[str, Any]:
        position = _Head.load(state.parts["head_cell"].read()).position
        return fn._journal.open("", position, state.parts["log"].read()).snapshot()

    other = EventTimeFn(settings, bounded=False)
    other.setup()
    straight, replayed = digest(fn), digest(other)
    assert (fn._journal.rebuilt, other._journal.rebuilt) == (0, 1)
    assert all(np.array_equal(straight[name], replayed[name]) for name in straight | replayed)


class Fragile:
    """Predicts the mean label; a label of exactly 0.25 makes its weights not a number."""

    fields = ("user",)

    def init(self) -> Any:
        return np.array([0.0, 0.0])

    def predict(self, state: Any, columns: Any) -> Any:
        return np.full(len(columns["user"]), (state[0] + 1) / (state[1] + 2))

    def step(self, state: Any, columns: Any, labels: Any, weights: Any) -> Any:
        return state + (np.nan if 0.25 in labels else np.array([labels.sum(), len(labels)]))

    def export(self, state: Any) -> Any:
        return {"state": state.copy()}

    def load(self, arrays: Any) -> Any:
        return arrays["state"].copy()


@pytest.mark.parametrize("form", ["serial", "trainer"])
def test_a_bad_update_is_rolled_back_in_both_forms(small: Any, tmp_path: Path, form: str) -> None:
    """Request and label 30 break the weights; a version is published every 10 labels."""
    events = []
    for row in range(60):
        value = 0.25 if row == 30 else float(row % 2)
        events += [small.request(row, row), small.label(row, row + 0.5, value=value)]
    given = {"learner": Fragile(), "gate": GatePolicy(every=8, settle=0, refresh=8, trial=4), "publish_every": 10}
    if form == "serial":
        outputs = run(beam.Create(events), small.transform(tmp_path / "store", **given))
        scores = {one.request_id: one.score for one in outputs if isinstance(one, Prediction)}
        assert len(scores) == 60
        assert [name for name, score in scores.items() if not np.isfinite(score)] == []
        learned = [one for one in outputs if isinstance(one, Learned)]
    else:
        learned = learn(beam.Create(events), small, tmp_path / "store", **given)["learned"]
    assert len(learned) == 60
    store = ModelStore(str(tmp_path / "store"))
    (restore,) = store.restores()
    serving = store.versions()
    assert restore == (0, serving[2].parent)
    assert serving[2].epoch == 1
    assert serving[2].gate.startswith("rollback: ")
    assert [one.parent for one in serving[3:]] == [one.version for one in serving[2:-1]]
    assert all(np.isfinite(store.read(one)["state"]).all() for one in serving)
