from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contbatch.transforms.learning import auc, log_loss, mean_log_loss

rows = st.lists(st.tuples(st.sampled_from([0.1, 0.2, 0.5, 0.9]), st.sampled_from([0.0, 1.0])), max_size=30)


@given(rows)
def test_auc_is_the_share_of_pairs_in_the_right_order_and_half_the_ties(pairs: list[tuple[float, float]]) -> None:
    ones, zeros = ([score for score, label in pairs if label == value] for value in (1.0, 0.0))
    wins = [1.0 if one > zero else 0.5 if one == zero else 0.0 for one in ones for zero in zeros]
    found = auc([score for score, _ in pairs], [label for _, label in pairs])
    assert found == pytest.approx(sum(wins) / len(wins)) if wins else math.isnan(found)


def test_log_loss_is_the_negative_log_of_what_was_given_to_the_label() -> None:
    assert log_loss(0.25, 0) == pytest.approx(-math.log(0.75))
    assert log_loss(0.25, 1) == pytest.approx(-math.log(0.25))
    assert mean_log_loss([0.25, 0.25], [0, 1]) == pytest.approx(-(math.log(0.75) + math.log(0.25)) / 2)


def test_a_certain_mistake_stays_finite() -> None:
    assert log_loss(0.0, 1) == pytest.approx(-math.log(1e-12))


def test_no_rows_have_no_score() -> None:
    assert math.isnan(mean_log_loss([], []))
    assert math.isnan(auc([], []))
