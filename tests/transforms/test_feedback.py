"""``JoinFeedback``: ttl 10 s and a wait window of 4 s throughout; see test_join for what becomes of one request."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import apache_beam as beam
import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.testing.test_pipeline import TestPipeline
from apache_beam.testing.test_stream import TestStream
from apache_beam.testing.util import assert_that, equal_to
from apache_beam.transforms.window import FixedWindows, TimestampedValue
from apache_beam.utils.timestamp import Timestamp
from hypothesis import given, settings
from hypothesis import strategies as st

from contbatch.transforms import AvroCodec, Event, Example, Failed, JoinFeedback, Kind, ModelStore, Served
from contbatch.transforms.coders import EventCoder
from contbatch.transforms.events import END_OF_TIME, MICROS
from contbatch.transforms.feedback import _JoinFn
from contbatch.transforms.keyed_state import Bag, Cell, KeyedState, Timer
from contbatch.transforms.learning.join import Label, Terms
from contbatch.transforms.learning.observed import Observed
from contbatch.transforms.learning.rooms import Rooms, line_of
from contbatch.transforms.testing import Sink, stepwise
from tests.small import Small

CODEC = AvroCodec(
    {
        "type": "record",
        "name": "Feedback",
        "fields": [
            {"name": "request_id", "type": "string"},
            {"name": "label", "type": "float"},
            {"name": "name", "type": "string"},
        ],
    }
)
TERMS = Terms(10.0, 4.0, settles=True)
join = partial(JoinFeedback, CODEC, ttl=10.0, wait_window=4.0, settles=True, shards=3)


def asked(who: int, seconds: float) -> Served:
    return Served(f"features of {who}\n".encode(), str(who), round(seconds * MICROS), who / 100, "0.7", "[1.5]", who)


def told(who: int, seconds: float, row: int = 0, value: float = 1.0, name: str = "") -> Event:
    payload = CODEC.encode({"request_id": str(who), "label": value, "name": name})
    return Event(round(seconds * MICROS), Kind.FEEDBACK, row, payload)


def stream(count: int, seed: int) -> tuple[list[Served], list[Event]]:
    """A request each 0.2 s; labels in time, after the window, after the ttl, before the request, twice, of nobody."""
    rng = random.Random(seed)
    served = [asked(who, 2 + who / 5) for who in range(count)]
    feedback = []
    for who in range(count):
        fate = rng.choice(["soon", "later", "too late", "before", "twice", "never", "of nobody", "broken", "bad"])
        times = {"soon": [1], "later": [7], "too late": [12], "before": [-2], "twice": [1, 2]}.get(fate, [3])
        if fate == "never":
            continue
        for time in times:
            made = told(
                who + 10**6 * (fate == "of nobody"), 2 + who / 5 + time, len(feedback), 7.0 if fate == "bad" else 1.0
            )
            feedback.append(made._replace(payload=b"\xff") if fate == "broken" else made)
    return served, feedback


def expected(served: Sequence[Served], feedback: Sequence[Event]) -> Counter[str]:
    """Count by going over each request alone."""
    by_id: dict[str, list[float]] = {}
    counts: Counter[str] = Counter()
    known = {one.request_id: one.time for one in served}
    for event in feedback:
        decoded = CODEC.decode([event.payload])
        if not decoded.positions or not 0 <= decoded.columns["label"][0] <= 1:
            counts["refused"] += 1
        elif decoded.columns["request_id"][0] not in known:
            counts["unmatched"] += 1
        else:
            name = decoded.columns["request_id"][0]
            by_id.setdefault(name, []).append((event.time - known[name]) / MICROS)
    for name in known:
        delays = sorted(by_id.get(name, []))
        counts["late"] += sum(delay > 10 for delay in delays)
        delays = [delay for delay in delays if delay <= 10]
        counts["duplicate"] += len(delays[1:])
        if not delays:
            counts["ASSUMED"] += 1
            counts["SETTLED"] += 1
        elif delays[0] > 4:
            counts["ASSUMED"] += 1
            counts["CORRECTED"] += 1
        else:
            counts["LABEL"] += 1
    return +counts


def fate(outcome: Example | Failed) -> str:
    return Observed(outcome.observed).name if isinstance(outcome, Example) else outcome.status


def test_every_feedback_has_one_fate_whatever_the_order_of_a_bounded_run() -> None:
    served, feedback = stream(200, 0)
    for seed in (1, 2):
        rng = random.Random(seed)
        with TestPipeline() as pipeline:
            requests = pipeline | "r" >> beam.Create(rng.sample(served, len(served))).with_output_types(Served)
            labels = pipeline | "l" >> beam.Create(rng.sample(feedback, len(feedback))).with_output_types(Event)
            examples = (requests, labels) | join()
            kinds = (examples, examples.late, examples.failed) | beam.Flatten() | beam.Map(fate)
            counted = kinds | beam.combiners.Count.PerElement()
            assert_that(counted, equal_to(list(expected(served, feedback).items())))
            as_served = examples | beam.Map(
                lambda example: example.served == asked(int(example.served.request_id), example.served.time / MICROS)
            )
            assert_that(as_served | beam.Distinct(), equal_to([True]), label="as served")
    assert len(expected(served, feedback)) == 8


def test_examples_are_learned_by_a_trainer(small: Small, tmp_path: Path) -> None:
    """40 requests, three of four with a label; each example comes out as learned, none twice."""
    requests = [event for event in small.events(40) if event.kind is Kind.REQUEST]
    served = [Served(one.payload, str(one.row), one.time, 0.5, "0.0") for one in requests]
    labels = [event for event in small.events(40) if event.kind is Kind.FEEDBACK and event.row % 4]
    with TestPipeline() as pipeline:
        asked = pipeline | "r" >> beam.Create(served).with_output_types(Served)
        told = pipeline | "l" >> beam.Create([*labels, *labels[:5]]).with_output_types(Event)
        examples = (asked, told) | JoinFeedback(small.feedback, ttl=60.0, wait_window=1.0, shards=2)
        published = examples | small.trainer(tmp_path, feedback=None)
        learned = published.learned | beam.Map(lambda one: one.observed) | beam.combiners.Count.PerElement()
        assert_that(learned, equal_to([("label", 30), ("assumed", 10)]))
        refused = examples.failed | "Status" >> beam.Map(lambda one: (one.status, 1)) | beam.CombinePerKey(sum)
        assert_that(refused, equal_to([("duplicate", 5)]), label="duplicates")
    assert ModelStore(str(tmp_path)).versions()[-1].examples == 40


def test_late_feedback_has_an_output_of_its_own() -> None:
    with TestPipeline() as pipeline:
        requests = pipeline | "r" >> beam.Create([asked(1, 0)]).with_output_types(Served)
        labels = pipeline | "l" >> beam.Create([told(1, 11), told(1, 12, 1)]).with_output_types(Event)
        examples = (requests, labels) | join()
        late = examples.late | beam.Map(lambda failed: (failed.status, failed.request_id, failed.reason))
        assert_that(late, equal_to([("late", "1", "later than the ttl after its request")] * 2))


@pytest.mark.parametrize("step", [1.0, 0.25])
def test_a_live_join_loses_nothing_in_a_trainer(small: Small, tmp_path: Path, step: float) -> None:
    """Half of the labels are older than their requests: their examples come out behind the trainer's watermark."""
    requests = [small.request(who, who / 2 + 1) for who in range(40)]
    labels = [small.label(who, who / 2 + (0.1 if who % 2 else 1.2)) for who in range(40)]
    learned, failed = Sink(), Sink()
    with beam.Pipeline(options=PipelineOptions(streaming=True)) as pipeline:
        events = pipeline | stepwise(sorted([*requests, *labels]), step)
        asked = (
            events
            | "asked" >> beam.Filter(lambda event: event.kind is Kind.REQUEST)
            | beam.Map(lambda one: Served(one.payload, str(one.row), one.time, 0.5, "0.0")).with_output_types(Served)
        )
        told = events | "told" >> beam.Filter(lambda event: event.kind is Kind.FEEDBACK)
        examples = (asked, told) | JoinFeedback(small.feedback, ttl=60.0, wait_window=0.1, shards=2)
        published = examples | small.trainer(tmp_path, feedback=None)
        published.learned | "learned" >> learned
        (published.failed, examples.late, examples.failed) | beam.Flatten() | "failed" >> failed
    counts = Counter(one.observed for one in learned.elements)
    assert counts == {"label": 20, "assumed": 20, "corrected": 20}
    assert failed.elements == []


def live(served: Sequence[Served], feedback: Sequence[Event], options: PipelineOptions) -> Sink:
    """Run as a stream whose watermark moves in steps, and count in windows what comes out."""
    sink, windows = Sink(), Sink()
    script = TestStream(coder=EventCoder())
    wrapped = [Event(one.time, Kind.REQUEST, 0, one.request_id.encode()) for one in served]
    for second in range(0, 40, 2):
        due = [one for one in [*wrapped, *feedback] if one.time // MICROS in (second, second + 1)]
        script.add_elements([TimestampedValue(one, Timestamp(micros=one.time)) for one in due])
        script.advance_watermark_to(Timestamp(second + 2))
    by_id = {one.request_id: one for one in served}
    with beam.Pipeline(options=options) as pipeline:
        events = pipeline | script.advance_watermark_to_infinity()
        requests = (
            events
            | "requests" >> beam.Filter(lambda event: event.kind is Kind.REQUEST)
            | beam.Map(lambda event: by_id[event.payload.decode()]).with_output_types(Served)
        )
        labels = events | "feedback" >> beam.Filter(lambda event: event.kind is Kind.FEEDBACK)
        examples = (requests, labels) | join(stride=2.0)
        everything = (examples, examples.late, examples.failed) | "All" >> beam.Flatten()
        everything | "Sink" >> sink
        counted = (
            everything
            | beam.WindowInto(FixedWindows(5))
            | beam.Map(lambda outcome: (fate(outcome), 1))
            | beam.CombinePerKey(sum)
        )
        counted | "Windows" >> windows
    totals: Counter[str] = Counter()
    for name, count in windows.elements:
        totals[name] += count
    assert totals == Counter(map(fate, sink.elements))  # nothing was late for the windows downstream
    return sink


def test_a_live_stream_gives_the_same_and_loses_nothing_downstream() -> None:
    served, feedback = stream(80, 3)
    sink = live(served, feedback, PipelineOptions(streaming=True))
    assert Counter(map(fate, sink.elements)) == expected(served, feedback)


def key_state() -> KeyedState:
    return KeyedState(log=Bag(), head=Cell(), timer=Timer())


def join_fn() -> _JoinFn:
    fn = _JoinFn(TERMS, MICROS // 2, is_bounded=False)
    fn.setup()
    return fn


def line(item: Served | Event) -> bytes:
    if isinstance(item, Served):
        return line_of(item)
    columns = CODEC.decode([item.payload]).columns
    return line_of(Label(item, columns["request_id"][0], columns["label"][0], 1.0, columns["name"][0]))


seconds = st.floats(0, 30).map(lambda value: round(value, 2))
items = st.one_of(
    st.tuples(st.just("ask"), st.integers(0, 3), seconds),
    st.tuples(st.just("tell"), st.integers(0, 4), seconds),
)


@settings(max_examples=60)
@given(st.lists(items, max_size=15), st.randoms(use_true_random=False), st.booleans())
def test_any_order_of_arrival_and_any_restart_give_the_same(
    plan: list[Any], rng: random.Random, restarts: bool
) -> None:
    """All comes before the watermark moves, and a request has one label: which one comes first does not count."""
    once = {(what, who): (what, who, when) for what, who, when in plan}
    made: list[Served | Event] = [
        asked(who, when) if what == "ask" else told(who, when, row)
        for row, (what, who, when) in enumerate(once.values())
    ]
    oracle = sorted(map(repr, run(made, False)))
    rng.shuffle(made)
    assert sorted(map(repr, run(made, restarts))) == oracle


def run(made: list[Served | Event], restarts: bool) -> list[Any]:
    """Bring everything one by one, then let time pass by the timer alone."""
    fn, state, outputs = join_fn(), key_state(), []
    for item in made:
        outputs += state.bundle(fn, partial(fn.process, (0, line(item)), Timestamp(micros=item.time)))
        fn = join_fn() if restarts else fn
    while (timer := state.parts["timer"].time) is not None:
        state.parts["timer"].time = None
        outputs += state.bundle(fn, partial(fn.on_next, 0, timer))
        fn = join_fn() if restarts else fn
    return [output.value if hasattr(output, "tag") else output for output in outputs]


@pytest.mark.parametrize("item", [asked(1, 9_000_000_000_000.0), told(1, 9_000_000_000_000.0)])
def test_a_time_at_the_end_of_time_fires_once(item: Served | Event) -> None:
    """Some 285,000 years from now, past the end of Beam's time."""
    fn, state, fired = join_fn(), key_state(), 0
    outputs = state.bundle(fn, partial(fn.process, (0, line(item)), Timestamp(0)))
    while (timer := state.parts["timer"].time) is not None:
        state.parts["timer"].time, fired = None, fired + 1
        outputs += state.bundle(fn, partial(fn.on_next, 0, timer))
        assert fired < 5
    assert len(outputs) == (2 if isinstance(item, Served) else 1)


def test_a_failed_bundle_leaves_nothing_behind() -> None:
    """The label is matched, the bundle fails, and comes again: it is no duplicate of itself."""
    fn, state = join_fn(), key_state()
    state.bundle(fn, partial(fn.process, (0, line(asked(1, 0))), Timestamp(0)))
    tell = partial(fn.process, (0, line(told(1, 1))), Timestamp(1))

    def fail(parts: Any) -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        state.bundle(fn, tell, committing=fail)
    assert [Observed(example.observed) for example in state.bundle(fn, tell)] == [Observed.LABEL]


def test_state_is_bounded_by_time_not_by_the_stream() -> None:
    """A request a second for 40 minutes: 21 ids, give or take the stride and an eighth of the ttl.

    The log is cut at 64 KiB, and what is known of those few requests comes on top.
    """
    fn, state, sizes = join_fn(), key_state(), []
    for second in range(2400):
        timer = state.parts["timer"].time
        if timer is not None and timer.micros <= second * MICROS:
            state.bundle(fn, partial(fn.on_next, 0, timer))
        state.bundle(fn, partial(fn.process, (0, line(asked(second, second))), Timestamp(second)))
        sizes.append(sum(map(len, state.parts["log"].values)))
    rooms = fn._logged.open(0, state.parts["log"], state.parts["head"])
    assert rooms.waiting <= 24
    assert max(sizes) < 100_000 < sum(len(line(asked(second, second))) for second in range(2400))


def test_rooms_come_back_from_their_dump() -> None:
    rooms = Rooms(TERMS)
    chunk = b"\n".join(line(item) for item in (asked(1, 0), asked(2, 1), told(3, 1), told(1, 2)))
    assert [type(outcome) for outcome in rooms.see(chunk)] == [Example]
    again = Rooms(TERMS)
    again.load(rooms.dump())
    assert list(again.expire(END_OF_TIME)) == list(rooms.expire(END_OF_TIME))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"shards": 0}, "shards is 0; give 1 or more"),
        ({"stride": 0.0}, r"stride is 0.0 s; give a finite number of 0.001 or more"),
        ({"wait_window": 20.0}, "wait_window is 20.0 s; give seconds from 0 to the ttl, 10.0 s"),
        (
            {"feedback": AvroCodec({"type": "record", "name": "x", "fields": []})},
            r"it also needs \['request_id', 'label'\]",
        ),
    ],
)
def test_what_cannot_work_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        JoinFeedback(**{"feedback": CODEC, "ttl": 10.0, **arguments})
