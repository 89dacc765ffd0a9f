"""The cost model that worker threads share and that outlives them."""

from __future__ import annotations

import json
import logging
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from contbatch.transforms.kept_cost import KeptCostModel
from contbatch.transforms.testing import ManualClock


def learn(model: KeptCostModel) -> None:
    for size in (1, 8, 16, 32) * 6:
        model.observe(size, 0.010 + 0.0005 * size)


def test_a_restart_knows_what_was_learned(tmp_path: Path) -> None:
    """10 ms and 0.5 ms each: 80 take 50 ms. A new model starts with one."""
    path = str(tmp_path / "cost.json")
    model = KeptCostModel(path)
    assert model.largest(0.05, 1_000) == 1
    learn(model)
    model.save(now=True)
    again = KeptCostModel(path)
    assert again.largest(0.05, 1_000) == model.largest(0.05, 1_000) > 60
    assert again.parameters == pytest.approx((0.010, 0.0005, 0.0), rel=0.05)


def test_it_is_written_now_and_then_and_only_if_something_was_learned(tmp_path: Path) -> None:
    path, clock = tmp_path / "cost.json", ManualClock()
    model = KeptCostModel(str(path), clock)
    model.save(now=True)
    assert not path.exists()
    learn(model)
    clock.advance(29.0)
    model.save()
    assert not path.exists()
    clock.advance(1.0)
    model.save()
    assert path.exists()
    path.unlink()
    clock.advance(30.0)
    model.save()
    assert not path.exists()


@pytest.mark.parametrize("content", ["", "{", "[]", '{"parameters": 3}'])
def test_a_file_that_cannot_be_read_costs_a_warning(
    tmp_path: Path, content: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "cost.json"
    path.write_text(content)
    with caplog.at_level(logging.WARNING):
        model = KeptCostModel(str(path))
    assert f"the cost model in {path} is not used" in caplog.text
    assert model.largest(0.05, 1_000) == 1


@pytest.mark.parametrize("damage", [{"noise": None}, {"information": [[0]]}, {"last": 5}])
def test_a_file_of_another_form_is_not_used_in_part(
    tmp_path: Path, damage: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    model = KeptCostModel()
    learn(model)
    path = tmp_path / "cost.json"
    path.write_text(json.dumps({**model.export(), **damage}))
    again = KeptCostModel(str(path))
    assert "is not used" in caplog.text
    assert again.export() == KeptCostModel().export()


def test_a_file_that_cannot_be_written_costs_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = KeptCostModel(str(tmp_path / "file" / "cost.json"))
    (tmp_path / "file").write_text("in the way")
    learn(model)
    model.save(now=True)
    assert "the cost model is not kept" in caplog.text


def test_threads_may_share_it() -> None:
    model = KeptCostModel()
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: learn(model), range(16)))
    assert model.expected(32) == pytest.approx(0.026, rel=0.05)
