"""ttl is 10 us, the wait window 4: a label is in time up to 4 after its request, corrects up to 10, is late beyond."""

from __future__ import annotations

import pytest

from contbatch.transforms import Event, Kind
from contbatch.transforms.events import MICROS
from contbatch.transforms.learning.join import Label, Refusal, Terms, Ticket, Unusable, read_labels
from contbatch.transforms.learning.observed import Observed
from contbatch.transforms.records import Example, Served

PLAIN = Terms(10 / MICROS)
WAITS = Terms(10 / MICROS, 4 / MICROS)
SETTLES = Terms(10 / MICROS, 4 / MICROS, settles=True)


def label(time: int, name: str = "", row: int = 0) -> Label:
    return Label(Event(time, Kind.FEEDBACK, row, b"\xff"), "a", 1.0, 1.0, name)


def served(time: int = 100) -> Served:
    return Served(b"\x00\xff", "a", time, 0.5, "0.1")


def example(time: int, observed: Observed = Observed.LABEL, value: float = 1.0, name: str = "") -> Example:
    return Example(served(), value, 1.0, name, observed, time)


def ticket() -> Ticket:
    made = Ticket()
    made.serve(served())
    return made


@pytest.mark.parametrize(("time", "fate"), [(110, [example(110)]), (111, Refusal.LATE), (120, Refusal.LATE)])
def test_a_label_is_learned_up_to_the_ttl(time: int, fate: object) -> None:
    assert ticket().match(label(time), PLAIN) == fate


def test_a_second_label_of_one_name_is_a_duplicate_even_a_late_one() -> None:
    made = ticket()
    assert made.match(label(105), PLAIN) == [example(105)]
    assert made.match(label(106), PLAIN) is Refusal.DUPLICATE
    assert made.match(label(115), PLAIN) is Refusal.DUPLICATE


def test_a_request_may_have_a_click_and_then_a_purchase() -> None:
    made = ticket()
    assert made.match(label(101, "click"), WAITS) == [example(101, name="click")]
    assert made.match(label(108, "purchase"), WAITS) == [example(108, name="purchase")]  # it was never a negative
    assert made.match(label(109, "click"), WAITS) is Refusal.DUPLICATE
    assert made.next_due(WAITS) is None


def test_a_label_before_its_request_waits() -> None:
    made = Ticket()
    assert made.match(label(99), PLAIN) is None
    assert made.serve(served()) == [label(99)]
    assert made.match(label(99), PLAIN) == [example(99)]


@pytest.mark.parametrize(("time", "fate"), [(90, [example(90)]), (89, Refusal.UNMATCHED)])
def test_a_label_waits_no_longer_than_the_ttl_in_whatever_order_they_come(time: int, fate: object) -> None:
    assert ticket().match(label(time), PLAIN) == fate


def test_the_same_id_again_does_not_replace_what_was_served() -> None:
    made = ticket()
    made.serve(served(103))
    assert made.served == served(100)


def test_without_a_label_in_the_window_it_is_a_negative_that_a_label_corrects_once() -> None:
    made = ticket()
    assert made.next_due(WAITS) == 104
    assert made.fall_due(103, WAITS) is None
    assert made.fall_due(104, WAITS) == example(104, Observed.ASSUMED, 0.0)
    assert made.fall_due(104, WAITS) is None
    assert made.next_due(WAITS) is None
    assert made.match(label(107, "click"), WAITS) == [example(107, Observed.CORRECTED, name="click")]
    assert made.match(label(108, "buy"), WAITS) == [example(108, Observed.LABEL, name="buy")]


def test_a_label_at_the_end_of_the_window_is_in_time() -> None:
    made = ticket()
    assert made.match(label(104), WAITS) == [example(104)]
    assert made.fall_due(104, WAITS) is None


def test_a_label_that_comes_before_the_negative_it_corrects_is_learned_after_it() -> None:
    """The label is at 105, the window ended at 104, and nobody has looked in between."""
    both = [example(104, Observed.ASSUMED, 0.0), example(105, Observed.CORRECTED)]
    made = ticket()
    assert made.match(label(105), WAITS) == both
    assert made.fall_due(104, WAITS) is None


def test_a_label_in_time_that_arrives_after_the_negative_corrects_it() -> None:
    made = ticket()
    made.fall_due(104, WAITS)
    assert made.match(label(103), WAITS) == [example(103, Observed.CORRECTED)]


def test_a_request_without_any_label_is_settled_at_the_ttl() -> None:
    made = ticket()
    made.fall_due(104, SETTLES)
    assert made.next_due(SETTLES) == 110
    assert made.fall_due(110, SETTLES) == example(110, Observed.SETTLED, 0.0)
    assert made.next_due(SETTLES) is None
    assert made.match(label(109), SETTLES) is Refusal.LATE  # it is learned already as a negative for good


def test_a_request_with_a_label_is_not_settled() -> None:
    made = ticket()
    made.match(label(107), SETTLES)
    assert made.next_due(SETTLES) is None


def test_without_its_features_nothing_can_be_learned() -> None:
    made = ticket()
    made.strip()
    assert made.served == served()._replace(payload=b"")
    assert made.match(label(105), PLAIN) is Refusal.LATE


def test_what_cannot_be_a_label_says_why() -> None:
    events = [label(1, row=row).event for row in range(6)]
    columns = {
        "request_id": ["a"] * 6,
        "label": [0.5, 7.0, float("nan"), 1.0, None, 1.0],
        "weight": [2.0, 1.0, 1.0, -1.0, 1.0, None],
    }
    good, *bad = read_labels(columns, events)
    assert good == Label(events[0], "a", 0.5, 2.0)
    assert [type(one) for one in bad] == [Unusable] * 5
    assert "label 7.0 with weight 1.0; a label is 0 to 1" in str(bad[0])


@pytest.mark.parametrize(
    ("terms", "message"),
    [
        ({"ttl": -1.0}, "ttl is -1.0 s; give a finite number"),
        ({"ttl": 5.0, "wait_window": 6.0}, "wait_window is 6.0 s; give seconds from 0 to the ttl, 5.0 s"),
        ({"ttl": 5.0, "settles": True}, "give a wait_window"),
    ],
)
def test_terms_that_make_no_sense_are_refused(terms: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Terms(**terms)  # type: ignore[arg-type]
