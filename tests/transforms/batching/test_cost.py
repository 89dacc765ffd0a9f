"""The cost model under a formula for a device; seconds throughout."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contbatch.transforms.batching import CostModel
from contbatch.transforms.batching.sizes import SizeTable


def learned(points: list[tuple[int, float]]) -> CostModel:
    model = CostModel()
    for size, seconds in points:
        model.observe(size, seconds)
    return model


def play(model: CostModel, device: Callable[[int], float], batches: int, slo: float = 0.05) -> list[int]:
    """Run the largest batches that should meet the goal; returns their sizes."""
    sizes = []
    for _ in range(batches):
        sizes.append(model.largest(slo, 10_000))
        model.observe(sizes[-1], device(sizes[-1]))
    return sizes


def test_before_any_batch_the_smallest_is_tried() -> None:
    model = CostModel()
    assert not model.is_known
    assert model.largest(1.0, 100) == 1
    assert model.upper(1) == float("inf")


def test_two_sizes_make_a_line() -> None:
    """10 ms + 0.5 ms * n, from n = 10 and 20: 15 and 20 ms."""
    model = learned([(10, 0.015), (20, 0.020)] * 5)
    assert model.parameters == pytest.approx((0.010, 0.0005, 0.0), rel=1e-3, abs=1e-9)
    assert model.expected(40) == pytest.approx(0.030, rel=1e-3)


def test_weight_has_a_price_of_its_own() -> None:
    """2 ms + 1 ms * n + 0.1 ms * w."""
    model = CostModel()
    for size, weight in [(1, 10.0), (2, 10.0), (2, 40.0), (4, 40.0), (3, 25.0)] * 8:
        model.observe(size, 0.002 + 0.001 * size + 0.0001 * weight, weight)
    assert model.parameters == pytest.approx((0.002, 0.001, 0.0001), rel=0.02)


def test_one_size_alone_is_taken_as_fixed_cost_and_bounded_by_its_parts() -> None:
    """Only batches of 1, 10 ms each: a line through them says nothing of 8, but 8 batches of 1 take 80 ms."""
    model = learned([(1, 0.010)] * 20)
    assert model.expected(8) == pytest.approx(0.010, rel=0.01)
    assert 0.080 <= model.upper(8) <= 0.085
    assert model.largest(0.05, 100) == 4


def test_a_negative_part_is_left_out_and_the_others_fitted_again() -> None:
    """12 ms at 1, 40 ms at 4: a line has the fixed cost 2.7 ms; 10 ms and 41 ms: -0.3 ms, so the slope alone is fitted.

    Relative errors: b minimises (10 - b)^2 / 10^2 + (41 - 4b)^2 / 41^2, so b = (1/10 + 4/41) / (1/100 + 16/1681).
    Clamping the fixed cost to 0 and keeping the slope would give 10.33.
    """
    model = CostModel(forgetting=1.0)
    for size, ms in ((1, 10.0), (4, 41.0)):
        model._add([1.0, float(size), 0.0], ms / 1000)
    fixed, slope, _ = model.parameters
    assert fixed == 0
    assert slope * 1000 == pytest.approx((1 / 10 + 4 / 41) / (1 / 100 + 16 / 1681), rel=1e-3)


batches = st.tuples(st.integers(1, 300), st.floats(1e-4, 10.0), st.sampled_from([0.0, 1.0, 500.0]))


@given(st.lists(batches, max_size=30), st.integers(1, 400))
def test_nothing_is_negative_and_a_size_is_always_found(points: list[tuple[int, float, float]], size: int) -> None:
    model = CostModel()
    for observed in points:
        model.observe(*observed)
    assert min(model.parameters) >= 0
    assert model.expected(size) >= 0
    assert 1 <= model.largest(0.05, size) <= size
    assert 1 <= model.largest(0.05, size, weight_per_element=3.0) <= size


@given(st.integers(0, 10_000))
def test_the_goal_is_kept_from_the_first_batch_on_a_steady_device(seed: int) -> None:
    rng = random.Random(seed)
    a, b = rng.uniform(0.001, 0.02), rng.uniform(0.00001, 0.002)
    sizes = play(CostModel(), lambda n: a + b * n, 30)
    assert all(a + b * n <= 0.05 for n in sizes)
    assert sizes[-1] >= 0.9 * min(10_000, (0.05 - a) / b)


@pytest.mark.parametrize("factor", [0.2, 5.0])
def test_two_surprises_are_a_change_and_are_learned_at_once(factor: float) -> None:
    model = CostModel()
    play(model, lambda n: 0.010 + 0.0002 * n, 100)
    sizes = play(model, lambda n: 0.010 + 0.0002 * factor * n, 10)
    ideal = 0.04 / (0.0002 * factor)
    assert all(0.75 * ideal <= size <= ideal for size in sizes[4:])


def test_one_outlier_changes_nothing() -> None:
    model = CostModel()
    steady = play(model, lambda n: 0.010 + 0.0002 * n, 100)
    model.observe(steady[-1], 1.0)
    assert play(model, lambda n: 0.010 + 0.0002 * n, 3) == [steady[-1]] * 3


def test_outliers_to_both_sides_are_no_change() -> None:
    model = CostModel()
    steady = play(model, lambda n: 0.010 + 0.0002 * n, 100)
    for seconds in (1.0, 0.001, 1.0, 0.001):
        model.observe(steady[-1], seconds)
    assert play(model, lambda n: 0.010 + 0.0002 * n, 3) == [steady[-1]] * 3


def test_a_cliff_is_found_and_kept_away_from() -> None:
    sizes = play(CostModel(), lambda n: (0.010 + 0.0002 * n) * (20 if n > 128 else 1), 500)
    assert sum(size > 128 for size in sizes) <= 6
    assert all(122 <= size <= 128 for size in sizes[20:])


def test_a_cliff_that_is_gone_is_found_to_be_gone() -> None:
    model, spilling = CostModel(), True

    def device(n: int) -> float:
        return (0.010 + 0.0002 * n) * (20 if spilling and n > 128 else 1)

    play(model, device, 200)
    spilling = False
    assert play(model, device, 1_500)[-1] > 150


def test_the_top_of_a_step_is_preferred() -> None:
    """Waves of 32 take 10 ms each: 128 in 40 ms is the best of 50 ms but for 160, which leaves no room."""
    sizes = play(CostModel(), lambda n: 0.010 * -(-n // 32), 500)
    assert all(120 <= size <= 128 for size in sizes[-200:-190])


@given(st.integers(0, 300), st.integers(0, 1_000))
def test_what_is_exported_goes_on_as_if_nothing_had_happened(batches: int, seed: int) -> None:
    rng = random.Random(seed)
    model = CostModel()
    play(model, lambda n: (0.01 + 0.0002 * n) * rng.uniform(0.8, 1.2), batches % 40)
    copy = CostModel()
    assert copy.expected(10) == 0.0  # looked at before, so that nothing is remembered of it
    copy.load(json.loads(json.dumps(model.export())))
    again = random.Random(seed + 1), random.Random(seed + 1)
    ours, theirs = (
        play(one, lambda n, r=r: (0.01 + 0.0002 * n) * r.uniform(0.8, 1.2), 20)
        for one, r in zip((model, copy), again, strict=True)
    )
    assert ours == theirs


def test_an_export_that_lacks_a_part_is_refused() -> None:
    with pytest.raises(ValueError, match="an exported cost model has no 'information'; give what export"):
        CostModel().load({"ratios": [], "sizes": SizeTable().export()})


def test_an_export_is_a_copy_and_loading_it_drops_what_was_learned_since() -> None:
    model = learned([(10, 0.015), (20, 0.020)] * 5)
    exported, before = model.export(), model.upper(40)
    copy = learned([(3, 9.0)] * 7)
    copy.load(exported)
    for one in (model, copy):
        for _ in range(5):
            one.observe(30, 0.026)
    assert model.upper(40) == copy.upper(40) != before
    model.load(exported)
    assert model.upper(40) == before


@pytest.mark.parametrize(
    ("setting", "text"),
    [
        ({"quantile": 1.0}, "quantile is 1.0; give 0.5 up to below 1"),
        ({"forgetting": 0.2}, "forgetting is 0.2; give above 0.5 up to 1"),
        ({"window": 1}, "window is 1 batches; give 2 or more"),
    ],
)
def test_a_setting_outside_its_range_is_refused(setting: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        CostModel(**setting)


@pytest.mark.parametrize(("size", "seconds"), [(0, 1.0), (1, 0.0), (1, float("nan")), (1, float("inf"))])
def test_a_batch_that_cannot_be_is_refused(size: int, seconds: float) -> None:
    with pytest.raises(ValueError, match=f"a batch of {size} took {seconds} s; give a size of 1 or more"):
        CostModel().observe(size, seconds)
