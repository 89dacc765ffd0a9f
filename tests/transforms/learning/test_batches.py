from __future__ import annotations

import numpy as np
import pytest

from contbatch.transforms.learning.batches import Batch, pack_batch, unpack_batch


def test_a_batch_comes_back_as_it_was() -> None:
    given = Batch({"x": np.array([[1.5, 2.0], [3.0, 4.0]]), "tags": [["a"], []]}, np.array([0.0, 1.0]), np.ones(2))
    back = unpack_batch(pack_batch(given))
    assert back.columns["tags"] == [["a"], []]
    assert back.columns["x"].tolist() == [[1.5, 2.0], [3.0, 4.0]]  # type: ignore[attr-defined]
    assert back.labels.tolist() == [0.0, 1.0]


@pytest.mark.parametrize("sizes", [(0, 0, 0), (2, 1, 2), (2, 2, 1), (1, 2, 2)])
def test_a_batch_of_unequal_sizes_or_none_is_refused(sizes: tuple[int, int, int]) -> None:
    values, labels, weights = sizes
    with pytest.raises(ValueError, match="the sizes of a batch are"):
        pack_batch(Batch({"user": ["u"] * values}, np.ones(labels), np.ones(weights)))
