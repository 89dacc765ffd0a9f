from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from contbatch.transforms.learning.coordinate import Ftrl
from contbatch.transforms.learning.detectors import Detector, Method, Signal
from contbatch.transforms.learning.drift import DriftAware, DriftState, Rival
from contbatch.transforms.learning.learner import Arrays, Columns
from contbatch.transforms.learning.reactions import Background, Boost, Reaction, Refresh, Replay
from contbatch.transforms.learning.replay_buffer import ReplayBuffer
from contbatch.transforms.learning.sampling import Downsampled
from contbatch.transforms.learning.sparse import SparseLearner
from contbatch.transforms.learning.statistics import Standardized

Floats = np.ndarray[Any, np.dtype[np.float64]]

BATCH = 4


class Means:
    """Predicts the weighted mean label of all rows with the same ``x`` (0 to 9), from 2 rows of each label on."""

    fields = ("x",)

    def init(self) -> Floats:
        return np.tile([2.0, 4.0], (10, 1))

    def predict(self, state: Floats, columns: Columns) -> Floats:
        rows = state[list(columns["x"])]
        return rows[:, 0] / rows[:, 1]

    def step(self, state: Floats, columns: Columns, labels: Floats, weights: Floats) -> Floats:
        np.add.at(state, list(columns["x"]), np.column_stack([labels * weights, weights]))
        return state

    def export(self, state: Floats) -> Arrays:
        return {"sums": state.copy()}

    def load(self, arrays: Arrays) -> Floats:
        return arrays["sums"].copy()


def flipping(flips: tuple[int, ...], size: int, seed: int = 0) -> tuple[dict[str, list[int]], Floats]:
    """Rows of x from 0 to 9 and a label that is 1 for x above 4, nine times in ten; a flip turns all labels."""
    rng = np.random.default_rng(seed)
    x = rng.integers(0, 10, size)
    is_turned = sum((np.arange(size) >= flip for flip in flips), np.zeros(size, int)) % 2
    labels = ((x > 4) ^ (rng.random(size) < 0.1) ^ is_turned.astype(bool)).astype(float)
    return {"x": x.tolist()}, labels


def learn(
    learner: DriftAware[Any], state: DriftState[Any], columns: Columns, labels: Floats, start: int, end: int
) -> DriftState[Any]:
    for first in range(start, end, BATCH):
        part = slice(first, min(first + BATCH, end))
        cut = {field: column[part] for field, column in columns.items()}
        state = learner.step(state, cut, labels[part], np.ones(len(labels[part])))
    return state


def run(learner: DriftAware[Any], columns: Columns, labels: Floats) -> DriftState[Any]:
    return learn(learner, learner.init(), columns, labels, 0, len(labels))


ANY: tuple[Reaction, ...] = (Background(recent=32, patience=600), Replay(ReplayBuffer(40), share=0.5, rows=100))


def test_without_a_drift_it_is_the_learner() -> None:
    columns, labels = flipping((), 2_000)
    learner = DriftAware(Means(), reactions=ANY)
    state = run(learner, columns, labels)
    alone = Means().step(Means().init(), columns, labels, np.ones(2_000))
    assert state.alarms.tolist() == [0]
    assert state.takeovers == 0
    assert np.array_equal(state.inner, alone)
    assert np.array_equal(learner.predict(state, columns), Means().predict(alone, columns))


def test_a_flip_is_an_alarm_and_a_new_model_takes_over() -> None:
    columns, labels = flipping((2_000,), 2_400)
    learner = DriftAware(Means())
    state = run(learner, columns, labels)
    assert state.alarms.tolist() == [1]
    assert state.takeovers == 1
    assert state.rival is None
    rows = float(state.inner[:, 1].sum()) - 40  # less the ten times 4 that it starts with
    assert 300 < rows <= 400  # the new model has learned no row from before the flip
    scores = learner.predict(state, {"x": [0, 9]})
    assert scores[0] > 0.75
    assert scores[1] < 0.25


def test_a_rival_that_is_not_clearly_better_is_dropped_after_its_patience() -> None:
    columns, labels = flipping((2_000,), 3_400)
    learner = DriftAware(Means(), reactions=(Background(recent=64, deviations=1e6, patience=200),))
    state, compared = learner.init(), 0
    for start in range(0, 3_400, BATCH):
        state = learn(learner, state, columns, labels, start, start + BATCH)
        compared = max(compared, len(state.rival.gains) if state.rival else 0)
    assert compared == 64
    assert (state.alarms.sum(), state.takeovers) == (1, 0)
    assert state.rival is None
    alone = Means().step(Means().init(), columns, labels, np.ones(3_400))
    assert np.array_equal(state.inner, alone)


def test_a_rival_that_knows_what_was_true_before_the_alarm_is_replaced() -> None:
    columns, labels = flipping((2_000,), 2_400)
    for age, is_replaced in ((300, True), (4, False)):
        learner = DriftAware(Means(), reactions=(Background(deviations=1e6),))
        state = learn(learner, learner.init(), columns, labels, 0, 2_000)
        state, start = state._replace(rival=Rival(Means().init(), age, np.zeros(0))), 2_000
        while not state.alarms[0]:
            state = learn(learner, state, columns, labels, start, start + BATCH)
            start += BATCH
        assert state.rival is not None
        assert state.rival.age == (0 if is_replaced else age + start - 2_000)


def test_two_models_are_compared_on_32_rows_at_the_least() -> None:
    columns, labels = flipping((2_000,), 2_400)
    learner = DriftAware(Means(), reactions=(Background(deviations=1e-9),))
    state, start, age = learner.init(), 0, 0
    while not state.takeovers:
        age = state.rival.age if state.rival else 0
        state = learn(learner, state, columns, labels, start, start + BATCH)
        start += BATCH
    assert age + BATCH == 32


class Careful(Means):
    """Does not learn a row without a label."""

    def step(self, state: Floats, columns: Columns, labels: Floats, weights: Floats) -> Floats:
        return super().step(state, columns, np.nan_to_num(labels), weights * np.isfinite(labels))


def test_rows_without_a_label_are_not_compared() -> None:
    columns, labels = flipping((2_000,), 2_400)
    labels[2_000::8] = np.nan
    state = run(DriftAware(Careful()), columns, labels)
    assert (state.alarms.tolist(), state.takeovers) == ([1], 1)


def test_the_rival_scores_rows_before_it_learns_them() -> None:
    """A rival that learns labels first would be right on each x it meets for the first time, and gain at once."""
    learner = DriftAware(Means(), reactions=(Background(recent=32, deviations=1e6),))
    columns, labels = flipping((1_000,), 1_200)
    state = learner.init()
    for start in range(0, 1_200, BATCH):
        before = state.rival
        state = learn(learner, state, columns, labels, start, start + BATCH)
        if before is None and state.rival is not None:
            state = learn(learner, state, columns, labels, start + BATCH, start + 2 * BATCH)
            break
    rival = state.rival
    assert rival is not None
    assert len(rival.gains) == rival.age == BATCH
    live = Means().step(
        Means().init(), {"x": columns["x"][: start + BATCH]}, labels[: start + BATCH], np.ones(start + BATCH)
    )
    new = learn_alone(columns, labels, start, start + BATCH)
    rows = {"x": columns["x"][start + BATCH : start + 2 * BATCH]}
    truth = labels[start + BATCH : start + 2 * BATCH]
    expected = (Means().predict(live, rows) - truth) ** 2 - (Means().predict(new, rows) - truth) ** 2
    assert rival.gains == pytest.approx(expected)


def learn_alone(columns: Columns, labels: Floats, start: int, end: int) -> Floats:
    return Means().step(Means().init(), {"x": columns["x"][start:end]}, labels[start:end], np.ones(end - start))


def test_rows_since_the_alarm_are_replayed_for_a_while() -> None:
    columns, labels = flipping((1_000,), 1_400)
    learner = DriftAware(Means(), reactions=(Replay(ReplayBuffer(30), share=2.0, rows=100),))
    state = run(learner, columns, labels)
    assert state.alarms.tolist() == [1]
    assert state.replaying is None
    alone = Means().step(Means().init(), columns, labels, np.ones(1_400))
    extra = state.inner - alone
    assert extra[:, 1].sum() == 192  # twice 100 rows, but for the first 4: there was nothing to replay yet
    low, high = extra[:5].sum(axis=0), extra[5:].sum(axis=0)
    assert low[0] / low[1] > 0.8  # labels as they are after the flip
    assert high[0] / high[1] < 0.2


def test_a_feature_that_moves_is_an_alarm_of_its_detector() -> None:
    columns, labels = flipping((), 1_000)
    price = np.random.default_rng(0).normal(50, 5, 1_000)
    price[600:] += 20
    feature = Detector(Signal.FEATURE, feature="price", scale=10.0)
    learner = DriftAware(Means(), (Detector(), feature))
    assert learner.fields == ("x", "price")
    state = run(learner, {**columns, "price": price.tolist()}, labels)
    assert state.alarms.tolist() == [0, 1]


SPARSE = SparseLearner(("x",), bits=6, factors=2)


@pytest.mark.parametrize("ftrl", [None, Ftrl(), Ftrl(alpha=0.3, beta=0.5, l1=0.05, l2=0.1)])
def test_a_boost_leaves_the_scores_and_raises_the_rates(ftrl: Ftrl | None) -> None:
    learner = SparseLearner(("x", "y"), ((("x",), ("y",)),), bits=6, factors=2, ftrl=ftrl)
    columns, labels = flipping((), 400)
    columns["y"] = columns["x"][::-1]
    state = learner.step(learner.init(), columns, labels, np.ones(400))
    before, squares = learner.predict(state, columns), state.squares.copy()
    state = Boost(0.25).react(learner, state)
    assert learner.predict(state, columns) == pytest.approx(before, abs=1e-12)
    start = np.array([0.1 if ftrl is None else 0.0, 0.1, 0.1])
    assert state.squares == pytest.approx(start + 0.25 * (squares - start))
    row, turned = {"x": [0], "y": [9]}, np.array([1.0])
    boosted = learner.step(learner.load(learner.export(state)), row, turned, turned)
    state.squares[:] = squares
    if ftrl is None:
        plain = learner.step(state, row, turned, turned)
        assert learner.predict(boosted, row)[0] > learner.predict(plain, row)[0]


def test_what_ftrl_does_after_a_boost() -> None:
    """The weight of a slot stays after a boost also through an update whose gradient is 0."""
    learner = SparseLearner(("x",), bits=6, factors=1, ftrl=Ftrl(l1=0.05, l2=0.1))
    columns, labels = flipping((), 400)
    state = Boost(0.0).react(learner, learner.step(learner.init(), columns, labels, np.ones(400)))
    before = state.weights.copy()
    learner.step(state, {"x": [0]}, np.array([1.0]), np.array([0.0]))
    assert state.weights[:, 0] == pytest.approx(before[:, 0], abs=1e-12)
    assert np.abs(before[:, 0]).max() > 0.5


def test_boost_and_refresh_find_their_parts_inside_wrappers() -> None:
    inner = SparseLearner(("x", "price"), bits=6, factors=2)
    learner = Downsampled(Standardized(inner, ("price",), half_life=100.0), 1.0)
    columns = {
        "x": [1, 2, 3],
        "price": [1.0, 2.0, 6.0],
        "event_time": [0.0, 0.0, 0.0],
        "request_id": ["a", "b", "c"],
    }
    state = learner.step(learner.init(), columns, np.array([0.0, 1.0, 1.0]), np.ones(3))
    grown = state.inner.squares.sum()
    state = Boost(0.0).react(learner, Refresh(half_lives=2.0).react(learner, state))
    assert state.inner.squares.sum() == pytest.approx(64 * 3 * 0.1)
    assert state.inner.squares.sum() < grown
    statistics = state.statistics
    assert (statistics.mean[0], statistics.weight[0]) == (3.0, 0.75)  # 3 rows, a quarter of each
    assert statistics.std[0] == pytest.approx(np.std([1.0, 2.0, 6.0]))
    later = learner.step(
        state, {**{name: column[:1] for name, column in columns.items()}, "price": [10.0]}, np.ones(1), np.ones(1)
    )
    assert later.statistics.mean[0] == pytest.approx((0.75 * 3.0 + 10.0) / 1.75)


def test_an_alarm_boosts() -> None:
    columns, labels = flipping((1_000,), 1_200)
    learner = DriftAware(SPARSE, reactions=(Boost(0.0),))
    state = run(learner, columns, labels)
    plain = SPARSE.init()
    for start in range(0, 1_200, BATCH):
        part = slice(start, start + BATCH)
        plain = SPARSE.step(plain, {"x": columns["x"][part]}, labels[part], np.ones(BATCH))
    assert state.alarms.tolist() == [1]
    assert state.inner.squares[0, 0] < plain.squares[0, 0]
    rows = {"x": list(range(10))}
    now = np.array([1.0] * 5 + [0.0] * 5)
    assert np.abs(learner.predict(state, rows) - now).mean() < 0.8 * np.abs(SPARSE.predict(plain, rows) - now).mean()


def test_the_two_reactions_to_a_drift_beat_none() -> None:
    columns, labels = flipping((1_500, 3_000), 4_000)
    errors = []
    for learner in (SPARSE, DriftAware(SPARSE, reactions=(Boost(), Background()))):
        state: Any = learner.init()
        error = 0.0
        for start in range(0, 4_000, BATCH):
            part = slice(start, start + BATCH)
            cut = {"x": columns["x"][part]}
            error += float(((learner.predict(state, cut) - labels[part]) ** 2).sum())
            state = learner.step(state, cut, labels[part], np.ones(BATCH))
        errors.append(error / 4_000)
    assert errors[1] < errors[0] - 0.01


@given(st.integers(0, 800), st.integers(0, 3))
@settings(max_examples=20, deadline=None)
def test_restored_goes_on_as_if_not_interrupted(where: int, seed: int) -> None:
    columns, labels = flipping((300, 550), 800, seed)
    detectors = (Detector(keep=300), Detector(Signal.CALIBRATION, Method.PAGE_HINKLEY), Detector(method=Method.DDM))
    learner = DriftAware(Means(), detectors, ANY)
    where -= where % BATCH
    whole = run(learner, columns, labels)
    first = learner.export(learn(learner, learner.init(), columns, labels, 0, where))
    state = learner.load({name: array.copy() for name, array in first.items()})
    arrays = learner.export(learn(learner, state, columns, labels, where, 800))
    expected = learner.export(whole)
    assert arrays.keys() == expected.keys()
    assert all(np.array_equal(arrays[name], expected[name]) for name in expected)


def test_the_cases_of_the_restored_state_occur() -> None:
    """The test above would be empty if no rival or replayed row were ever in the arrays."""
    columns, labels = flipping((300, 550), 800)
    learner = DriftAware(Means(), (Detector(),), ANY)
    state, seen = learner.init(), set()
    for start in range(0, 800, BATCH):
        state = learn(learner, state, columns, labels, start, start + BATCH)
        seen |= learner.export(state).keys()
    assert {"rival/age", "replay/left", "inner/sums", "detector/0/values"} <= seen
    assert state.takeovers > 0


def test_rows_that_are_not_finite_are_not_watched() -> None:
    learner = DriftAware(Means())
    state = learner.step(learner.init(), {"x": [1, 2]}, np.array([np.nan, 1.0]), np.ones(2))
    assert state.watching[0].skipped == 1


def test_a_rival_is_dropped_by_a_learner_without_background() -> None:
    learner = DriftAware(Means())
    arrays = learner.export(learner.init()._replace(rival=Rival(Means().init(), 0, np.empty(0))))
    replay = DriftAware(Means(), reactions=(Replay(),))
    assert learner.load(arrays).rival is not None
    assert replay.load(arrays).rival is None


def test_arrays_of_other_detectors_are_refused() -> None:
    arrays = DriftAware(Means()).export(DriftAware(Means()).init())
    two = DriftAware(Means(), (Detector(), Detector(Signal.CALIBRATION)))
    with pytest.raises(ValueError, match="the arrays are of 1 detectors, not of 2; load them with the configuration"):
        two.load(arrays)
    with pytest.raises(ValueError, match="the arrays are of the detector"):
        DriftAware(Means(), (Detector(Signal.CALIBRATION),)).load(arrays)


def test_fields_include_the_key_of_replayed_rows() -> None:
    replay = Replay(ReplayBuffer(20, key_field="user"))
    assert DriftAware(Means(), reactions=(replay,)).fields == ("x", "user")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"detectors": ()}, "detectors is empty; give one or more"),
        ({"reactions": ()}, "reactions is empty; give one or more"),
        ({"reactions": (Boost(0.1), Boost(0.2))}, r"reactions are \['Boost', 'Boost'\]; give at most one of each kind"),
        ({"reactions": (Boost(),)}, "Boost knows SparseLearner alone, which .* is not; take Background or Replay"),
        ({"reactions": (Refresh(),)}, "Refresh ages the statistics of a Standardized, which .* is not; leave it out"),
    ],
)
def test_a_combination_that_does_not_fit_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DriftAware(Means(), **settings)


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        (Boost, {"factor": 1.0}, "factor is 1.0; give 0 or more, below 1"),
        (Refresh, {"half_lives": 0.0}, "half_lives is 0.0; give a finite number above 0"),
        (Background, {"recent": 31}, "recent is 31 rows; give 32 or more"),
        (Background, {"patience": 255}, "patience is 255 rows; give at least recent, 256"),
        (Background, {"deviations": 0.0}, "deviations is 0.0; give a finite number above 0"),
        (Replay, {"share": 0.0}, "share is 0.0; give a finite number above 0"),
        (Replay, {"rows": 0}, "rows is 0; give 1 or more"),
    ],
)
def test_settings_outside_their_range_are_refused(kind: type[Any], settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kind(**settings)
