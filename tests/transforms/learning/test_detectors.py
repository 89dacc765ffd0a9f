from __future__ import annotations

import builtins
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from river import drift

from contbatch.transforms.learning.detectors import Detector, Level, Method, Signal, Watching

LABELS, SCORES = np.array([1.0, 0.0, 1.0]), np.array([0.75, 0.75, math.nan])


def noise(size: int, mean: float = 0.0, seed: int = 0) -> list[float]:
    return (mean + 0.1 * np.random.default_rng(seed).standard_normal(size)).tolist()


def alarms(detector: Detector, values: list[float]) -> list[int]:
    """After how many values each alarm came."""
    watching = detector.watch()
    return [number for number, value in enumerate(values, 1) if watching.add([value]) is Level.ALARM]


def test_the_signals_by_hand() -> None:
    columns = {"price": [10, "4.5", None]}
    loss = Detector().values(columns, LABELS, SCORES)
    assert loss[:2].tolist() == [0.0625, 0.5625]
    mistakes = Detector(method=Method.DDM).values(columns, LABELS, SCORES)
    assert mistakes[:2].tolist() == [0.0, 1.0]
    calibration = Detector(Signal.CALIBRATION).values(columns, LABELS, SCORES)
    assert calibration[:2].tolist() == [-0.25, 0.75]
    feature = Detector(Signal.FEATURE, feature="price", scale=2.0).values(columns, LABELS, SCORES)
    assert feature[:2].tolist() == [5.0, 2.25]
    assert all(math.isnan(values[2]) for values in (loss, mistakes, calibration, feature))


@pytest.mark.parametrize("method", [Method.ADWIN, Method.PAGE_HINKLEY, Method.KSWIN])
def test_a_sudden_rise_is_an_alarm_soon_after(method: Method) -> None:
    found = alarms(Detector(Signal.CALIBRATION, method), [*noise(500), *noise(100, mean=0.6)])
    assert len(found) == 1
    assert 500 < found[0] <= 564


def test_ddm_finds_more_mistakes() -> None:
    rng = np.random.default_rng(0)
    found = alarms(Detector(method=Method.DDM), [*(rng.random(1000) < 0.2).tolist(), *(rng.random(200) < 0.8).tolist()])
    assert len(found) == 1
    assert 1000 < found[0] <= 1064


def test_a_loss_that_falls_is_nothing_but_a_score_that_does_is_an_alarm() -> None:
    values = [*noise(500, mean=0.6), *noise(500)]
    watching = Detector().watch()
    assert {watching.add([value]) for value in values} == {Level.STEADY}
    assert len(alarms(Detector(Signal.CALIBRATION), values)) == 1


def test_page_hinkley_does_not_even_report_a_loss_that_falls() -> None:
    watching = Detector(method=Method.PAGE_HINKLEY).watch()
    watching.add([*noise(100, mean=0.9), *noise(200)])
    assert watching.export()["counts"].tolist() == [0, 0]


def levels(detector: Detector, values: list[float]) -> list[Level]:
    watching = detector.watch()
    return [watching.add([value]) for value in values]


def test_half_of_the_deviations_are_a_warning() -> None:
    """A rise by 0.6 with a deviation of 0.1: over the newest 64 of 100 values after it, the standard error is

    0.1 * sqrt(1 / 536 + 1 / 64) = 0.013, or 45 of them; the first 36 of the 100 are among the others, so it is less.
    """
    values = [*noise(500), *noise(100, mean=0.6)]
    assert levels(Detector(deviations=5.0), values).count(Level.ALARM) == 1
    found = levels(Detector(deviations=50.0), values)
    first = found.index(Level.WARNING)
    assert 500 <= first < 564
    assert found[first:].count(Level.WARNING) > 20
    assert Level.ALARM not in found
    assert {*levels(Detector(deviations=100.0), values)} == {Level.STEADY}


def test_after_an_alarm_a_detector_is_as_new() -> None:
    watching = Detector().watch()
    for value in [*noise(500), *noise(100, mean=0.6)]:
        if watching.add([value]) is Level.ALARM:
            break
    assert equal(watching, Detector().watch())


def test_a_report_of_river_has_to_be_confirmed_within_its_patience() -> None:
    values = [*noise(500), *noise(100, mean=0.6)]
    adwin, reported = drift.ADWIN(), []
    for number, value in enumerate(values):
        adwin.update(value)
        if adwin.drift_detected:
            reported.append(number)
    assert reported
    counts = []
    for patience in (1, 5):
        found = levels(Detector(deviations=50.0, patience=patience), values)
        warned = [number for number, level in enumerate(found) if level is Level.WARNING]
        assert all(any(0 <= number - report < patience for report in reported) for number in warned)
        counts.append(len(warned))
    assert 0 < counts[0] < counts[1]


def test_a_constant_that_changes_is_an_alarm_and_one_that_does_not_is_none() -> None:
    assert alarms(Detector(Signal.CALIBRATION), [0.1] * 3000) == []
    assert len(alarms(Detector(Signal.CALIBRATION), [0.1] * 300 + [0.9] * 300)) == 1


def test_what_is_not_finite_is_counted_and_not_seen() -> None:
    values = [*noise(500), *noise(100, mean=0.6)]
    spoiled = [part for value in values for part in (value, math.nan, math.inf)]
    watching = Detector().watch()
    levels = [watching.add([value]) for value in spoiled]
    assert watching.skipped == 2 * len(values)
    assert [at // 3 for at, level in enumerate(levels) if level is Level.ALARM] == [
        at - 1 for at in alarms(Detector(), values)
    ]


def test_memory_is_bounded() -> None:
    watching = Detector(keep=256).watch()
    sizes = []
    for value in noise(1000):
        watching.add([value])
        sizes.append(len(watching.export()["values"]))
    assert sizes[:255] == list(range(1, 256))
    assert sizes[255] == 128
    assert max(sizes) == 255
    assert watching.export()["values"].tolist() == noise(1000)[-len(watching.export()["values"]) :]


def equal(left: Watching, right: Watching) -> bool:
    a, b = left.export(), right.export()
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


@given(
    st.sampled_from([Method.ADWIN, Method.PAGE_HINKLEY, Method.DDM]),
    st.lists(st.tuples(st.integers(1, 300), st.sampled_from([0.0, 0.3, 0.9])), min_size=1, max_size=4),
    st.integers(0, 1000),
    st.floats(0.0, 1.0),
)
@settings(max_examples=60, deadline=None)
def test_restored_goes_on_as_if_not_interrupted(
    method: Method, parts: list[tuple[int, float]], seed: int, where: float
) -> None:
    values = [value for size, mean in parts for value in noise(size, mean, seed)]
    if method is Method.DDM:
        values = [float(value > 0.25) for value in values]
    detector = Detector(method=method, keep=256, deviations=3.0)
    cut = round(where * len(values))
    whole, first = detector.watch(), detector.watch()
    expected = [whole.add([value]) for value in values]
    levels = [first.add([value]) for value in values[:cut]]
    restored = detector.watch().load({name: array.copy() for name, array in first.export().items()})
    assert levels + [restored.add([value]) for value in values[cut:]] == expected
    assert equal(restored, whole)


def test_restored_between_a_report_and_its_confirmation() -> None:
    values = [*noise(500), math.nan, *noise(100, mean=0.6)]
    detector = Detector(deviations=50.0)
    whole = detector.watch()
    expected = [whole.add([value]) for value in values]
    for cut in range(500, 600, 9):
        first = detector.watch()
        first.add(values[:cut])
        restored = detector.watch().load(first.export())
        assert [restored.add([value]) for value in values[cut:]] == expected[cut:]
        assert equal(restored, whole)
    assert expected[520:].count(Level.WARNING) > 20


def test_kswin_restored_goes_on_as_if_not_interrupted() -> None:
    values = [*noise(300), *noise(50, mean=0.3), *noise(150)]
    detector = Detector(Signal.CALIBRATION, Method.KSWIN, keep=256, options={"alpha": 0.01})
    whole, first = detector.watch(), detector.watch()
    expected = [whole.add([value]) for value in values]
    levels = [first.add([value]) for value in values[:310]]
    restored = detector.watch().load(first.export())
    assert levels + [restored.add([value]) for value in values[310:]] == expected
    assert Level.ALARM in expected


@given(st.lists(st.floats(-1, 1), max_size=300), st.integers(1, 50))
@settings(max_examples=20, deadline=None)
def test_how_values_are_grouped_does_not_matter(values: list[float], size: int) -> None:
    one, many = Detector().watch(), Detector().watch()
    levels = [one.add([value]) for value in values]
    grouped = [many.add(values[start : start + size]) for start in range(0, len(values), size)]
    assert grouped == [max(levels[start : start + size]) for start in range(0, len(values), size)]
    assert equal(one, many)


def test_no_values_are_steady() -> None:
    assert Detector().watch().add([]) is Level.STEADY


def test_no_alarm_where_river_reports_many() -> None:
    mistakes = (np.random.default_rng(1).random(8_000) < 0.3).astype(float).tolist()
    even = np.random.default_rng(1).random(800).tolist()
    for made, method, options, values in (
        (drift.PageHinkley(threshold=10.0, mode="up"), Method.PAGE_HINKLEY, {}, mistakes),
        (drift.KSWIN(alpha=0.05, seed=0), Method.KSWIN, {"alpha": 0.05}, even),
    ):
        reports = 0
        for value in values:
            made.update(value)
            reports += made.drift_detected
        assert reports >= 2
        assert alarms(Detector(method=method, options=options), values) == []


def test_arrays_of_another_detector_are_refused() -> None:
    arrays = Detector().watch().export()
    with pytest.raises(
        ValueError, match=r"of the detector .*adwin.*, not of .*DDM.*; load them with the configuration"
    ):
        Detector(method=Method.DDM).watch().load(arrays)
    with pytest.raises(ValueError, match="of the detector None"):
        Detector().watch().load({})


def test_without_river_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def refuse(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.partition(".")[0] == "river":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(ImportError, match=r"need River: run `pip install contbatch\[drift\]`"):
        Detector().watch()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"signal": Signal.FEATURE}, "signal is feature and feature is None; give both of them, or neither"),
        ({"feature": "price"}, "signal is loss and feature is 'price'"),
        ({"signal": Signal.CALIBRATION, "method": Method.DDM}, "DDM counts mistakes and cannot watch the calibration"),
        ({"method": Method.KSWIN, "options": {"seed": None}}, "seed is None, which no restored detector could repeat"),
        ({"scale": 0.0}, "scale is 0.0; give a finite number above 0"),
        ({"deviations": math.inf}, "deviations is inf; give a finite number above 0"),
        ({"patience": 0}, "patience is 0 values; give 1 or more"),
        ({"keep": 255}, "keep is 255 values; give 256 or more"),
    ],
)
def test_settings_outside_their_range_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Detector(**settings)
