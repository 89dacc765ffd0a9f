"""A trainer in the order of arrival that goes back to a checkpoint: what it had published since serves no longer."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from apache_beam.utils.timestamp import Timestamp

from contbatch.transforms import BatchPolicy, Event, ModelStore
from contbatch.transforms.events import pack
from contbatch.transforms.keyed_state import Bag, Cell, KeyedState, Timer
from contbatch.transforms.loop import ArrivalFn


class Trainer:
    """Learns chunks one by one and publishes after every one; ``state`` is what a runner would keep."""

    def __init__(self, small: Any, store: Path) -> None:
        policy = BatchPolicy(64, 60.0)  # a chunk is a batch, and so a version
        trainer = small.trainer(store, policy=policy, deterministic=False, publish_every=1, snapshot_every=60)
        self.state = KeyedState(buffer=Bag(), log=Bag(), head_cell=Cell(), due=Timer(), last=Timer())
        self._fn = ArrivalFn(trainer._loop._settings, bounded=False)
        self._fn.setup()

    def learn(self, events: Sequence[Event], chunk: int) -> None:
        for start in range(0, len(events), chunk):
            process = partial(self._fn.process, ("", pack(events[start : start + chunk])), Timestamp(0))
            self.state.bundle(self._fn, lambda buffer, process=process, **parts: process(**parts))


def test_the_newest_version_is_that_of_the_line_that_goes_on(small: Any, tmp_path: Path) -> None:
    """Of 20 rows' events 8 come before a checkpoint and 16 after it; then all that came since, in one go."""
    events, store = sorted(small.events(20)), ModelStore(str(tmp_path))
    trainer = Trainer(small, tmp_path)
    trainer.learn(events[:8], 2)
    checkpoint = copy.deepcopy(trainer.state.parts)
    trainer.learn(events[8:24], 2)
    lost = store.versions()[-1]

    trainer.state.parts = copy.deepcopy(checkpoint)
    trainer.learn(events[8:], 32)
    newest = store.versions()[-1]
    assert (lost.epoch, newest.epoch, newest.examples) == (0, 1, 20)
    assert lost.examples < 20
    assert newest.step < lost.step  # which is why it would have gone on serving

    trainer.state.parts = copy.deepcopy(checkpoint)
    trainer.learn(events[8:], 32)
    assert (store.versions()[-1].epoch, store.versions()[-1].examples) == (2, 20)


def test_a_loop_that_is_rebuilt_goes_on_in_its_epoch(small: Any, tmp_path: Path) -> None:
    """The epoch is in the log: a restart that has lost nothing begins no other."""
    events, store = sorted(small.events(20)), ModelStore(str(tmp_path))
    lost = Trainer(small, tmp_path)
    lost.learn(events[:20], 2)
    trainer = Trainer(small, tmp_path)
    trainer.learn(events[:30], 30)
    assert store.versions()[-1].epoch == 1
    again = Trainer(small, tmp_path)
    again.state = trainer.state
    again.learn(events[30:], 5)
    assert (store.versions()[-1].epoch, store.versions()[-1].examples) == (1, 20)
    assert {one.epoch for one in store.history()} == {0, 1}
