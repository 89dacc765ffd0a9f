from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contbatch.transforms.learning.step_size import (
    NOTHING,
    AdaScale,
    Linear,
    Noise,
    Scale,
    Spread,
    SquareRoot,
    StepSize,
)

ratios = st.floats(1e-3, 1e3)


def test_a_constant_step_makes_progress_by_weight() -> None:
    assert StepSize().scale(4.0, NOTHING, 0.0) == Scale(rate=1.0, progress=4.0, decay=1.0, epsilon=1.0)


def test_the_square_root_rule_decays_per_example() -> None:
    assert SquareRoot().scale(4.0, NOTHING, 0.0) == Scale(rate=2.0, progress=4.0, decay=4.0, epsilon=0.5)
    assert SquareRoot().scale(0.25, NOTHING, 0.0) == Scale(rate=0.5, progress=0.25, decay=0.25, epsilon=2.0)


def test_the_square_root_rule_ends_at_eight() -> None:
    rule = SquareRoot()
    assert rule.scale(100.0, NOTHING, 0.0) == rule.scale(8.0, NOTHING, 0.0)
    assert rule.scale(0.01, NOTHING, 0.0) == rule.scale(1 / 8, NOTHING, 0.0)


def test_the_linear_rule_warms_up_and_ends_at_eight() -> None:
    rule = Linear(warm_up=10.0)
    assert [rule.scale(5.0, NOTHING, done).rate for done in (0.0, 5.0, 10.0, 20.0)] == [1.0, 3.0, 5.0, 5.0]
    assert rule.scale(0.5, NOTHING, 0.0) == Scale(0.5, 0.5)  # less than the tuned rate needs no warm-up
    assert rule.scale(9.0, NOTHING, 10.0) == Scale(8.0, 8.0)
    assert Linear(warm_up=0.0).scale(2.0, NOTHING, 0.0).rate == 2.0


def test_the_estimates_of_two_uneven_chunks_by_hand() -> None:
    """Weights 1 and 3 with gradients 2 and 6: the mean is 5, and 1 * 4 + 3 * 36 - 4 * 25 = 12 for a weight of 1.

    So the mean over the reference, 2, has variance 6, and the square is 25 less 12 / 4. After k = 2 steps of the
    reference a quarter of the average would be left of before: three quarters are new.
    """
    rule = AdaScale(reference=2.0, theta=0.5)
    noise = rule.observe(NOTHING, Spread(chunks=2, weight=4.0, within=112.0, whole=25.0))
    assert noise == Noise(0.75 * 6, 0.75 * 22)
    assert rule.scale(2.0, noise, 0.0).rate == pytest.approx(28 / 25)
    assert rule.scale(2.0, noise, 0.0).progress == pytest.approx(28 / 25)
    again = rule.observe(noise, Spread(chunks=2, weight=2.0, within=112.0, whole=25.0))
    assert again == Noise(0.5 * 4.5 + 0.5 * (112 - 50) / 2, 0.5 * 16.5 + 0.5 * (25 - 62 / 2))


@given(st.lists(st.floats(-10, 10), min_size=2, max_size=6), ratios)
def test_for_even_chunks_the_estimates_are_the_published_ones(gradients: list[float], k: float) -> None:
    m, mean = len(gradients), math.fsum(gradients) / len(gradients)
    squares = math.fsum(g * g for g in gradients) / m
    rule = AdaScale(reference=1.0, theta=0.0)
    noise = rule.observe(Noise(7.0, 7.0), Spread(m, k, k * squares, mean * mean))
    assert noise.square == pytest.approx((m * mean**2 - squares) / (m - 1), abs=1e-6)
    assert noise.variance == pytest.approx((squares - mean**2) * k / (m - 1), abs=1e-6)


@given(ratios, st.floats(-1, 1e6), st.floats(-1, 1e6))
def test_the_gain_is_between_one_and_k(k: float, variance: float, square: float) -> None:
    scale = AdaScale().scale(k, Noise(variance, square), 0.0)
    assert min(1.0, k) <= scale.rate <= max(1.0, k)
    assert scale.progress == scale.rate


def test_the_gain_is_k_for_noise_alone_and_one_for_none() -> None:
    assert AdaScale().scale(6.0, Noise(variance=2.0, square=-0.1), 0.0).rate == 6.0
    assert AdaScale().scale(6.0, Noise(variance=0.0, square=2.0), 0.0).rate == 1.0


def test_without_an_estimate_the_gain_is_the_careful_one() -> None:
    rule = AdaScale()
    assert [rule.scale(k, NOTHING, 0.0).rate for k in (0.25, 4.0)] == [0.25, 1.0]
    assert rule.observe(NOTHING, Spread(1, 8.0, 3.0, 3.0)) == NOTHING  # one chunk shows no variance


@pytest.mark.parametrize(
    ("rule", "setting", "text"),
    [
        (StepSize, {"reference": 0.0}, "reference is 0.0; give the weight for which the rate was tuned, above 0"),
        (AdaScale, {"reference": math.inf}, "reference is inf"),
        (Linear, {"most": 9.0}, "most is 9.0; give 1 to 8"),
        (Linear, {"warm_up": math.nan}, "warm_up is nan; give 0 or more steps of the reference"),
        (SquareRoot, {"most": 0.5}, "most is 0.5; give 1 to 8"),
        (AdaScale, {"theta": 1.0}, "theta is 1.0; give 0 or more, below 1"),
        (AdaScale, {"pieces": 1}, "pieces is 1; give 2 or more"),
    ],
)
def test_a_setting_outside_its_range_is_refused(rule: type[StepSize], setting: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        rule(**setting)
