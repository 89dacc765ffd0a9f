from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from contbatch.transforms.learning.delay_rules import RULES, TRUST, Rows, targets
from contbatch.transforms.learning.delayed import DelayedLabels, DelayedState
from contbatch.transforms.learning.learner import Arrays, Columns
from contbatch.transforms.learning.observed import Observed
from contbatch.transforms.learning.sparse import SparseLearner
from contbatch.transforms.learning.statistics import Standardized

LABEL, ASSUMED, CORRECTED, SETTLED = Observed

Floats = np.ndarray[Any, np.dtype[np.float64]]

chance = st.floats(0.02, 0.98)


class Recorder:
    """Predicts the number it is; notes the rows it learns, one tuple each."""

    fields = ("x",)

    def __init__(self, score: float) -> None:
        self.score = score

    def init(self) -> list[tuple[Any, float, float]]:
        return []

    def predict(self, state: list[tuple[Any, float, float]], columns: Columns) -> Floats:
        return np.full(len(columns["x"]), self.score)

    def step(self, state: Any, columns: Columns, labels: Floats, weights: Floats) -> Any:
        assert set(columns) <= {"x", "observed"}
        return state + list(zip(columns["x"], labels.tolist(), weights.tolist(), strict=True))

    def export(self, state: Any) -> Arrays:
        return {"rows": np.array(state, float).reshape(-1, 3)}

    def load(self, arrays: Arrays) -> Any:
        return [tuple(row) for row in arrays["rows"].tolist()]


def weigh(rule: str, observed: Observed, label: int, p: float, **heads: float) -> float:
    """Return what a rule makes of one row."""
    columns = {name: np.array([value]) for name, value in heads.items()}
    rows = Rows(np.array([int(observed)]), np.array([label == 1]), np.array([p]), columns)
    return float(RULES[rule].weigh(rows)[0])


@pytest.mark.parametrize(
    ("rule", "labelled", "assumed", "corrected", "settled"),
    [  # p = 0.4; a quarter of the positives come within the window
        ("naive", 1, 1, 1, 0),
        ("wait", 1, 1, 0, 0),
        ("fnw", 1.4, 0.6 * 1.4, 1.4, 0),
        ("es-dfm", 1.3, 1.3 * 0.6 / 0.9, 1.3, 0),  # late 0.4 * 0.75, real 0.6 / (1 - 0.1)
        ("defer", 2 / 1.25, 0.6 / 1.5, 1 / 1.25, 0.6 / 1.5),  # 2 - 0.4 - 0.4 * 0.25
        ("exact", 1, 1, 1 / 0.6, 0),
        ("hedged", 1, 0.9 * 0.6 / 0.64, 1 / 0.64, 0.1 / 0.64),  # 1 - 0.9 * 0.4
    ],
)
def test_the_weights_by_hand(rule: str, labelled: float, assumed: float, corrected: float, settled: float) -> None:
    def by(observed: Observed, label: int) -> float:
        return weigh(rule, observed, label, 0.4, late=0.3, real=0.6 / 0.9, prompt=0.25)

    assert by(LABEL, 1) == pytest.approx(labelled)
    assert by(ASSUMED, 0) == pytest.approx(assumed)
    assert by(CORRECTED, 1) == pytest.approx(corrected)
    assert by(SETTLED, 0) == pytest.approx(settled)


@pytest.mark.parametrize(("rule", "late"), [("naive", 1), ("wait", 0), ("fnw", 0), ("es-dfm", 0), ("exact", 0)])
def test_a_late_negative_is_learned_again_by_the_naive_rule_alone(rule: str, late: float) -> None:
    assert weigh(rule, CORRECTED, 0, 0.4, late=0.3, real=0.7) == late


@pytest.mark.parametrize("rule", ["defer", "hedged"])
def test_a_late_negative_settles_where_the_rule_needs_that(rule: str) -> None:
    late, settled = (weigh(rule, kind, 0, 0.4, prompt=0.25) for kind in (CORRECTED, SETTLED))
    assert late == settled > 0


def gradient(rule: str, f: float, p: float, window: float, **heads: float) -> float:
    """Return the expected gradient in the logit of one request's observations, by the table in ``delay_rules``."""

    def part(observed: Observed, label: int) -> float:
        return (f - label) * weigh(rule, observed, label, f, **heads)

    return (
        p * window * part(LABEL, 1)
        + (1 - p * window) * part(ASSUMED, 0)
        + p * (1 - window) * part(CORRECTED, 1)
        + (1 - p) * part(SETTLED, 0)
    )


@given(chance, chance, chance)
def test_exact_and_hedged_have_the_gradient_of_the_true_label_whatever_the_window(f: float, p: float, w: float) -> None:
    assert gradient("exact", f, p, w) == pytest.approx(f - p, abs=1e-12)
    assert gradient("hedged", f, p, w) == pytest.approx(f - p, abs=1e-12)


@given(chance, chance)
def test_other_rules_rest_at_the_truth_and_push_towards_it(p: float, w: float) -> None:
    def by(rule: str, f: float, window: float) -> float:
        late = p * (1 - window)
        return gradient(rule, f, p, window, prompt=window, late=late, real=(1 - p) / (1 - p * window))

    for rule, window in (("defer", w), ("es-dfm", w), ("fnw", 0.0), ("defer", 0.0)):
        assert by(rule, p, window) == pytest.approx(0, abs=1e-12)
        assert by(rule, p - 0.01, window) < 0 < by(rule, p + 0.01, window)


@given(chance, chance)
def test_where_the_biased_rules_rest(p: float, w: float) -> None:
    assert gradient("naive", p / (1 + p * (1 - w)), p, w) == pytest.approx(0, abs=1e-12)
    assert gradient("wait", p * w, p, w) == pytest.approx(0, abs=1e-12)
    assert gradient("fnw", p, p, w) < -1e-9  # pushes up: scores get too high with a window


def test_defer_without_a_window_is_half_of_what_was_published() -> None:
    p = 0.3
    assert 2 * weigh("defer", CORRECTED, 1, p, prompt=0.0) == pytest.approx(2)
    assert 2 * weigh("defer", ASSUMED, 0, p, prompt=0.0) == pytest.approx(2 * (1 - p) / (2 - p))


def step(wrapper: DelayedLabels[Any], kinds: list[tuple[Observed, float]], weight: float = 1.0) -> DelayedState[Any]:
    columns = {"x": list(range(len(kinds))), "observed": [int(kind) for kind, _ in kinds]}
    labels = np.array([label for _, label in kinds])
    return wrapper.step(wrapper.init(), columns, labels, np.full(len(kinds), weight))


KINDS = [(LABEL, 1.0), (LABEL, 0.0), (ASSUMED, 0.0), (CORRECTED, 1.0), (CORRECTED, 0.0), (SETTLED, 0.0)]


def test_the_weights_of_a_rule_multiply_those_of_the_rows() -> None:
    state = step(DelayedLabels(Recorder(0.75), "exact"), KINDS, 3.0)
    assert state == DelayedState([(0, 1, 3), (1, 0, 3), (2, 0, 3), (3, 1, pytest.approx(12))], ())


def test_helpers_learn_from_outcomes_only() -> None:
    state = step(DelayedLabels(Recorder(0.5), "es-dfm"), KINDS, 2.0)
    late, real = state.heads
    assert late == [(0, 0, 2), (1, 0, 2), (3, 1, 2), (4, 0, 2), (5, 0, 2)]
    assert real == [(3, 0, 2), (4, 1, 2), (5, 1, 2)]
    (prompt,) = step(DelayedLabels(Recorder(0.5), "defer"), KINDS, 2.0).heads
    assert prompt == [(0, 1, 2), (3, 0, 2)]


def test_no_helper_learns_what_is_assumed() -> None:
    rows = Rows(np.array([int(ASSUMED)]), np.array([False]), np.array([0.5]), {})
    assert not any(targets(head, rows)[0].any() for head in ("prompt", "late", "real"))


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("score", [0.0, 1e-300, 0.5, 1 - 1e-16, 1.0])
def test_no_weight_is_above_the_limit(rule: str, score: float) -> None:
    learned = step(DelayedLabels(Recorder(score), rule, limit=2.5), KINDS).inner
    assert all(0 < weight <= 2.5 for _, _, weight in learned)


def test_a_weight_is_clipped_at_the_limit() -> None:
    assert step(DelayedLabels(Recorder(1.0), "exact"), [(CORRECTED, 1.0)]).inner == [(0, 1, 10)]
    assert step(DelayedLabels(Recorder(0.5), "exact"), [(CORRECTED, 1.0)]).inner == [(0, 1, 2)]
    assert step(DelayedLabels(Recorder(1.0), "hedged"), [(CORRECTED, 1.0)]).inner[0][2] <= 1 / (1 - TRUST)


@pytest.mark.parametrize("rule", ["naive", "wait", "exact", "hedged"])
def test_without_the_column_rows_are_learned_as_they_are(rule: str) -> None:
    wrapper = DelayedLabels(Recorder(0.7), rule)
    state = wrapper.step(wrapper.init(), {"x": [4, 5]}, np.array([1.0, 0.0]), np.array([2.0, 0.5]))
    assert state.inner == [(4, 1, 2), (5, 0, 0.5)]


def test_positives_are_labels_from_a_half_on() -> None:
    state = step(DelayedLabels(Recorder(0.5), "exact"), [(CORRECTED, 0.5), (CORRECTED, 0.49)])
    assert state.inner == [(0, 0.5, 2)]


def test_nothing_to_learn_is_not_learned() -> None:
    class Never(Recorder):
        def step(self, state: Any, columns: Columns, labels: Floats, weights: Floats) -> Any:
            raise AssertionError

    assert step(DelayedLabels(Never(0.5), "wait"), [(CORRECTED, 1.0), (SETTLED, 0.0)]) == DelayedState([], ())


def test_a_prediction_needs_no_observation() -> None:
    wrapper = DelayedLabels(Recorder(0.25), "defer")
    assert wrapper.fields == ("x",)
    assert wrapper.predict(wrapper.init(), {"x": [1, 2]}).tolist() == [0.25, 0.25]


def test_who_needs_settled_rows() -> None:
    needing = {rule for rule in RULES if DelayedLabels(Recorder(0.5), rule).needs_settled}
    assert needing == {"es-dfm", "defer", "hedged"}


def standardized() -> Standardized[Any]:
    return Standardized(SparseLearner(("x", "size"), factors=1, bits=6), ("size",), half_life=100.0)


def test_what_the_inner_learner_prepared_at_serving_is_learned() -> None:
    wrapper = DelayedLabels(standardized(), "exact")
    assert wrapper.prepared == ("standardized size",)
    request = {"x": ["a", "b"], "size": [1.0, 3.0], "event_time": [0.0, 1.0]}
    state = wrapper.step(wrapper.init(), request, np.array([1.0, 0.0]), np.ones(2))
    served = wrapper.prepare(state, request)
    assert served == standardized().prepare(state.inner, request)
    assert np.ptp(served["standardized size"]) > 1

    def learned(columns: Columns) -> Arrays:
        fresh = wrapper.load(wrapper.export(state))
        return wrapper.export(wrapper.step(fresh, columns, np.array([1.0, 1.0]), np.ones(2)))

    as_served, other = learned({**request, **served}), learned({**request, "standardized size": [9.0, 9.0]})
    assert all(np.array_equal(as_served[name], value) for name, value in learned(request).items())
    assert not np.array_equal(as_served["inner/inner/slots"], other["inner/inner/slots"])


@pytest.mark.parametrize("rule", RULES)
def test_a_restored_state_goes_on_exactly(rule: str) -> None:
    wrapper = DelayedLabels(SparseLearner(("x",), factors=2, bits=8), rule)
    random = np.random.default_rng(3)

    def advance(state: DelayedState[Any], batch: int) -> DelayedState[Any]:
        drawn = np.random.default_rng(batch).integers(0, 5, 40).tolist()
        kinds = [KINDS[place] for place in np.random.default_rng(batch + 100).integers(0, len(KINDS), 40)]
        columns = {"x": drawn, "observed": [int(kind) for kind, _ in kinds]}
        return wrapper.step(state, columns, np.array([label for _, label in kinds]), np.ones(40))

    state = wrapper.init()
    for batch in random.integers(0, 1000, 5).tolist():
        state = advance(state, batch)
    restored = wrapper.load(wrapper.export(state))
    left, right = (wrapper.export(advance(one, 7)) for one in (state, restored))
    assert list(left) == list(right)
    assert all(np.array_equal(left[name], right[name]) for name in left)
    prefixes = {name.split("/")[0] for name in left} - {"rule"}
    assert prefixes == {"inner", *RULES[rule].heads}


def test_rules_with_a_truth_to_rest_at_find_it() -> None:
    """Conversions of four kinds of request, of which the window shows 10 to 70 %; the rest comes 25 batches later."""
    chances, windows = np.array([0.1, 0.3, 0.5, 0.7]), np.array([0.7, 0.4, 0.1, 0.4])
    found = {}
    for rule in ("naive", "es-dfm", "defer", "exact", "hedged"):
        wrapper = DelayedLabels(SparseLearner(("x",), factors=1, bits=8, rate=0.3), rule)
        random, state, waiting, total = np.random.default_rng(5), wrapper.init(), [], np.zeros(4)
        for batch in range(400):
            x = random.integers(0, 4, 80)
            positive = random.random(80) < chances[x]
            prompt = positive & (random.random(80) < windows[x])
            rows = [(one, LABEL if early else ASSUMED, float(early)) for one, early in zip(x, prompt, strict=True)]
            waiting.append([(one, yes) for one, yes, early in zip(x, positive, prompt, strict=True) if not early])
            if batch >= 25:
                rows += [(one, CORRECTED if yes else SETTLED, float(yes)) for one, yes in waiting[batch - 25]]
            columns = {"x": [int(row[0]) for row in rows], "observed": [int(row[1]) for row in rows]}
            state = wrapper.step(state, columns, np.array([row[2] for row in rows]), np.ones(len(rows)))
            if batch >= 250:
                total += wrapper.predict(state, {"x": [0, 1, 2, 3]}) / 150
        found[rule] = np.abs(total - chances).max()
    assert found.pop("naive") > 0.1
    assert max(found.values()) < 0.03, found


def test_values_that_are_no_observation_are_refused() -> None:
    wrapper = DelayedLabels(Recorder(0.5))
    with pytest.raises(ValueError, match=r"column 'observed' holds \{7\}; give values of Observed, \[0, 1, 2, 3\]"):
        wrapper.step(wrapper.init(), {"x": [1, 2], "observed": [1, 7]}, np.zeros(2), np.ones(2))


def test_arrays_of_another_rule_are_refused() -> None:
    wrapper = DelayedLabels(Recorder(0.5), "defer")
    with pytest.raises(ValueError, match="with rule 'defer', not 'exact'; load them with that one"):
        DelayedLabels(Recorder(0.5), "exact").load(wrapper.export(wrapper.init()))
    with pytest.raises(ValueError, match="with rule None"):
        wrapper.load({})


def test_a_rule_that_is_not_known_is_refused() -> None:
    with pytest.raises(ValueError, match="rule is 'best'; give one of naive, wait, fnw, es-dfm, defer, exact, hedged"):
        DelayedLabels(Recorder(0.5), "best")


@pytest.mark.parametrize("limit", [1.9, 0.0, math.inf, math.nan])
def test_a_limit_outside_its_range_is_refused(limit: float) -> None:
    with pytest.raises(ValueError, match=f"limit is {limit}; give a finite number, 2 or more"):
        DelayedLabels(Recorder(0.5), limit=limit)
