"""Features are learned as they were served, bit by bit, whatever the state has become and wherever it was restored."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from contbatch.transforms import (
    AvroCodec,
    BatchPolicy,
    BurstCapped,
    DelayedLabels,
    DriftAware,
    Event,
    Kind,
    Learned,
    Replayed,
    SparseLearner,
)
from contbatch.transforms.events import END_OF_TIME, MICROS
from contbatch.transforms.learning import PrequentialConfig, PrequentialLoop
from contbatch.transforms.learning.features import fingerprints, give_back, keep
from contbatch.transforms.learning.gate import GatePolicy
from contbatch.transforms.learning.learner import Columns
from contbatch.transforms.learning.prequential import Restored, Skewed
from contbatch.transforms.learning.sampling import Downsampled
from contbatch.transforms.learning.skew import SkewMonitor
from contbatch.transforms.learning.statistics import Standardized
from contbatch.transforms.learning.wire import event_of
from contbatch.transforms.records import Example, Failed, Served
from tests.small import Small

HEIGHT = "height"
REQUESTS = AvroCodec(
    {
        "type": "record",
        "name": "Request",
        "fields": [
            {"name": "request_id", "type": "string"},
            {"name": HEIGHT, "type": "double"},
            {"name": "event_time", "type": "double"},
        ],
    }
)


class Recorder:
    """A learner that notes the standardised heights that it predicts and learns, by raw height."""

    fields = (HEIGHT,)

    def __init__(self) -> None:
        self.predicted: list[float] = []
        self.learned: list[float] = []

    def init(self) -> int:
        return 0

    def predict(self, state: int, columns: Columns) -> Any:
        self.predicted += columns[HEIGHT]
        return np.full(len(columns[HEIGHT]), 0.5)

    def step(self, state: int, columns: Columns, labels: Any, weights: Any) -> int:
        self.learned += columns[HEIGHT]
        return state + len(labels)

    def export(self, state: int) -> dict[str, Any]:
        return {"rows": np.array([state])}

    def load(self, arrays: dict[str, Any]) -> int:
        return int(arrays["rows"][0])


def stream(count: int, seed: int) -> list[Event]:
    """Requests at one a second; labels up to 50 s later, out of order."""
    rng, events = random.Random(seed), []
    for row in range(count):
        record = {"request_id": str(row), HEIGHT: rng.gauss(170, 10), "event_time": float(row)}
        events.append(Event(row * MICROS, Kind.REQUEST, row, REQUESTS.encode(record)))
        label = Small.feedback.encode({"request_id": str(row), "label": float(rng.random() < 0.5)})
        events.append(Event((row + rng.randrange(1, 50)) * MICROS, Kind.FEEDBACK, row, label))
    return sorted(events)


def config(learner: Any, gate: GatePolicy | None = None) -> PrequentialConfig[Any]:
    return PrequentialConfig(learner, BatchPolicy(8, 2.0), REQUESTS, Small.feedback, ttl=60.0, gate=gate)


@given(st.integers(0, 1000), st.lists(st.integers(0, 150), max_size=3), st.booleans())
def test_what_is_learned_is_what_was_served(seed: int, cuts: list[int], is_sampled: bool) -> None:
    """By the time of the label the statistics have moved on: standardised anew, every height would differ."""
    recorder = Recorder()
    learner: Any = Standardized(recorder, (HEIGHT,), half_life=20.0)
    settings = config(Downsampled(learner, 1.0) if is_sampled else learner)
    loop, events, start, served, learned = PrequentialLoop(settings), stream(60, seed), 0, [], []
    for upto in [*(cut * MICROS for cut in sorted(cuts)), END_OF_TIME]:
        end = start + sum(event.time < upto for event in events[start:])
        learned += [output for output in loop.advance(events[start:end], upto) if isinstance(output, Learned)]
        start, snapshot = end, loop.snapshot()
        loop = PrequentialLoop(settings)
        loop.load(snapshot)
    served = recorder.predicted
    assert len(recorder.learned) == len(learned) == 60
    assert recorder.learned == [served[int(output.request_id)] for output in learned]
    assert len(set(served)) > 30  # until the first labels come, nothing is known of the scale, and all are 0


def served_by_hand(who: int, height: float, standardized: float) -> Served:
    record = {"request_id": str(who), HEIGHT: height, "event_time": float(who)}
    payload = REQUESTS.encode(record)
    return Served(payload, str(who), who * MICROS, 0.25, "3.7", json.dumps([standardized]), 0)


@pytest.mark.parametrize("is_joined", [False, True])
def test_what_was_served_elsewhere_is_learned_as_it_was_served_there(is_joined: bool) -> None:
    """The height was 9.5 deviations over a mean that this loop has never seen."""
    recorder = Recorder()
    settings = config(Standardized(recorder, (HEIGHT,), half_life=20.0), GatePolicy())
    loop = PrequentialLoop(replace(settings, feedback=None) if is_joined else settings)
    served = served_by_hand(1, 170.0, 9.5)
    label = Event(5 * MICROS, Kind.FEEDBACK, 3, Small.feedback.encode({"request_id": "1", "label": 1.0}))
    joined = event_of(Example(served, 1.0, 1.0, "", 0, 5 * MICROS, 3))
    (learned, *_) = loop.advance([joined] if is_joined else [event_of(served), label], END_OF_TIME)
    assert isinstance(learned, Learned)
    assert recorder.learned == [9.5]
    assert (learned.request_id, learned.score, learned.served_by, learned.time) == ("1", 0.25, "3.7", 5 * MICROS)


@pytest.mark.parametrize("prepared", ["", "junk", "[1.0, 2.0]", "{}", "7"])
def test_what_another_learner_prepared_is_computed_anew_and_noticed(prepared: str) -> None:
    """Requests wait while the job gets another learner: their labels are learned, and the monitor trips."""
    recorder = Recorder()
    loop = PrequentialLoop(config(Standardized(recorder, (HEIGHT,), half_life=20.0)))
    outputs: list[Any] = []
    for who in range(10):
        served = served_by_hand(who, 170.0 + who, 9.5)._replace(prepared=prepared, fingerprint=7)
        told = Small.feedback.encode({"request_id": str(who), "label": 1.0})
        outputs += loop.advance([event_of(served), Event(who * MICROS, Kind.FEEDBACK, who, told)], (who + 1) * MICROS)
    assert sum(isinstance(output, Learned) for output in outputs) == 10
    assert [(output.rows, output.skewed) for output in outputs if isinstance(output, Skewed)] == [(4, 4)]


WRAPPERS: dict[str, Any] = {
    "BurstCapped": lambda inner: BurstCapped(inner, "request_id", 100),
    "Replayed": lambda inner: Replayed(inner, share=1e-6),
    "DriftAware": DriftAware,
    "DelayedLabels": DelayedLabels,
    "Downsampled": lambda inner: Downsampled(inner, 1.0),
}


@pytest.mark.parametrize("name", WRAPPERS)
def test_around_whatever_wrapper_it_is_learned_as_it_was_served(name: str) -> None:
    """The height was 9.5 deviations over a mean that this loop has never seen."""
    recorder = Recorder()
    loop = PrequentialLoop(config(WRAPPERS[name](Standardized(recorder, (HEIGHT,), half_life=20.0))))
    label = Event(5 * MICROS, Kind.FEEDBACK, 3, Small.feedback.encode({"request_id": "1", "label": 1.0}))
    outputs = list(loop.advance([event_of(served_by_hand(1, 170.0, 9.5)), label], END_OF_TIME))
    assert [type(output) for output in outputs[:1]] == [Learned]
    assert recorder.learned == [9.5]


def test_old_scores_from_elsewhere_do_not_trip_the_gate() -> None:
    """What served says the opposite of every label, as a version of long ago might: the gate asks the live weights."""
    learner = SparseLearner((HEIGHT,), rate=0.5)
    loop = PrequentialLoop(replace(config(learner, GatePolicy(warm_up=100)), ttl=1e6))
    outputs: list[Any] = []
    for who in range(4_000):
        label, height = float(who % 2), 160.0 + 20 * (who % 2)
        served = served_by_hand(who, height, 0.0)._replace(score=0.9 - 0.8 * label, prepared="")
        told = Small.feedback.encode({"request_id": str(who), "label": label})
        events = [event_of(served), Event(who * MICROS, Kind.FEEDBACK, who, told)]
        outputs += loop.advance(sorted(events), (who + 1) * MICROS)
    assert not [output for output in outputs if isinstance(output, Restored)]
    assert sum(isinstance(output, Learned) for output in outputs) == 4_000


def test_what_is_no_served_request_or_example_comes_out_with_its_reason() -> None:
    loop = PrequentialLoop(config(SparseLearner((HEIGHT,))))
    events = [Event(0, kind, row, b"junk\n", "") for row, kind in enumerate((Kind.SERVED, Kind.EXAMPLE))]
    made = [(one.kind, one.status, one.reason[:24]) for one in loop.advance(events, MICROS) if isinstance(one, Failed)]
    assert made == [
        ("request", "failed", "not a served request or "),
        ("feedback", "refused", "not a served request or "),
    ]


def test_a_gate_scores_kept_rows_as_they_were_served() -> None:
    recorder = Recorder()
    settings = config(Standardized(recorder, (HEIGHT,), half_life=20.0), GatePolicy())
    loop = PrequentialLoop(settings)
    assert sum(isinstance(output, Learned) for output in loop.advance(stream(300, 0), END_OF_TIME)) == 300
    seen = set(recorder.predicted[:1]) | set(recorder.learned)
    assert set(recorder.learned) <= seen
    assert set(recorder.predicted) == set(recorder.learned)  # nothing was standardised twice


def test_prepared_columns_come_back_bit_by_bit() -> None:
    learner = Standardized(SparseLearner((HEIGHT,)), (HEIGHT,), half_life=20.0)
    columns = {HEIGHT: [170.1, 0.1 + 0.2], "standardized height": [1 / 3, float("nan")], "event_time": [0.0, 1.0]}
    kept = keep(learner, columns)
    examples = [Example(Served(b"", "a", 0, 0.5, "0.0", *one), 1.0, 1.0, "", 0, 0) for one in kept]
    back = give_back(learner, {HEIGHT: columns[HEIGHT], "event_time": columns["event_time"]}, examples)
    assert json.dumps(back["standardized height"]) == json.dumps(columns["standardized height"])
    assert fingerprints(learner, back) == [mark for _, mark in kept]


@pytest.mark.parametrize("other", [171.0, 170.10000000000002, "170.1", 170])
def test_a_fingerprint_sees_any_bit_and_any_type(other: object) -> None:
    learner = SparseLearner((HEIGHT,))
    ours, theirs = (fingerprints(learner, {HEIGHT: [value]}) for value in (170.1, other))
    assert ours != theirs


def test_a_monitor_trips_on_the_fourth_row_when_all_differ() -> None:
    """Four times log(10) = 9.2 nats is above 8, three times 6.9 is not."""
    monitor = SkewMonitor()
    assert [monitor.compare([1], [2]) for _ in range(5)] == [False, False, False, True, False]
    assert (monitor.rows, monitor.skewed) == (5, 5)


def test_a_monitor_trips_within_a_thousand_rows_when_one_in_fifty_differs() -> None:
    monitor = SkewMonitor()
    (at,) = [row for row in range(1000) if monitor.compare([1], [1 + (row % 50 == 49)])]
    assert at < 300


def test_what_was_served_without_a_fingerprint_is_not_compared() -> None:
    monitor = SkewMonitor()
    assert not monitor.compare([0] * 100, [1] * 100)
    assert monitor.rows == 0


def test_a_monitor_forgives_an_accident_in_a_hundred_thousand_rows() -> None:
    monitor = SkewMonitor()
    for row in range(100_000):
        assert not monitor.compare([1], [1 + (row % 10_000 == 0)])
    assert monitor.skewed == 10


class Rounding(AvroCodec):
    """What the codec of a careless update might do."""

    def decode(self, records: Any) -> Any:
        decoded = super().decode(records)
        return decoded._replace(columns={**decoded.columns, HEIGHT: [round(x) for x in decoded.columns[HEIGHT]]})


def test_a_codec_that_changes_while_requests_wait_is_found() -> None:
    """200 requests are served, the job is updated, and their labels come."""
    learner, policy = SparseLearner((HEIGHT,)), BatchPolicy(8, 2.0)
    before = PrequentialConfig(learner, policy, REQUESTS, Small.feedback, ttl=300.0)
    events = stream(200, 0)
    asked = [event for event in events if event.kind is Kind.REQUEST]
    labels = [event._replace(time=200 * MICROS + event.row) for event in events if event.kind is Kind.FEEDBACK]
    for after, found in ((before, 0), (replace(before, requests=Rounding(json.loads(REQUESTS._text))), 1)):
        loop = PrequentialLoop(before)
        list(loop.advance(asked, 200 * MICROS))
        changed = PrequentialLoop(after)
        changed.load(loop.snapshot())
        outputs = list(changed.advance(labels, END_OF_TIME))
        assert sum(isinstance(output, Learned) for output in outputs) == 200
        alarms = [output for output in outputs if isinstance(output, Skewed)]
        assert len(alarms) == found
        assert all(alarm.rows <= 1000 for alarm in alarms)
