"""What data-parallel training leaves in its store does not grow with every version."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
from apache_beam.utils.timestamp import Timestamp

from contbatch.transforms import ModelStore, SparseLearner
from contbatch.transforms.keyed_state import Bag, Cell, KeyedState, Timer
from contbatch.transforms.learning.batches import Batch, pack_batch
from contbatch.transforms.parallel_apply import ApplyFn
from contbatch.transforms.parallel_gradient import GradientFn


def test_old_versions_are_thinned_out(tmp_path: Path) -> None:
    """Of 500 versions all of the last 128 are kept, 64 of the 128 before, 64 of the rest, and up to 32 until then."""
    learner, store = SparseLearner(("user",), bits=4, factors=1), str(tmp_path)
    gradient, apply = GradientFn(learner, store, "", 1e9, float), ApplyFn(learner, store, "", 1, "recompute", 1, 1_000)
    gradient.setup()
    apply.setup()
    state = KeyedState(log=Bag(), head_cell=Cell(), last=Timer())
    chunk = pack_batch(Batch({"user": ["u"]}, np.ones(1), np.ones(1)))
    for _ in range(500):
        (message,) = gradient.process(("a", chunk), Timestamp(0))
        state.bundle(apply, partial(apply.process, message.value, Timestamp(0)))
    versions = ModelStore(store).versions()
    assert versions[-1].version == "0.500"
    assert 128 < len(versions) <= 128 + 64 + 64 + 32
