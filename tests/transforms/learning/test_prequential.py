"""The laws of the serial loop, over random streams: ties, orphans, duplicates, records that do not decode."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from contbatch.transforms import BatchPolicy, Event, Failed, Kind, Learned, Prediction, SparseLearner
from contbatch.transforms.events import END_OF_TIME, MICROS
from contbatch.transforms.learning import Order, PrequentialConfig, PrequentialLoop, Version, mean_log_loss
from contbatch.transforms.learning.wire import event_of, served_of
from contbatch.transforms.records import Example, Served
from contbatch.transforms.testing import assert_conserved
from tests.small import Small

small = Small()
CONFIG: PrequentialConfig[Any] = PrequentialConfig(
    SparseLearner(("user", "item"), ((("user",), ("item",)),), bits=4, factors=2),
    BatchPolicy(max_size=3, max_delay=2.0),
    small.requests,
    small.feedback,
    ttl=6.0,
    publish_every=4,
)


@dataclass(frozen=True)
class Settling(SparseLearner):
    """Asks for the requests that never get a label."""

    needs_settled = True


WAITING = replace(CONFIG, wait_window=1.5)
"""A wait window shorter than a batch may be open."""

SETTLING = replace(CONFIG, wait_window=3.0, learner=Settling(("user", "item"), bits=4))

cuts = st.lists(st.integers(0, 24 * MICROS), max_size=6)

configs = st.sampled_from([CONFIG, WAITING, SETTLING])

ARRIVING = replace(CONFIG, order=Order.ARRIVAL)


def event(kind: Kind, second: int, who: int, row: int, value: float = 1.0) -> Event:
    request = small.request(who, second)
    served = Served(request.payload, str(who), request.time, 0.3, "0.0")
    made = {
        Kind.REQUEST: lambda: request,
        Kind.SERVED: lambda: event_of(served),
        Kind.FEEDBACK: lambda: small.label(who, second, value=value),
        Kind.EXAMPLE: lambda: event_of(Example(served, 1.0, 1.0, "", 0, request.time)),
    }[kind]()
    return made._replace(row=row)


@st.composite
def streams(draw: st.DrawFn) -> list[Event]:
    """Events of 20 seconds, sorted; ids repeat, so that labels meet requests, come twice, too late or in vain."""
    events = []
    for row in range(draw(st.integers(0, 25))):
        kind, second, who = draw(st.tuples(st.sampled_from(Kind), st.integers(0, 20), st.integers(0, 8)))
        value = draw(st.sampled_from([0.0, 1.0, 0.5, 7.0, float("nan")]))
        made = event(kind, second, who, row, value)
        if draw(st.integers(0, 9)) == 0:
            made = made._replace(payload=draw(st.sampled_from([b"", b"\xff\xff", made.payload + b"x"])))
        events.append(made)
    return sorted(events)


def run(
    events: list[Event], cuts: Sequence[int] = (), config: PrequentialConfig[Any] = CONFIG, restore: bool = False
) -> list[Any]:
    """Advance to each cut (microseconds), then to the end of time; returns the outputs."""
    loop, outputs, start = PrequentialLoop(config), [], 0
    for upto in [*sorted(cuts), END_OF_TIME]:
        end = start + sum(made.time < upto for made in events[start:])
        outputs += loop.advance(events[start:end], upto)
        assert loop.next_time is None or loop.next_time >= upto  # else a live job would fire for ever
        start = end
        if restore:
            snapshot = loop.snapshot()
            loop = PrequentialLoop(config)
            loop.load(snapshot)
    return [comparable(output) for output in outputs]


def comparable(output: Any) -> Any:
    if isinstance(output, Version):
        return output._replace(arrays={name: array.tolist() for name, array in output.arrays.items()})
    return output


def of(kind: type, outputs: list[Any]) -> list[Any]:
    return [output for output in outputs if isinstance(output, kind)]


EXPIRES_WHILE_A_BATCH_IS_OPEN = sorted(
    [Event(second * MICROS, Kind.REQUEST, row, b"") for row, second in enumerate((0, 0, 5))]
    + [event(Kind.FEEDBACK, 0, 1, 3)]
)


@given(streams(), st.one_of(configs, st.just(ARRIVING)), cuts)
def test_every_event_has_exactly_one_fate(
    events: list[Event], config: PrequentialConfig[Any], given_cuts: list[int]
) -> None:
    """A request that was served elsewhere needs none."""
    outputs = run(events, given_cuts, config, restore=True)
    needy = [event for event in events if event.kind is not Kind.SERVED or not served_elsewhere(event)]
    assert_conserved(needy, [output for output in outputs if not isinstance(output, Version)])


def served_elsewhere(event: Event) -> bool:
    try:
        return bool(served_of(event))
    except ValueError:
        return False


@example(EXPIRES_WHILE_A_BATCH_IS_OPEN, [6 * MICROS + 1], CONFIG)
@given(streams(), cuts, configs)
def test_it_does_not_matter_how_the_stream_is_cut(
    events: list[Event], given_cuts: list[int], config: PrequentialConfig[Any]
) -> None:
    assert run(events, given_cuts, config) == run(events, config=config)


@given(streams(), cuts, configs)
def test_a_restored_loop_goes_on_as_if_nothing_had_happened(
    events: list[Event], given_cuts: list[int], config: PrequentialConfig[Any]
) -> None:
    assert run(events, given_cuts, config, restore=True) == run(events, config=config)


@given(streams(), configs)
def test_a_request_is_learned_as_often_as_it_must_be(events: list[Event], config: PrequentialConfig[Any]) -> None:
    """Once with its label; with a wait window, every request: by a label in time, or as a negative before a label."""
    outputs = run([event for event in events if event.kind in {Kind.REQUEST, Kind.FEEDBACK}], config=config)
    standings: dict[tuple[str, int], list[str]] = {}
    for learned in of(Learned, outputs):
        standings.setdefault((learned.request_id, learned.request_time), []).append(learned.observed)
    end = ["settled"] if config is SETTLING else []
    possible = [["label"], ["assumed", "corrected"], ["assumed", *end]] if config.wait_window else [["label"]]
    assert all(found in possible for found in standings.values())
    if config.wait_window:
        assert {learned.request_id for learned in of(Learned, outputs)} == {
            prediction.request_id for prediction in of(Prediction, outputs)
        }


def test_what_is_only_assumed_says_nothing_of_a_score() -> None:
    """Of two requests one gets a label; the other is assumed a negative: both are learned, one is in the metrics."""
    asked = [event(Kind.REQUEST, 0, who, who) for who in (0, 1)]
    outputs = run([*asked, event(Kind.FEEDBACK, 1, 0, 9)], config=replace(WAITING, publish_every=1000))
    (version,) = of(Version, outputs)
    labelled, assumed = of(Learned, outputs)
    assert (labelled.observed, assumed.observed, version.about["examples"]) == ("label", "assumed", 2)
    alone = pytest.approx(mean_log_loss([labelled.score], [1.0]))
    assert (version.about["loss"], version.about["metrics"]["log_loss"]) == (alone, alone)


def test_a_request_without_a_label_is_learned_when_its_window_ends() -> None:
    """Asked at 0 s, answered at 2 s, the window of 3 s ends, a label comes at 5 s; another one never has any."""
    config = replace(SETTLING, ttl=6.0)
    asked = [event(Kind.REQUEST, 0, who, who) for who in (0, 1)]
    outputs = run([*asked, event(Kind.FEEDBACK, 5, 0, 9)], config=config)
    assert [(made.request_id, made.label, made.observed, made.time // MICROS) for made in of(Learned, outputs)] == [
        ("0", 0.0, "assumed", 3),
        ("1", 0.0, "assumed", 3),
        ("0", 1.0, "corrected", 5),
        ("1", 0.0, "settled", 6),
    ]


@given(streams(), st.integers(0, 22 * MICROS))
def test_a_label_changes_nothing_that_was_asked_before_it_was_given(events: list[Event], t: int) -> None:
    """Flip every label whose feedback is later than t: predictions of requests up to t stay as they are."""
    flipped = [flip(made) if made.kind is Kind.FEEDBACK and made.time > t else made for made in events]
    ours, theirs = (
        [made for made in of(Prediction, run(given)) if made.request_time <= t] for given in (events, flipped)
    )
    assert ours == theirs


@given(streams(), st.integers(0, 22 * MICROS))
def test_a_label_changes_nothing_that_was_answered_before_it_was_given(events: list[Event], t: int) -> None:
    flipped = [flip(made) if made.kind is Kind.FEEDBACK and made.time > t else made for made in events]
    ours, theirs = ([made for made in of(Prediction, run(given)) if made.time <= t] for given in (events, flipped))
    assert ours == theirs


def flip(made: Event) -> Event:
    decoded = small.feedback.decode([made.payload])
    if not decoded.positions:
        return made
    record = {name: column[0] for name, column in decoded.columns.items()}
    return made._replace(payload=small.feedback.encode({**record, "label": 1.0 - record["label"]}))


@given(streams())
def test_versions_descend_from_one_another_and_count_what_was_learned(events: list[Event]) -> None:
    outputs = run(events)
    learned, examples, parent = of(Learned, outputs), 0, None
    for position, version in enumerate(outputs):
        if isinstance(version, Version):
            known = of(Learned, outputs[:position])
            assert (version.about["parent"], version.about["examples"]) == (parent, len(known))
            assert version.about["loss"] == pytest.approx(
                mean_log_loss([k.score for k in known], [k.label for k in known])
            )
            examples, parent = version.about["examples"], f"{version.about['epoch']}.{version.about['step']}"
    assert examples == len(learned)  # the last one knows everything


def test_the_weights_that_answer_know_what_was_given_before_the_batch_opened() -> None:
    """Request 0 at 0 s, its label at 1 s while the batch is open, due at 2 s; request 1 at 3 s opens another."""
    events = [event(Kind.REQUEST, 0, 0, 0), event(Kind.FEEDBACK, 1, 0, 1), event(Kind.REQUEST, 3, 1, 2)]
    outputs = run(events)
    first, second = of(Prediction, outputs)
    (learned,) = of(Learned, outputs)
    assert (first.version, first.time, first.reason) == ("0.0", 2 * MICROS, "delay")
    assert (learned.served_by, learned.version, learned.score) == ("0.0", "0.1", first.score)
    assert second.version == "0.1"


def test_what_is_given_while_a_batch_is_open_waits_for_it() -> None:
    """Request 0 is answered at 2 s. Request 1 opens a batch at 3 s; label 0 comes at 4 s; request 2 joins at 5 s."""
    asked = [event(Kind.REQUEST, second, who, who) for who, second in enumerate((0, 3, 5))]
    outputs = run(sorted([*asked, event(Kind.FEEDBACK, 4, 0, 9)]))
    assert [(made.request_id, made.version) for made in of(Prediction, outputs)] == [
        ("0", "0.0"),
        ("1", "0.0"),
        ("2", "0.0"),
    ]
    assert outputs.index(of(Learned, outputs)[0]) > outputs.index(of(Prediction, outputs)[2])


def test_a_request_of_the_very_instant_of_the_deadline_gets_in_and_feedback_does_not() -> None:
    """A batch that opens at 0 s closes at 2 s."""
    outputs = run([event(Kind.REQUEST, 0, 0, 0), event(Kind.REQUEST, 2, 1, 1), event(Kind.FEEDBACK, 2, 0, 2)])
    assert [(made.batch_size, made.version) for made in of(Prediction, outputs)] == [(2, "0.0")] * 2
    assert len(of(Learned, outputs)) == 1


@pytest.mark.parametrize(("request_at", "label_at"), [(0, 6), (6, 0)])
def test_an_open_batch_does_not_cut_the_ttl_short(request_at: int, label_at: int) -> None:
    """ttl 6 s; a batch that opens at 5 s closes at 7 s, when the 6 s are over."""
    events = [event(Kind.REQUEST, request_at, 0, 0), event(Kind.REQUEST, 5, 1, 1), event(Kind.FEEDBACK, label_at, 0, 2)]
    outputs = run(sorted(events))
    assert [made.request_id for made in of(Learned, outputs)] == ["0"]


def test_in_the_order_of_arrival_a_wrong_time_does_no_harm() -> None:
    """100 requests wait when a feedback claims to be a year older: their own labels are learned all the same."""
    loop, config = PrequentialLoop(ARRIVING), ARRIVING
    outputs = list(loop.advance([event(Kind.REQUEST, 0, who, who) for who in range(100)], MICROS, False))
    far = event(Kind.FEEDBACK, 31_536_000, 1000, 0)
    outputs += loop.advance([far], far.time + 1, False)
    loop, snapshot = PrequentialLoop(config), loop.snapshot()
    loop.load(snapshot)
    outputs += loop.advance([event(Kind.FEEDBACK, 5, who, who) for who in range(100)], 6 * MICROS, False)
    assert len(of(Learned, outputs)) == 100
    (unmatched,) = of(Failed, list(loop.advance([], END_OF_TIME)))
    assert (unmatched.request_id, unmatched.status) == ("1000", "unmatched")


def test_examples_behind_the_frontier_are_learned() -> None:
    """Whoever joined them knew of them in time; a live join puts them out when the watermark is past them."""
    loop = PrequentialLoop(CONFIG)
    outputs = list(loop.advance([], 9 * MICROS))
    outputs += loop.advance([event(Kind.SERVED, 3, 1, 0), event(Kind.EXAMPLE, 3, 0, 1)], 10 * MICROS)
    outputs += loop.advance([event(Kind.FEEDBACK, 4, 1, 0)], 10 * MICROS)
    assert [made.request_id for made in of(Learned, outputs)] == ["0"]
    assert [made.status for made in of(Failed, outputs)] == ["late"]  # plain feedback is


def test_a_batch_closes_when_it_is_full() -> None:
    events = [event(Kind.REQUEST, second, second, second) for second in (0, 1, 1, 1, 2)]
    made = [(one.request_id, one.time // MICROS, one.batch_size, one.reason) for one in of(Prediction, run(events))]
    assert [batch[1:] for batch in made] == [(1, 3, "size")] * 3 + [(3, 2, "delay")] * 2


@pytest.mark.parametrize(
    ("request_at", "label_at", "status"),
    [
        (10, 16, "learned"),
        (10, 17, "late"),
        (10, 22, "late"),
        (10, 23, "unmatched"),
        (10, 4, "learned"),
        (10, 3, "unmatched"),
    ],
)
def test_a_label_counts_up_to_the_ttl_after_and_before_its_request(request_at: int, label_at: int, status: str) -> None:
    """ttl 6 s: learned within it, late up to twice, unknown beyond; a label waits for its request as long."""
    events = sorted([event(Kind.REQUEST, request_at, 0, 0), event(Kind.FEEDBACK, label_at, 0, 1)])
    config = replace(CONFIG, policy=BatchPolicy(3, 0.0))
    outputs = run(events, config=config)
    fates = [record.status for record in of(Failed, outputs)] + ["learned"] * len(of(Learned, outputs))
    assert fates == [status]


def test_a_second_label_is_a_duplicate_and_changes_nothing() -> None:
    events = [event(Kind.REQUEST, 0, 0, 0), event(Kind.FEEDBACK, 3, 0, 1), event(Kind.FEEDBACK, 4, 0, 2, value=0.0)]
    later = event(Kind.REQUEST, 5, 0, 9)._replace(
        payload=small.requests.encode({"request_id": "x", "user": "u0", "item": "i0"})
    )
    outputs, alone = run([*events, later]), run([*events[:2], later])
    assert [record.status for record in of(Failed, outputs)] == ["duplicate"]
    assert of(Prediction, outputs) == of(Prediction, alone)


@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan"), float("inf")])
def test_a_label_that_is_no_probability_is_refused(value: float) -> None:
    outputs = run([event(Kind.REQUEST, 0, 0, 0), event(Kind.FEEDBACK, 3, 0, 1, value)])
    (record,) = of(Failed, outputs)
    assert record.status == "refused"
    assert "a label is 0 to 1, a weight finite and 0 or more" in record.reason


def test_what_comes_from_before_the_frontier_is_late_and_told_so() -> None:
    loop = PrequentialLoop(CONFIG)
    assert list(loop.advance([], 5 * MICROS)) == []
    late = [event(Kind.REQUEST, 4, 0, 0), event(Kind.FEEDBACK, 4, 0, 1)]
    outputs = list(loop.advance(late, 6 * MICROS))
    assert [(record.kind, record.status) for record in outputs] == [("request", "failed"), ("feedback", "late")]
    assert "arrived when everything up to event time 5.000000 s was already done" in outputs[0].reason


def test_a_frontier_does_not_move_back() -> None:
    loop = PrequentialLoop(CONFIG)
    for upto in (5, 3):
        list(loop.advance([], upto * MICROS))
    assert loop.frontier == 5 * MICROS


def test_fates_of_a_full_day_add_up() -> None:
    events = sorted(small.events(300, seed=3))
    counts = Counter(type(output).__name__ for output in run(events, config=replace(CONFIG, ttl=60.0)))
    assert (counts["Prediction"], counts["Learned"]) == (300, 300)


@pytest.mark.parametrize(
    ("setting", "text"),
    [
        (
            {"requests": small.feedback},
            r"the requests codec has fields \('request_id', 'label'\); it also needs \['user', 'item'\]",
        ),
        ({"feedback": small.requests}, r"the feedback codec .* also needs \['label'\]"),
        ({"ttl": 1.0}, r"ttl is 1.0 s; give at least the policy's max_delay, 2.0 s"),
        ({"wait_window": 7.0}, r"wait_window is 7.0 s; give seconds from 0 to the ttl, 6.0 s"),
        ({"publish_every": 0}, "publish_every is 0; give 1 example or more"),
    ],
)
def test_a_configuration_that_cannot_work_is_refused(setting: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        replace(CONFIG, **setting)


def restored(loop: PrequentialLoop[Any]) -> PrequentialLoop[Any]:
    again = PrequentialLoop(CONFIG)
    again.load(loop.snapshot())
    return again


def test_a_restored_loop_knows_what_is_late_and_what_was_learned() -> None:
    loop = PrequentialLoop(CONFIG)
    events = [event(Kind.REQUEST, 0, 1, 0), event(Kind.FEEDBACK, 1, 1, 1)]
    assert len(of(Learned, list(loop.advance(events, 4 * MICROS)))) == 1
    outputs = list(restored(loop).advance([event(Kind.REQUEST, 3, 2, 2), event(Kind.FEEDBACK, 5, 1, 3)], END_OF_TIME))
    assert [one.status for one in of(Failed, outputs)] == ["failed", "duplicate"]
    assert of(Learned, outputs) == []
