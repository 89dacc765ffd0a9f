"""A loop is what state says it is, whichever instance served the last bundle."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from contbatch.transforms import BatchPolicy, Event, ModelStore, SparseLearner
from contbatch.transforms.events import END_OF_TIME, MICROS
from contbatch.transforms.learning import PrequentialConfig, StoreError
from contbatch.transforms.learning.journal import Journal, Position
from contbatch.transforms.learning.shelf import _SHELF
from contbatch.transforms.learning.snapshots import _PRUNED
from contbatch.transforms.testing import ManualClock
from tests.small import Small

small = Small()
CONFIG = PrequentialConfig(
    SparseLearner(("user",), bits=6), BatchPolicy(4, 1.0), small.requests, small.feedback, ttl=60
)


def stretches(count: int = 6, size: int = 5) -> list[tuple[list[Event], int]]:
    """Each stretch: a few requests one second apart, and their feedback half a second after each."""
    result = []
    for number in range(count):
        events = []
        for index in range(size):
            row = number * size + index
            events += [small.request(row, row), small.label(row, row + 0.5, value=float(row % 2))]
        result.append((sorted(events), (number + 1) * size * MICROS))
    return [*result, ([], END_OF_TIME)]


class State:
    """What the runner keeps: a position and a log."""

    def __init__(self) -> None:
        self.position = Position()
        self.log: list[bytes] = []

    def advance(self, journal: Journal, events: list[Event], upto: int, model: str = "m") -> list:
        loop = journal.open(model, self.position, self.log)
        outputs = list(loop.advance(events, upto))
        self.position, entry = journal.record(model, self.position, loop, events, upto)
        self.log = [] if entry is None else [*self.log, entry]
        return [output for output in outputs if not hasattr(output, "arrays")]


def run(folder: Path, instances: list[int], snapshot_every: int = 1_000) -> list:
    store = ModelStore(str(folder))
    journals = [Journal(CONFIG, store, snapshot_every) for _ in range(max(instances) + 1)]
    state = State()
    steps = zip(instances, stretches(), strict=True)
    return [output for which, (events, upto) in steps for output in state.advance(journals[which], events, upto)]


@pytest.mark.parametrize("snapshot_every", [1, 15, 1_000])
@pytest.mark.parametrize("instances", [[0, 1] * 3 + [0], [0, 0, 1, 2, 1, 0, 2], [0, 1, 2, 3, 4, 5, 6]])
def test_any_instance_may_serve_any_bundle(tmp_path: Path, instances: list[int], snapshot_every: int) -> None:
    alone = run(tmp_path / "alone", [0] * 7)
    assert len(alone) == 60  # 30 predictions, 30 labels learned
    assert run(tmp_path / "pool", instances, snapshot_every) == alone


def test_a_loop_at_hand_is_used_as_it_is(tmp_path: Path) -> None:
    journal, state = Journal(CONFIG, ModelStore(str(tmp_path)), 1_000), State()
    for events, upto in stretches():
        state.advance(journal, events, upto)
    assert journal.rebuilt == 0


def test_what_a_failed_bundle_advanced_is_dropped(tmp_path: Path) -> None:
    expected = run(tmp_path / "clean", [0] * 7)
    journal, state, outputs = Journal(CONFIG, ModelStore(str(tmp_path / "failing")), 1_000), State(), []
    for events, upto in stretches():
        # The bundle advances the loop, then fails before the runner commits: state stays, the runner tries again.
        loop = journal.open("m", state.position, state.log)
        list(loop.advance(events, upto))
        outputs += state.advance(journal, events, upto)
    assert outputs == expected


def test_what_was_recorded_but_not_committed_is_dropped(tmp_path: Path) -> None:
    expected = run(tmp_path / "clean", [0] * 7)
    journal, state, outputs = Journal(CONFIG, ModelStore(str(tmp_path / "failing")), 1_000), State(), []
    for events, upto in stretches():
        loop = journal.open("m", state.position, state.log)
        list(loop.advance(events, upto))
        journal.record("m", state.position, loop, events, upto)
        outputs += state.advance(journal, events, upto)
    assert outputs == expected
    assert journal.rebuilt == 6  # every bundle but the first, which starts anew


def test_a_log_that_does_not_lead_to_the_position_is_refused(tmp_path: Path) -> None:
    store, state = ModelStore(str(tmp_path)), State()
    for events, upto in stretches()[:3]:
        state.advance(Journal(CONFIG, store, 1_000), events, upto)
    with pytest.raises(RuntimeError, match="model 'm': the log in state does not lead to"):
        Journal(CONFIG, store, 1_000).open("m", state.position, state.log[:-1])


def test_a_snapshot_that_is_gone_is_said_so(tmp_path: Path) -> None:
    store, state = ModelStore(str(tmp_path)), State()
    events, upto = stretches()[0]
    state.advance(Journal(CONFIG, store, 1), events, upto)
    (snapshot,) = (tmp_path / "snapshots").iterdir()
    snapshot.unlink()
    with pytest.raises(StoreError, match=state.position.snapshot):
        Journal(CONFIG, store, 1).open("m", state.position, state.log)


def test_a_job_can_go_back_to_every_checkpoint_of_the_last_week(tmp_path: Path) -> None:
    """A snapshot a stretch. One that was replaced long ago goes with the next; those of a recent checkpoint stay."""
    store, state, checkpoints = ModelStore(str(tmp_path)), State(), []
    for number, (events, upto) in enumerate(stretches()[:4]):
        if number == 3:
            old = checkpoints[0].snapshot
            week = time.time() - 8 * 86_400
            os.utime(tmp_path / "snapshots" / f"{old}.replaced", (week, week))
            _PRUNED.clear()
        state.advance(Journal(CONFIG, store, 1), events, upto)
        checkpoints.append(state.position)
    replaced = {one.digest: one.replaced is not None for one in store.snapshots.all()}
    assert replaced == {checkpoints[1].snapshot: True, checkpoints[2].snapshot: True, checkpoints[3].snapshot: False}
    Journal(CONFIG, store, 1).open("m", checkpoints[1], [])
    assert [one.digest for one in store.snapshots.all() if one.replaced] == [checkpoints[2].snapshot]
    with pytest.raises(StoreError, match="restore the job from a newer checkpoint"):
        Journal(CONFIG, store, 1).open("m", checkpoints[0], [])


def test_nobody_goes_on_from_the_end(tmp_path: Path) -> None:
    store, state = ModelStore(str(tmp_path)), State()
    for events, upto in stretches():
        state.advance(Journal(CONFIG, store, 15), events, upto)
    found = store.snapshots.all()
    assert len(found) == 4  # after 20, 40 and 60 events, and at the end
    assert all(one.replaced for one in found)


def test_two_models_never_share_a_snapshot(tmp_path: Path) -> None:
    """Else what one of them has replaced could be the other's."""
    store = ModelStore(str(tmp_path))
    events, upto = stretches()[0]
    for model in ("a", "b"):
        State().advance(Journal(CONFIG, store, 1), events, upto, model)
    assert len(store.snapshots.all()) == 2


def test_the_order_in_which_a_runner_keeps_the_log_does_not_matter(tmp_path: Path) -> None:
    store, state = ModelStore(str(tmp_path)), State()
    steps = stretches()
    for events, upto in steps[:4]:
        state.advance(Journal(CONFIG, store, 1_000), events, upto)
    assert len(state.log) == 4
    forth, back = (Journal(CONFIG, store, 1_000).open("m", state.position, log) for log in (state.log, state.log[::-1]))
    assert list(forth.advance(*steps[4])) == list(back.advance(*steps[4]))


def test_what_is_idle_or_at_its_end_is_not_kept(tmp_path: Path) -> None:
    clock = ManualClock()
    journal = Journal(CONFIG, ModelStore(str(tmp_path)), 1_000, "ours", clock)
    first, second = State(), State()
    events, upto = stretches()[0]
    first.advance(journal, events, upto, "first")
    clock.advance(59.0)
    second.advance(journal, events, upto, "second")
    assert {key for key in _SHELF if key[0] == "ours"} == {("ours", "first"), ("ours", "second")}
    clock.advance(2.0)
    second.advance(journal, [], upto + 1, "second")
    assert {key for key in _SHELF if key[0] == "ours"} == {("ours", "second")}
    second.advance(journal, [], END_OF_TIME, "second")
    assert not any(key[0] == "ours" for key in _SHELF)


def test_journals_of_one_transform_share_their_loops(tmp_path: Path) -> None:
    state, store = State(), ModelStore(str(tmp_path))
    for events, upto in stretches()[:3]:
        journal = Journal(CONFIG, store, 1_000, "shared")  # as for a runner that makes a DoFn for every bundle
        state.advance(journal, events, upto)
        assert journal.rebuilt == 0
