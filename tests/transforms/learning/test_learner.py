from __future__ import annotations

import numpy as np

from contbatch.transforms.learning.learner import prefixed, unprefixed


def test_arrays_under_a_prefix_come_back_without_those_of_others() -> None:
    inner, others = {"weights": np.ones(2), "inner/weights": np.zeros(3)}, {"weights": np.zeros(1)}
    together = prefixed(inner, "inner/") | others
    assert list(together) == ["inner/weights", "inner/inner/weights", "weights"]
    assert {name: array.tolist() for name, array in unprefixed(together, "inner/").items()} == {
        "weights": [1.0, 1.0],
        "inner/weights": [0.0, 0.0, 0.0],
    }
