from __future__ import annotations

import math
from typing import Any

import pytest

from contbatch.transforms.batching import BatchPolicy


@pytest.mark.parametrize("size", [0, -3, 2.5, "8"])
def test_a_size_is_a_whole_number_of_elements(size: Any) -> None:
    with pytest.raises(ValueError, match=f"max_size is {size!r}; give a whole number of elements, 1 or more"):
        BatchPolicy(max_size=size)


@pytest.mark.parametrize("delay", [-0.1, -math.inf, math.nan])
def test_a_delay_is_not_negative(delay: float) -> None:
    with pytest.raises(ValueError, match=f"max_delay is {delay!r}; give seconds, 0 or more, or math.inf"):
        BatchPolicy(max_delay=delay)
