"""``ParallelUpdate``: asynchronous data-parallel training with bounded staleness.

Two steps that meet in the model store. ``Gradient`` is stateless and runs wherever its shard's chunks are: it looks
for the newest published version at most every ``poll_every`` seconds, computes a gradient on what it has, and sends it
on with that version's name and the examples. It waits for nothing, so a shard that stalls stops no other. ``Apply`` is
stateful, one key for the model: it applies what arrives and publishes (see
:mod:`contbatch.transforms.parallel_apply`).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import apache_beam as beam
from apache_beam.options.pipeline_options import DebugOptions
from apache_beam.transforms.window import GlobalWindows

from contbatch.transforms.learning.staleness import GradientLearner, OnStale, check_bound
from contbatch.transforms.parallel_apply import ApplyFn, Update
from contbatch.transforms.parallel_gradient import BadChunk, GradientFn
from contbatch.transforms.records import Published


class ParallelUpdate(beam.PTransform):
    """Trains one model on many shards at once; nobody waits, and nothing staler than ``bound`` is applied.

    Takes an unbounded PCollection of ``(shard, chunk)``, the chunk from
    :func:`~contbatch.transforms.learning.batches.pack_batch`, and returns the
    :class:`~contbatch.transforms.parallel_apply.Update` of each chunk, with the attributes ``published`` (of
    :class:`~contbatch.transforms.records.Published`) and ``failed`` (of
    :class:`~contbatch.transforms.parallel_gradient.BadChunk`). Every chunk comes out as
    one of Update and BadChunk. A gradient beyond the bound is computed again by the applier, or dropped; the counters
    ``applied``, ``recomputed`` and ``dropped`` say how many. Training starts from the learner's initial weights, also
    where the store has versions of an earlier job: the new ones are then of a higher epoch.

    Args:
        learner: the model. The rows of a chunk are one update, and small ones learn better: with a ``SparseLearner``
            on MovieLens 100k in turn, chunks of 8, 32 and 128 rows come to an AUC of 0.766, 0.751 and 0.730.
        store: folder for model versions and snapshots, on any Beam filesystem.
        model: its name there.
        bound: most versions that an applied gradient may be behind.
        on_stale: ``"recompute"`` or ``"drop"`` a gradient beyond the bound.
        publish_every: versions between published ones. Workers are at least that far behind before they can read
            the next, so with more than ``bound + 1`` some gradients are always stale.
        poll_every: seconds between a worker's looks into the store, 0 or more.
        snapshot_every: gradients after which the log in state is replaced by a snapshot in the store.
        clock: seconds, for ``poll_every``.

    Raises:
        ValueError: an argument is outside its range, or the input is bounded.
    """

    def __init__(
        self,
        learner: GradientLearner[Any],
        store: str,
        *,
        model: str = "",
        bound: int = 8,
        on_stale: OnStale = "recompute",
        publish_every: int = 4,
        poll_every: float = 1.0,
        snapshot_every: int = 1_000,
        clock: Callable[[], float] = time.time,
    ) -> None:
        super().__init__()
        check_bound(bound, on_stale)
        for name, value, least in (
            ("publish_every", publish_every, 1),
            ("poll_every", poll_every, 0),
            ("snapshot_every", snapshot_every, 1),
        ):
            if not (math.isfinite(value) and value >= least):
                raise ValueError(f"{name} is {value!r}; give a finite number of {least} or more")
        if on_stale == "drop" and publish_every > bound + 1:
            raise ValueError(
                f"publish_every is {publish_every} with bound {bound}: everything would be dropped before the next "
                f"version is published; give publish_every of {bound + 1} or less, or on_stale='recompute'"
            )
        self._gradient = GradientFn(learner, store, model, poll_every, clock)
        self._apply = ApplyFn(learner, store, model, bound, on_stale, publish_every, snapshot_every)

    def expand(self, chunks: beam.PCollection[tuple[str, bytes]]) -> beam.PCollection[Update]:
        """Compute gradients where the chunks are, apply them at one place."""
        if chunks.is_bounded:
            raise ValueError(
                "asynchronous training needs an unbounded source, as a bounded job may run all gradients before the "
                "first update: give this input to PredictThenLearn"
            )
        # Without it Prism runs one key in two bundles at once and loses state.
        chunks.pipeline.options.view_as(DebugOptions).add_experiment("prism_disable_sdf_split")
        if not isinstance(chunks.windowing.windowfn, GlobalWindows):
            chunks |= "Window" >> beam.WindowInto(GlobalWindows())
        gradient = beam.ParDo(self._gradient).with_output_types(tuple[str, bytes], failed=BadChunk)
        apply = beam.ParDo(self._apply).with_output_types(Update, published=Published)
        computed = chunks | "Gradient" >> gradient.with_outputs("failed", main="gradients")
        done = computed.gradients | "Apply" >> apply.with_outputs("published", main="updates")
        updates = done.updates
        updates.published, updates.failed = done.published, computed.failed
        return updates
