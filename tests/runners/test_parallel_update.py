"""Asynchronous data-parallel training on a real Prism, from a live source."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import apache_beam as beam
import numpy as np
import pytest
from apache_beam.options.pipeline_options import PipelineOptions

from contbatch.transforms import Event, Kind, ModelStore, Published, SparseLearner
from contbatch.transforms.io.replay import PacedReplay
from contbatch.transforms.learning.batches import Batch, pack_batch
from contbatch.transforms.parallel_apply import Update
from contbatch.transforms.parallel_gradient import BadChunk
from contbatch.transforms.parallel_update import ParallelUpdate
from contbatch.transforms.testing import Sink

pytestmark = pytest.mark.needs("go")

LEARNER = SparseLearner(("user", "item"), ((("user",), ("item",)),), factors=2, bits=6)
CHUNKS = 300
BOUND = 2


def batch(number: int) -> Batch:
    """One to three rows about three users and four items."""
    numbers = range(number, number + 1 + number % 3)
    columns = {"user": [f"u{n % 3}" for n in numbers], "item": [f"i{n % 4}" for n in numbers]}
    return Batch(columns, np.array([float(n % 3 == n % 4) for n in numbers]), np.ones(len(numbers)))


def events() -> Iterator[Event]:
    """A chunk an event, and one that is junk."""
    for number in range(CHUNKS):
        yield Event(number, Kind.REQUEST, number, pack_batch(batch(number)))
    yield Event(CHUNKS, Kind.REQUEST, CHUNKS, b"junk")


def sharded(event: Event) -> tuple[str, bytes]:
    return "abc"[event.row % 3], event.payload


@pytest.mark.parametrize("on_stale", ["recompute", "drop"])
def test_every_chunk_is_accounted_for_and_none_beyond_the_bound_is_applied(
    tmp_path: Path, prism: str, on_stale: str
) -> None:
    """Three shards, 150 chunks a second; a worker looks for new weights every 50 ms, while 7 chunks come."""
    sink = Sink()
    transform = ParallelUpdate(
        LEARNER, str(tmp_path), bound=BOUND, on_stale=on_stale, publish_every=2, poll_every=0.05, snapshot_every=50
    )
    options = PipelineOptions(
        [],
        runner="PrismRunner",
        streaming=True,
        prism_location=prism,
        experiments=["disable_prism_server_singleton"],
    )
    with beam.Pipeline(options=options) as pipeline:
        chunks = pipeline | PacedReplay(events, CHUNKS + 1, 150.0) | beam.Map(sharded)
        updates = chunks | transform
        _ = (updates, updates.published, updates.failed) | beam.Flatten() | sink
    updated, published, failed = (
        [each for each in sink.elements if type(each) is kind] for kind in (Update, Published, BadChunk)
    )
    assert [each.chunk for each in failed] == [b"junk"]
    assert Counter(update.shard for update in updated) == {"a": CHUNKS // 3, "b": CHUNKS // 3, "c": CHUNKS // 3}
    assert sum(update.examples for update in updated) == sum(batch(number).size for number in range(CHUNKS))

    fates = Counter(update.fate for update in updated)
    beyond = "recomputed" if on_stale == "recompute" else "dropped"
    assert fates["applied"] > 0
    assert fates[beyond] > 0
    assert fates.total() == fates["applied"] + fates[beyond]
    assert all(0 <= update.staleness <= BOUND for update in updated if update.fate == "applied")
    assert all(update.staleness > BOUND for update in updated if update.fate == beyond)

    learned = [update for update in updated if update.fate != "dropped"]
    steps = sorted(int(update.version.removeprefix("0.")) for update in learned)
    assert steps == list(range(1, len(learned) + 1))
    last = ModelStore(str(tmp_path)).versions()[-1]
    assert (last.version, last.examples) == (f"0.{len(learned)}", sum(update.examples for update in learned))
    assert last.version in {each.version for each in published}
