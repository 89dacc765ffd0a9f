from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from contbatch.transforms.learning.normalization import BatchRenorm1d, check_batch_norm, freeze_batch_norm


def warm(features: int = 1, **settings: Any) -> BatchRenorm1d:
    return BatchRenorm1d(features, warm_up=0, eps=0.0, **settings)


def test_batch_norm_that_trains_is_refused_with_the_reason_and_the_ways_out() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    with pytest.raises(ValueError, match=r"^1 is a BatchNorm1d in training mode: statistics of 1 to 8 rows are noise"):
        check_batch_norm(model)
    with pytest.raises(ValueError, match=r"LayerNorm or GroupNorm, freeze .* freeze_batch_norm, .* BatchRenorm1d$"):
        check_batch_norm(model)
    check_batch_norm(freeze_batch_norm(model))
    assert model[0].training


def test_batch_norm_without_running_statistics_cannot_be_frozen() -> None:
    with pytest.raises(ValueError, match="BatchNorm1d without running statistics"):
        check_batch_norm(freeze_batch_norm(nn.BatchNorm1d(2, track_running_stats=False)))


def test_within_the_limits_training_gives_what_serving_gives() -> None:
    """Batch 1, 5 against a moving mean of 1 and variance of 4: (1 - 1) / 2 and (5 - 1) / 2."""
    module = warm()
    module.mean.fill_(1.0)
    module.variance.fill_(4.0)
    rows = torch.tensor([[1.0], [5.0]])
    served = module.eval()(rows)
    assert torch.allclose(module.train()(rows), served)
    assert served.tolist() == [[0.0], [2.0]]


def test_the_limits_by_hand() -> None:
    """Batch 0, 20: mean 10, deviation 10. Moving 0 and 1: r is 3 instead of 10, d is 5 instead of 10."""
    given_rows = torch.tensor([[0.0], [20.0]])
    assert warm()(given_rows).tolist() == [[-3.0 + 5.0], [3.0 + 5.0]]
    assert warm(r_max=1.0, d_max=0.0)(given_rows).tolist() == [[-1.0], [1.0]]  # plain batch normalisation


def test_the_warm_up_ends_gradually() -> None:
    """Limits of (1, 0) up to row 4, then to (3, 5) in 5 rows more; each batch of 2 is normalised to -1 and 1."""
    module = BatchRenorm1d(1, momentum=0.0, warm_up=4, eps=0.0)
    seen = []
    for _ in range(5):
        module.mean.zero_()
        module.variance.fill_(1.0)
        seen.append(module(torch.tensor([[0.0], [20.0]]))[:, 0].tolist())
    shares = [0.0, 0.0, 0.2, 0.6, 1.0]  # before rows 0, 2, 4, 6, 8
    wanted = [[-(1 + 2 * share) + 5 * share, 1 + 2 * share + 5 * share] for share in shares]
    assert torch.allclose(torch.tensor(seen), torch.tensor(wanted))


def test_a_single_row_is_the_same_in_training_and_has_a_gradient() -> None:
    module = warm(2)
    row = torch.tensor([[3.0, -40.0]], requires_grad=True)
    served = module.eval()(row)
    trained = module.train()(row)
    assert torch.equal(trained, served)
    trained.sum().backward()
    assert row.grad is not None
    assert (row.grad != 0).all()


def test_moving_statistics_count_rows_by_hand() -> None:
    """Half stays after one row: a row of 4 moves mean 0 to 2, and variance 1 to 0.5 * 1 + 0.25 * 4 ** 2."""
    module = warm(momentum=0.5)
    module(torch.tensor([[4.0]]))
    assert (module.mean.item(), module.variance.item(), module.rows.item()) == (2.0, 4.5, 1)
    module(torch.tensor([[1.0], [3.0]]))  # mean 2, variance 1; a quarter stays
    assert (module.mean.item(), module.variance.item(), module.rows.item()) == (2.0, 0.25 * 4.5 + 0.75 * 1, 3)


@given(st.lists(st.floats(-3, 3), min_size=1, max_size=8))
def test_serving_changes_nothing(values: list[float]) -> None:
    module = warm().eval()
    before = {name: buffer.clone() for name, buffer in module.named_buffers()}
    rows = torch.tensor(values)[:, None]
    together = module(rows)
    assert torch.allclose(together, torch.cat([module(row[None]) for row in rows]))
    assert all(torch.equal(buffer, before[name]) for name, buffer in module.named_buffers())


@pytest.mark.parametrize(
    ("setting", "text"),
    [
        ({"momentum": 1.0}, "momentum is 1.0; give 0 or more, below 1"),
        ({"warm_up": -1}, "warm_up is -1; give 0 rows or more"),
        ({"r_max": 0.5}, "r_max is 0.5 and d_max is 5.0; give at least 1 and at least 0"),
    ],
)
def test_a_setting_outside_its_range_is_refused(setting: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        BatchRenorm1d(2, **setting)


def test_an_input_of_another_shape_is_refused() -> None:
    with pytest.raises(ValueError, match=r"input of shape \(4, 3\); give \(n, 2\)"):
        BatchRenorm1d(2)(torch.zeros(4, 3))
