from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from contbatch.transforms.learning.copies import Copies
from contbatch.transforms.learning.evidence import Centre, Evidence
from contbatch.transforms.learning.gate import Gate, GatePolicy, Verdict
from contbatch.transforms.learning.learner import Arrays, Columns

Floats = NDArray[np.float64]

POLICY = GatePolicy(every=20, settle=20, refresh=40, alarm=18.0, warm_up=100, trial=8, probation=100)


class Slope:
    """Scores ``x`` as 0.5 + 0.4 * slope * x; learning adds each row's ``push`` to the slope.

    Its state is one number that is learned in place, and that it gives out and takes without a copy.
    """

    fields = ("x", "push")

    def __init__(self) -> None:
        self.predicted = 0

    def init(self) -> Floats:
        return np.array([1.0])

    def predict(self, state: Floats, columns: Columns) -> Floats:
        self.predicted += 1
        scores: Floats = 0.5 + 0.4 * state[0] * np.array(columns["x"], float)
        return scores

    def step(self, state: Floats, columns: Columns, labels: Floats, weights: Floats) -> Floats:
        state[0] += np.array(columns["push"], float) @ weights
        return state

    def export(self, state: Floats) -> Arrays:
        return {"slope": state}

    def load(self, arrays: Arrays) -> Floats:
        return arrays["slope"]


class Stream:
    """Feeds a gate one row a call: x is 1 and -1 in turn, and the label is 1 for x = 1, or the opposite."""

    def __init__(self, policy: GatePolicy | None = POLICY, slope: float = 1.0) -> None:
        self.gate = Gate(Slope(), policy, np.array([slope]))
        self.row = 0

    @property
    def slope(self) -> float:
        return float(self.gate.serving[0])

    def feed(self, flipped: bool = False, push: float = 0.0, **given: float) -> Verdict | None:
        x = given.get("x", 1.0 - 2 * (self.row % 2))
        self.row += 1
        columns = {"x": [x], "push": [push], "not read": ["a"]}
        label = given.get("label", float((x > 0) != flipped))
        served = given.get("served", float(self.gate._learner.predict(self.gate.serving, columns)[0]))
        return self.gate.learn(columns, np.array([label]), np.array([given.get("weight", 1.0)]), np.array([served]))

    def run(self, labels: int, flipped: bool = False, push: float = 0.0) -> list[tuple[int, Verdict]]:
        """Return the verdicts, each with how many of these labels there had been."""
        fed = ((count, self.feed(flipped, push)) for count in range(1, labels + 1))
        return [(count, verdict) for count, verdict in fed if verdict is not None]


def test_evidence_is_the_log_likelihood_of_bad_over_good() -> None:
    evidence = Evidence(count=1.0, mean=0.0, square=4.0)  # a deviation of 2

    evidence.test(-1.0, good=1.0, bad=-1.0)

    assert evidence.level == pytest.approx((2**2 - 0**2) / (2 * 2**2))  # (value - good)^2 less (value - bad)^2
    evidence.test(0.0, good=1.0, bad=-1.0)
    assert evidence.level == pytest.approx(0.5)  # as likely under both
    evidence.test(5.0, good=1.0, bad=-1.0)
    assert evidence.level == 0.0  # and not below: a healthy past excuses nothing


def test_no_single_label_is_an_alarm() -> None:
    evidence = Evidence()

    evidence.test(-1e9, good=1.0, bad=-1.0)

    assert evidence.level == 1.5


def test_evidence_knows_when_it_was_last_nothing_and_what_is_usual() -> None:
    evidence = Evidence()
    for at, value in enumerate([1.0, 3.0, -1.0], 1):
        evidence.add(value, good=1.0, bad=-1.0, at=at)

    assert evidence.since == 2
    assert evidence.mean == pytest.approx(1.0)
    assert evidence.square == pytest.approx(11 / 3)
    assert evidence.deviation == pytest.approx((11 / 3 - 1) ** 0.5)


def test_covariance_is_around_the_labels_before() -> None:
    centre = Centre()

    assert centre.covariance(1.0, 0.9) == 0.0  # nothing to compare with
    assert centre.covariance(0.0, 0.5) == pytest.approx((0 - 1) * (0.5 - 0.9))
    assert centre.covariance(1.0, 0.8) == pytest.approx((1 - 0.5) * (0.8 - 0.7))


def test_a_copy_is_good_once_enough_labels_after_it_were_healthy() -> None:
    copies = Copies(every=10, settle=20)
    assert not copies.is_due(9)
    assert copies.is_due(10)
    weights = np.array([1.0])

    copies.take(10, 3, {"slope": weights})
    weights[0] = 2.0
    copies.take(20, 5, {"slope": weights})

    assert copies.good(since=29) is None
    for since, step, slope in ((30, 3, 1.0), (39, 3, 1.0), (40, 5, 2.0), (30, None, None)):
        copy = copies.good(since)
        assert (copy and copy.step, copy and copy.arrays["slope"][0]) == (step, slope)


def test_weights_that_are_not_numbers_are_not_copied() -> None:
    copies = Copies(every=10, settle=0)

    copies.take(10, 3, {"slope": np.array([1.0, math.nan])})

    assert copies.good(since=100) is None
    assert not copies.is_due(19)


def test_healthy_weights_serve_as_soon_as_they_have_learned() -> None:
    stream = Stream()

    for count in range(1, 301):
        assert stream.feed(push=0.001) is None
        assert stream.slope == pytest.approx(1 + count * 0.001)
        assert stream.gate.serving_step == stream.gate.step == count


def test_flipped_labels_bring_back_weights_from_before_them() -> None:
    stream = Stream()
    assert stream.run(200, push=0.001) == []

    ((count, verdict),) = stream.run(12, flipped=True, push=-0.01)

    # Each label counts 1.5 nats at most, and 12 of them are 18. Rows are held against the good weights 32 at a time,
    # so that all is known to have been well up to label 192, and the newest copy with 20 such labels after it is 160.
    assert count == 12
    assert (verdict.action, verdict.step) == ("rollback", 160)
    assert verdict.why == "the labels contradict the scores: 18.0 nats in the last 12 labels"
    assert stream.slope == pytest.approx(1.160)
    assert (stream.gate.step, stream.gate.serving_step) == (212, 160)


def test_a_copy_that_did_not_settle_is_not_gone_back_to() -> None:
    stream = Stream()
    stream.run(192)
    assert stream.run(11, flipped=True, push=-0.01) == []  # the copy of label 200 has learned eight of these

    verdict = stream.feed(flipped=True)

    assert verdict is not None
    assert verdict.step == 160  # 180 has only 12 healthy labels after it
    assert stream.slope == 1.0


def test_weights_that_go_wrong_on_healthy_labels_are_found_beside_the_good_ones() -> None:
    stream = Stream()
    stream.run(192)
    stream.feed(push=-1.0)  # all scores are 0.5 from here: they contradict no label

    ((count, verdict),) = stream.run(40)

    assert count == 31  # rows are held against the good weights 32 at a time: 193 to 224
    assert verdict.action == "rollback"
    assert verdict.why.startswith("the live weights are worse than the last good ones: ")
    assert stream.slope == 1.0


def test_there_is_no_alarm_before_what_is_usual_is_known() -> None:
    stream = Stream()

    assert stream.run(100, flipped=True, push=0.001) == []


def test_good_weights_stand_still_until_the_labels_pass_two_trials() -> None:
    stream = Stream()
    stream.run(200)
    stream.run(12, flipped=True)

    assert stream.run(40, flipped=True, push=-0.1) == []  # five failed trials of 8
    assert stream.slope == 1.0

    ((count, verdict),) = stream.run(16, push=0.01)
    assert (count, verdict.action, verdict.step) == (16, "resume", 268)
    assert stream.slope == pytest.approx(1.08)  # what the second trial learned, and nothing else
    assert stream.gate.serving_step == stream.gate.step == 268
    assert stream.run(100, push=0.001) == []


def test_one_passed_trial_between_failed_ones_does_not_count() -> None:
    stream = Stream()
    stream.run(200)
    stream.run(12, flipped=True)

    for _ in range(4):
        assert stream.run(8) == []
        assert stream.run(8, flipped=True) == []


def test_a_shadow_that_is_worse_on_healthy_labels_does_not_serve() -> None:
    stream = Stream()
    stream.run(200)
    stream.run(12, flipped=True)

    assert stream.run(200, push=-0.5) == []
    assert stream.slope == 1.0
    ((count, _),) = stream.run(16)
    assert count == 16


def test_a_short_trial_fails_on_the_mean() -> None:
    stream = Stream(replace(POLICY, trial=4))
    stream.run(200)
    stream.run(12, flipped=True)

    assert stream.run(80, push=-1.0) == []  # at most 1.5 nats each: never 9


def test_a_trial_that_begins_badly_fails_however_it_ends() -> None:
    stream = Stream(replace(POLICY, trial=16), slope=0.25)  # a squared error of 0.4^2
    stream.run(200)
    stream.run(12, flipped=True)

    stream.feed(push=-0.25)
    stream.run(5)  # 0.5^2: with the next label, six times worse
    stream.feed(push=1.25)
    stream.run(9)  # 0: nine times better, and better on the whole

    assert [count for count, _ in stream.run(40)] == [32]


def test_a_change_that_lasts_is_accepted_after_the_probation() -> None:
    stream = Stream()
    stream.run(200)
    ((_, rollback),) = stream.run(12, flipped=True)  # at label 212

    verdicts = stream.run(104, flipped=True, push=-0.2)

    # Trials of 8 start afresh; the one that ends 104 labels after the rollback is the first beyond the probation. Its
    # shadow has learned 8 labels.
    ((count, verdict),) = verdicts
    assert rollback.action == "rollback"
    assert (count, verdict.action, verdict.step) == (104, "accept", 316)
    assert stream.slope == pytest.approx(1 - 8 * 0.2)
    assert stream.run(40, flipped=True) == []


def test_after_a_change_what_is_usual_is_learned_anew() -> None:
    stream = Stream()
    stream.run(200)
    stream.run(12, flipped=True)
    stream.run(104, flipped=True, push=-0.2)  # accepted at the last one

    assert stream.run(100) == []  # it does not fit, but for a warm-up nobody knows
    stream.gate.restore(np.array([-1.0]), 500)
    stream.run(300, flipped=True)  # the covariance becomes positive
    assert [verdict.action for _, verdict in stream.run(40)] == ["rollback"]


@pytest.mark.parametrize("push", [0.0, 0.1])
def test_a_shadow_that_learns_nothing_of_a_change_is_never_accepted(push: float) -> None:
    stream = Stream()
    stream.run(200)
    stream.run(12, flipped=True)

    assert stream.run(400, flipped=True, push=push) == []


@pytest.mark.parametrize("given", [{"label": math.nan}, {"weight": math.inf}, {"x": math.nan, "label": 1.0}])
def test_rows_that_are_not_finite_are_counted_and_not_learned(given: dict[str, float]) -> None:
    stream = Stream()
    stream.run(50)

    assert stream.feed(push=1.0, **given) is None

    assert (stream.gate.step, stream.slope) == (51, 1.0)


def test_of_a_batch_only_the_rows_that_are_not_finite_are_left_out() -> None:
    gate = Gate(Slope(), POLICY)
    columns = {"x": [1.0, 1.0, -1.0], "push": [1.0, 2.0, 4.0]}

    gate.learn(columns, np.array([1.0, math.nan, 0.0]), np.ones(3), np.array([0.9, 0.9, 0.1]))

    assert gate.serving[0] == 1.0 + 1.0 + 4.0


def test_live_weights_that_are_not_finite_are_rolled_back_at_the_first_label_of_theirs() -> None:
    stream = Stream()
    stream.run(50)
    stream.feed(push=math.nan)

    verdict = stream.feed()

    assert verdict == Verdict("rollback", 20, "the live weights give scores that are not finite")
    assert stream.slope == 1.0
    assert [verdict.action for _, verdict in stream.run(16)] == ["resume"]


def test_live_weights_that_are_not_finite_are_found_though_their_labels_are_late() -> None:
    stream = Stream()
    stream.run(64)
    stream.feed(push=math.nan, served=0.9, x=1.0)

    verdicts = [stream.feed(served=0.5 + 0.4 * x, x=x) for x in [-1.0, 1.0] * 16]

    assert [verdict.action for verdict in verdicts if verdict] == ["rollback"]
    assert stream.slope == 1.0


def test_a_row_that_is_not_finite_when_it_is_learned_leaves_the_evidence_whole() -> None:
    stream = Stream()
    stream.run(150)
    stream.feed(x=math.nan, label=1.0, served=0.9)
    stream.run(41)  # to label 192
    stream.feed(push=-1.0)

    assert [verdict.action for _, verdict in stream.run(31)] == ["rollback"]


def test_a_shadow_that_is_not_finite_does_not_serve() -> None:
    stream = Stream()
    stream.run(200)
    stream.run(12, flipped=True)

    assert stream.run(80, push=math.nan) == []
    assert stream.slope == 1.0


def test_without_a_policy_the_gate_is_the_learner() -> None:
    stream, plain = Stream(None), np.array([1.0])
    learner = Slope()
    stream.gate = gate = Gate(learner, None)

    for push in (1.0, math.nan, -3.0):
        columns = {"x": [1.0], "push": [push]}
        assert gate.learn(columns, np.array([0.0]), np.ones(1), np.array([math.nan])) is None
        plain = learner.step(plain, columns, np.array([0.0]), np.ones(1))

    np.testing.assert_array_equal(gate.serving, plain)
    assert learner.predicted == 0
    assert list(gate.export()) == ["live/slope", "counts"]
    assert gate.step == gate.serving_step == 3


def test_weights_put_in_serve_and_are_gone_back_to() -> None:
    stream = Stream()
    stream.run(200)
    stream.run(12, flipped=True)

    stream.gate.restore(np.array([0.5]), 77)

    assert (stream.slope, stream.gate.step, stream.gate.serving_step) == (0.5, 77, 77)
    ((_, verdict),) = stream.run(12, flipped=True, push=0.01)
    assert (verdict.action, verdict.step) == ("rollback", 77)
    assert stream.slope == 0.5


def test_a_gate_can_be_put_in_front_of_a_learner_and_taken_away() -> None:
    stream = Stream()
    stream.run(200)
    stream.run(12, flipped=True)
    stream.run(3, push=0.1)

    without = Gate(Slope(), None)
    without.load(stream.gate.export())
    assert (without.serving[0], without.step) == (1.0, 215)

    gated = Gate(Slope(), POLICY)
    gated.load(without.export())
    assert (gated.serving[0], gated.step, gated.serving_step) == (1.0, 215, 215)


calls = st.lists(
    st.tuples(
        st.integers(1, 40),
        st.booleans(),
        st.sampled_from([0.0, 0.01, -0.1, -1.0, math.nan]),
        st.booleans(),
    ),
    max_size=12,
)


@given(calls)
@settings(max_examples=60, deadline=None)
def test_an_export_at_any_point_changes_no_later_verdict(calls: list[tuple[int, bool, float, bool]]) -> None:
    policy = GatePolicy(every=10, settle=20, refresh=40, warm_up=50, trial=8, probation=40)
    one, other = Stream(policy), Stream(policy)
    for stream in (one, other):
        stream.run(90, push=0.001)
    for labels, flipped, push, is_moved in calls:
        if is_moved:
            arrays = {name: array.copy() for name, array in other.gate.export().items()}
            other.gate = Gate(Slope(), policy)
            other.gate.load(arrays)
        assert one.run(labels, flipped, push) == other.run(labels, flipped, push)
        np.testing.assert_array_equal(one.gate.serving, other.gate.serving)
        assert one.gate.serving_step == other.gate.serving_step
    ours, theirs = one.gate.export(), other.gate.export()
    assert ours.keys() == theirs.keys()
    for name, array in ours.items():
        np.testing.assert_array_equal(array, theirs[name])


def test_an_export_changes_nothing_in_the_gate_that_is_exported() -> None:
    one, other = Stream(), Stream()
    for _ in range(300):
        one.feed(push=0.001)
        other.feed(push=0.001)
        other.gate.export()  # also while rows wait for their good scores, and the good weights change

    ours, theirs = one.gate.export(), other.gate.export()
    assert ours["good/slope"] > 1.0
    for name, array in ours.items():
        np.testing.assert_array_equal(array, theirs[name])


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({"every": 0}, "every is 0 labels; give 1 or more"),
        ({"settle": -1}, "settle is -1 labels; give 0 or more"),
        ({"trial": 0}, "trial is 0 labels; give 1 or more"),
        ({"alarm": math.inf}, "alarm is inf nats; give a finite number above 0, such as 18"),
    ],
)
def test_a_policy_out_of_range_says_what_is_allowed(given: dict[str, Any], why: str) -> None:
    with pytest.raises(ValueError, match=r"; give ") as raised:
        GatePolicy(**given)
    assert str(raised.value) == why
