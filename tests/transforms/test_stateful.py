"""The timer contract of the stateful DoFns: any order of chunks, firings and restarts, right or spurious."""

from __future__ import annotations

import math
from collections import Counter
from functools import partial
from typing import Any

import pytest
from apache_beam.transforms.window import IntervalWindow
from hypothesis import given
from hypothesis import strategies as st

from contbatch.transforms import BatchPolicy, Reason
from contbatch.transforms.event_time import EventTimeBatchFn
from contbatch.transforms.events import END_OF_TIME, MICROS
from contbatch.transforms.stateful import BoundedBatchFn, RealTimeBatchFn
from tests.transforms.places import Place

LIVE = partial(EventTimeBatchFn, bounded=False)
REPLAYED = partial(EventTimeBatchFn, bounded=True)
WINDOW = IntervalWindow(0, 60)

times = st.lists(st.integers(0, 59_999_999).map(lambda micros: micros / MICROS), min_size=1, max_size=6)
steps = st.lists(
    st.one_of(
        times.map(lambda values: ("push", values)),
        st.floats(0.0, 3.0).map(lambda seconds: ("advance", seconds)),
        st.floats(0.0, 60.0).map(lambda seconds: ("watermark", seconds)),
        st.sampled_from(["bundle", "restart", "again", "spurious"]).map(lambda what: (what, None)),
    ),
    max_size=25,
)
policies = st.one_of(
    st.builds(BatchPolicy, st.integers(1, 5), st.sampled_from([0.0, 0.0003, 0.5, 1.0, math.inf])),
    st.builds(
        partial(BatchPolicy, capacity=6),
        st.integers(1, 5),
        st.sampled_from([0.5, math.inf]),
        overflow=st.sampled_from(["block", "shed"]),
    ),
)


def play(place: Place, plan: list[tuple[str, Any]]) -> None:
    """Take the steps; elements behind the watermark are moved up to it, as their source promised."""
    for what, value in plan:
        if what == "push" and place.watermark < place.window.max_timestamp().micros:
            place.push(max(time, place.watermark / MICROS) for time in value)
        elif what == "advance":
            place.advance(value)
        elif what == "watermark":
            place.advance_watermark(value)
        elif what == "bundle":
            place.new_bundle()
        elif what == "restart":
            place.restart()
        elif what in {"again", "spurious"}:
            fired_before(place, what)
        assert not set(place.out().values()) - {1}
        assert place.waiting <= place.policy.most_waiting
    place.finish()


def fired_before(place: Place, what: str) -> None:
    """Fire a timer once more where it stood before, or one that stands nowhere, now."""
    for name, timer in place.timers.items():
        if what == "again" and timer.sets:
            place.fire(name, timer.sets[0])
        elif what == "spurious" and timer.real_time:
            place.fire(name, round(place.clock() * MICROS))


def check(place: Place, policy: BatchPolicy) -> None:
    assert place.out() == Counter(place.pushed)
    assert all(len(batch) <= policy.max_size for batch in place.batches)
    assert not place.bag
    assert place.cell.value is None
    # nothing is armed: a REAL_TIME timer would spin at the end of input on Flink
    assert all(timer.time == END_OF_TIME for timer in place.timers.values())
    assert policy.overflow == "shed" or not place.shed


@given(steps, policies, st.booleans(), st.sampled_from([WINDOW, None]))
def test_live_on_the_clock_everything_leaves_once(
    plan: list[tuple[str, Any]], policy: BatchPolicy, idle_timer: bool, window: Any
) -> None:
    place = Place(RealTimeBatchFn, policy, window, idle_timer)
    play(place, plan)
    check(place, policy)


@given(steps, policies, st.sampled_from([LIVE, REPLAYED]), st.sampled_from([WINDOW, None]))
def test_in_event_time_everything_leaves_once(
    plan: list[tuple[str, Any]], policy: BatchPolicy, make: Any, window: Any
) -> None:
    policy = BatchPolicy(**{**vars(policy), "time_domain": "event_time"})
    place = Place(make, policy, window)
    play(place, [step for step in plan if make is LIVE or step[0] != "watermark"])
    check(place, policy)


@given(steps, policies, st.sampled_from([WINDOW, None]))
def test_on_bounded_input_everything_leaves_once_and_only_the_last_batch_is_not_full(
    plan: list[tuple[str, Any]], policy: BatchPolicy, window: Any
) -> None:
    place = Place(BoundedBatchFn, policy.unhurried(), window)
    play(place, [step for step in plan if step[0] not in {"watermark", "again"}])
    check(place, policy.unhurried())
    assert all(len(batch) == policy.max_size for batch in place.batches[:-1])


def test_what_comes_after_a_firing_in_the_same_bundle_waits_anew() -> None:
    place = Place(BoundedBatchFn, BatchPolicy(3).unhurried())
    place.push([1.0, 2.0])
    place.fire("last", 1 * MICROS)
    place.push([3.0])
    assert [list(batch) for batch in place.batches] == [[0, 1]]
    assert place.timers["last"].time == 3 * MICROS
    place.finish()
    assert [list(batch) for batch in place.batches] == [[0, 1], [2]]


def test_the_earliest_element_holds_the_watermark_for_those_before_it() -> None:
    """The timer was set by the element of 20 s; that of 10 s is older, and has to set it again."""
    place = Place(RealTimeBatchFn, BatchPolicy(8, 5.0))
    place.push([20.0])
    place.push([10.0])
    assert place.timers["due"].hold == 10 * MICROS
    place.advance_watermark(30.0)
    assert place.output == 10 * MICROS


@pytest.mark.parametrize(
    ("delay", "times", "left_at"),
    [
        (1.0, (3.0, 5.0), 3.0),  # the timer has held the watermark at 3 s
        (1.0, (5.0, 4.5), 4.5),  # the element itself is the earliest, and holds it while it is processed
        (math.inf, (3.0, 5.0), 5.0),  # nothing has held it: it stands at 4 s
    ],
)
def test_a_batch_leaves_at_its_earliest_time_that_is_not_behind_the_watermark(
    delay: float, times: tuple[float, float], left_at: float
) -> None:
    place = Place(RealTimeBatchFn, BatchPolicy(2, delay))
    place.push(times[:1])
    place.advance_watermark(4.0)
    place.push(times[1:])
    assert [list(batch) for batch in place.batches] == [[0, 1]]
    assert place.left_at == [left_at]


def test_a_firing_that_was_overtaken_does_nothing() -> None:
    """The first two fill a batch before their timer, at 1,001 s; it fires all the same, when the third has 0.9 s."""
    place = Place(RealTimeBatchFn, BatchPolicy(2, 1.0))
    place.push([1.0])
    place.push([2.0])
    place.clock.advance(0.9)
    place.push([3.0])
    place.fire("due", 1_001 * MICROS)
    assert [list(batch) for batch in place.batches] == [[0, 1]]
    place.advance(1.0)
    assert [(list(batch), batch.reason) for batch in place.batches[1:]] == [([2], Reason.DELAY)]


def test_a_delay_that_has_passed_is_seen_without_its_timer() -> None:
    """Under load Prism fires no REAL_TIME timer: the element that comes after the delay releases the one before."""
    place = Place(RealTimeBatchFn, BatchPolicy(8, 1.0), idle_timer=True)
    place.push([1.0])
    place.clock.advance(1.5)
    place.push([2.0])
    assert [(list(batch), batch.reason) for batch in place.batches] == [([0, 1], Reason.DELAY)]


def test_an_idle_timer_is_moved_once_in_a_bundle_and_stands_three_tenths_ahead() -> None:
    place = Place(RealTimeBatchFn, BatchPolicy(8, 0.1), idle_timer=True)
    for _ in range(3):
        place.push([1.0])
        place.clock.advance(0.01)
    assert place.timers["due"].sets == [1_000_300_000]
    place.new_bundle()
    place.push([1.0])
    assert place.timers["due"].sets == [1_000_300_000, 1_000_330_000]


def test_an_idle_timer_is_set_again_for_what_comes_after_its_firing_in_the_same_bundle() -> None:
    place = Place(RealTimeBatchFn, BatchPolicy(8, 0.5), idle_timer=True)
    place.push([1.0])
    place.advance(0.5)
    place.push([1.0])
    place.advance(0.5)
    assert [list(batch) for batch in place.batches] == [[0], [1]]


def test_an_idle_timer_is_set_for_the_first_element_that_has_a_deadline() -> None:
    place = Place(RealTimeBatchFn, BatchPolicy(8, math.inf, deadline_fn=float), idle_timer=True)
    for size in (1, 2, 4, 8) * 6:
        place.fn._cost.observe(size, 0.010 + 0.001 * size)
    place.push([1.0])
    place.push([1.0], deadlines=[1_005.0])
    assert 1_004.9 < place.timers["due"].time / MICROS < 1_005.0


def test_a_full_batch_disarms_the_timer_that_would_hold_the_watermark() -> None:
    place = Place(RealTimeBatchFn, BatchPolicy(2, 1.0))
    place.push([1.0])
    place.push([2.0])
    assert place.timers["due"].time == END_OF_TIME
    place.advance_watermark(30.0)
    assert place.output == 30 * MICROS


def test_elsewhere_the_timer_stands_at_the_delay_and_is_not_set_again() -> None:
    place = Place(RealTimeBatchFn, BatchPolicy(8, 0.1))
    for _ in range(3):
        place.push([1.0])
        place.clock.advance(0.01)
    assert place.timers["due"].sets == [1_000_100_000]


@pytest.mark.parametrize("passed", [0.0, 1.0001])
def test_a_firing_counts_whatever_the_clock_of_the_worker_says(passed: float) -> None:
    """The timer, asked for 1,001.0005 s, fires at 1,001 s: runners cut it to milliseconds. Prism's clock is its own."""
    place = Place(RealTimeBatchFn, BatchPolicy(8, 1.0005))
    place.push([1.0])
    place.clock.advance(passed)
    place.fire("due", 1_001 * MICROS)
    assert [list(batch) for batch in place.batches] == [[0]]


def test_the_end_of_a_window_disarms_the_other_timer() -> None:
    place = Place(RealTimeBatchFn, BatchPolicy(8, 3_600.0), WINDOW)
    place.push([1.0, 2.0])
    place.advance_watermark(60.0)
    assert [(list(batch), batch.reason) for batch in place.batches] == [([0, 1], Reason.WINDOW_END)]
    place.advance(3_600.0)
    assert place.firings == 1


def test_a_far_step_of_the_watermark_is_few_firings() -> None:
    """60 batches of 1 s and one element each; firings are an eighth of the delay apart at the closest."""
    place = Place(LIVE, BatchPolicy(8, 0.5, time_domain="event_time"))
    place.push(range(60))
    place.finish()
    assert [list(batch) for batch in place.batches] == [[number] for number in range(60)]
    assert place.firings <= 60


@pytest.mark.parametrize("delay", [3_600.0, math.inf])
def test_in_event_time_a_full_batch_does_not_wait_for_its_delay(delay: float) -> None:
    """500 in 50 s: each second completes a batch of ten."""
    place = Place(LIVE, BatchPolicy(10, delay, time_domain="event_time"))
    for second in range(50):
        place.push([second + tenth / 10 for tenth in range(10)])
        place.advance_watermark(second + 1)
    assert [list(batch) for batch in place.batches] == [list(range(k, k + 10)) for k in range(0, 500, 10)]


def test_in_event_time_the_most_weight_does_not_wait_either() -> None:
    """Weights 4 each, and 10 at most: the third closes a batch of two."""
    policy = BatchPolicy(10, math.inf, max_weight=10.0, weight_fn=float, time_domain="event_time")
    place = Place(LIVE, policy)
    place.push([1.0, 2.0, 3.0], weights=[4.0] * 3)
    place.advance_watermark(6.0)
    assert [(list(batch), batch.reason) for batch in place.batches] == [([0, 1], Reason.WEIGHT)]


def test_a_chunk_beyond_the_capacity_is_released_early_as_far_as_it_has_to_be() -> None:
    place = Place(LIVE, BatchPolicy(4, math.inf, capacity=20, time_domain="event_time"))
    place.push(float(number) for number in range(512))
    assert place.waiting <= 20
    place.finish()
    assert place.out() == Counter(place.pushed)


def test_what_comes_after_a_firing_that_found_nothing_has_a_timer() -> None:
    """Six of one instant are two too many, and leave together; the timer of the first, past 2 s, still fires."""
    place = Place(LIVE, BatchPolicy(4, 1.0, capacity=4, time_domain="event_time"))
    place.push([1.0])
    place.push([1.0] * 5)
    assert place.waiting == 0
    place.advance_watermark(3.0)
    place.push([5.0])
    place.advance_watermark(9.0)
    assert [list(batch) for batch in place.batches] == [[0, 1, 2, 3], [4, 5], [6]]


def test_another_policy_takes_up_what_waits() -> None:
    """Under the first nothing is due. The second has deadlines, which those that wait do not have; the element that
    has one runs alone, as nothing is known of the costs yet."""
    place = Place(RealTimeBatchFn, BatchPolicy(8, math.inf))
    place.push([1.0, 2.0, 3.0])
    place.change(BatchPolicy(2, math.inf, latency_slo=5.0))
    place.push([4.0], deadlines=[1_005.0])
    assert [list(batch) for batch in place.batches] == [[3], [0, 1]]
    place.finish()
    assert place.out() == Counter(place.pushed)


def test_a_lower_capacity_loses_nothing_of_what_waits() -> None:
    place = Place(RealTimeBatchFn, BatchPolicy(60, math.inf, capacity=100))
    place.push([1.0] * 50)
    place.change(BatchPolicy(5, math.inf, capacity=6))
    place.finish()
    assert place.out() == Counter(place.pushed)


def test_the_least_urgent_are_shed() -> None:
    place = Place(RealTimeBatchFn, BatchPolicy(4, 9.0, capacity=4, overflow="shed"))
    place.push([1.0] * 3)
    place.push([1.0] * 3, priorities=[0.0, 2.0, 1.0])
    assert [list(batch) for batch in place.shed] == [[3, 5]]
    assert [sorted(batch) for batch in place.batches] == [[0, 1, 2, 4]]


def test_what_batches_cost_is_learned_from_what_runs_behind() -> None:
    """10 ms and 1 ms each: 40 fit into 50 ms, and the first batch, of which nothing is known, is one."""
    place = Place(BoundedBatchFn, BatchPolicy(100, latency_slo=0.05).unhurried())
    place.seconds = lambda size: 0.010 + 0.001 * size
    place.push([1.0] * 400)
    place.finish()
    sizes = [len(batch) for batch in place.batches]
    assert sizes[0] == 1
    assert 35 <= max(sizes) <= 40


def test_more_seconds_of_work_than_may_wait_are_released() -> None:
    """100 have taken 0.1 s; of 50 ms, 40 wait, and 60 do not."""
    place = Place(RealTimeBatchFn, BatchPolicy(100, math.inf, capacity_seconds=0.05))
    place.seconds = lambda size: 0.001 * size
    place.push([1.0] * 100)
    place.push([1.0] * 40)
    assert [len(batch) for batch in place.batches] == [100]
    place.push([1.0] * 20)
    assert [(len(batch), batch.reason) for batch in place.batches[1:]] == [(60, Reason.CAPACITY)]


def test_what_the_end_of_a_window_cuts_short_says_so() -> None:
    """The batch of 58 s would be open until 63 s."""
    place = Place(LIVE, BatchPolicy(8, 5.0, time_domain="event_time"), WINDOW)
    place.push([50.0, 58.0])
    place.finish()
    assert [(list(batch), batch.reason) for batch in place.batches] == [([0], Reason.DELAY), ([1], Reason.WINDOW_END)]


@pytest.mark.parametrize("window", [WINDOW, IntervalWindow(0, 0.0005)])
def test_a_window_that_ends_between_milliseconds_ends(window: Any) -> None:
    """Its last microsecond, cut to milliseconds, is before the end that the DoFn asked for."""
    place = Place(LIVE, BatchPolicy(8, math.inf, time_domain="event_time"), window)
    place.push([0.0001])
    place.advance_watermark(60.0)
    assert [(list(batch), batch.reason) for batch in place.batches] == [([0], Reason.WINDOW_END)]
