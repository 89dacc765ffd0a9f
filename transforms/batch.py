"""``ContinuousBatch``: elements into micro-batches, across bundles."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import apache_beam as beam
from apache_beam import coders
from apache_beam.options.pipeline_options import DebugOptions
from apache_beam.typehints import typehints
from apache_beam.utils.shared import Shared
from apache_beam.utils.timestamp import Timestamp
from apache_beam.utils.windowed_value import WindowedValue

from contbatch.transforms.batching import BatchPolicy, TimeDomain
from contbatch.transforms.buffer import Settings
from contbatch.transforms.bundle_watch import BundleWatch, allowed_wait, check_flags, warn
from contbatch.transforms.chunks import apart, timestamp_of
from contbatch.transforms.event_time import EventTimeBatchFn
from contbatch.transforms.microbatch import ElementsCoder, MicroBatchOf
from contbatch.transforms.rows import Rows, pack
from contbatch.transforms.stateful import BoundedBatchFn, RealTimeBatchFn

_CHUNK, _BUNDLE = 512, 50_000
"""Rows in a chunk, and rows of all keys that are held back at once."""


class ContinuousBatch(beam.PTransform):
    """Groups elements into :class:`~contbatch.transforms.MicroBatch` by a policy, across bundles.

    Batches never mix keys or windows. What waits is in the runner's state, as large chunks: elements are packed
    bundle by bundle before they are keyed.

    The result is the PCollection of batches (of ``(key, batch)`` for keyed input). Its attribute ``shed`` is another
    one of the same type: the elements that were given up, with the reason ``DEADLINE`` (they could not be answered in
    time) or ``CAPACITY``. Everything that comes in is in one of the two, once.

    A batch carries the timestamp of its earliest element, or a later one where the watermark had passed that, and the
    event times of all. On bounded input nobody waits: batches are full but for the last, nothing is shed, and a
    latency goal bounds the seconds that a batch runs.

    What batches cost is the time that is spent in what is fused behind this transform. It is learned once per worker
    process, for all keys and windows.

    Where a parameter of Beam's own batching is found:

    =============================================  ====================================================
    ``GroupIntoBatches``, ``BatchElements``        here
    =============================================  ====================================================
    ``batch_size``, ``max_batch_size``             ``BatchPolicy(max_size=...)``
    ``min_batch_size``                             ``BatchPolicy(min_size=...)``
    ``max_buffering_duration_secs``,               ``BatchPolicy(max_delay=...)``; ``math.inf`` for none
    ``max_batch_duration_secs``
    ``target_batch_duration_secs``,                ``BatchPolicy(max_seconds=...)``, which is a limit and not
    ``..._including_fixed_cost``                   the middle; ``latency_slo`` to include the wait
    ``target_batch_overhead``                      ``BatchPolicy(target_overhead=...)``
    ``element_size_fn``, ``max_batch_weight``      ``BatchPolicy(weight_fn=..., max_weight=...)``
    ``length_fn``, ``bucket_boundaries``           ``BatchPolicy(length_fn=...)``; no boundaries to choose
    ``variance``                                   none: sizes are not varied to learn from them
    ``record_metrics``                             always: ``batch_size``, ``batched``, ``shed``, ``released_REASON``
    ``clock``                                      ``clock``
    ``GroupIntoBatches`` itself                    ``keyed=True``
    ``GroupIntoBatches.WithShardedKey``            unkeyed input, with ``shards``
    =============================================  ====================================================

    Args:
        policy: when a batch is released.
        keyed: whether the elements are pairs of key and value, of which the values are batched per key.
        shards: for unkeyed input: batches that each worker process fills at once. In event time it is one for all
            workers, as batches are not to depend on who read what.
        cost_path: a file on any Beam filesystem that keeps what batches cost, so that a restart need not learn it.
        clock: seconds since the epoch.

    Raises:
        ValueError: an argument is outside its range.
    """

    def __init__(
        self,
        policy: BatchPolicy,
        *,
        keyed: bool = False,
        shards: int = 2,
        cost_path: str | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        super().__init__()
        if not 1 <= shards <= 256:
            raise ValueError(f"shards is {shards}; give 1 to 256")
        self._policy = policy
        self._keyed = keyed
        self._shards = shards
        self._cost_path = cost_path
        self._clock = clock
        self._shared = Shared()

    def expand(self, elements: beam.PCollection[Any]) -> beam.PCollection[Any]:
        """Pack elements into chunks, and form batches of them in state."""
        # Without it Prism runs one key in two bundles at once and loses state.
        elements.pipeline.options.view_as(DebugOptions).add_experiment("prism_disable_sdf_split")
        key_type, value_type = self._types(elements)
        key_coder = coders.registry.get_coder(key_type).as_deterministic_coder(self.label)
        policy, clock = self._policy, self._clock
        settings = Settings(
            policy.unhurried() if elements.is_bounded else policy,
            self._keyed,
            key_coder,
            coders.registry.get_coder(value_type),
            self._shared,
            self._cost_path,
            _never if elements.is_bounded else clock,
            clock,
            type(elements.pipeline.runner).__name__ == "PrismRunner",
        )
        if policy.time_domain is TimeDomain.EVENT_TIME:
            fn: beam.DoFn = EventTimeBatchFn(settings, elements.is_bounded)
        else:
            fn = BoundedBatchFn(settings) if elements.is_bounded else RealTimeBatchFn(settings)
        batch_type = MicroBatchOf(value_type)
        out = typehints.Tuple.__getitem__((key_type, batch_type)) if self._keyed else batch_type
        chunk = beam.ParDo(_ChunkFn(settings, self._shards)).with_output_types(tuple[bytes, bytes])
        batch = beam.ParDo(fn).with_output_types(out, shed=out).with_outputs("shed", main="batches")
        done = apart(elements | "Chunk" >> chunk) | "Batch" >> batch
        batches = done.batches
        batches.shed = done.shed
        return batches

    def _types(self, elements: beam.PCollection[Any]) -> tuple[Any, Any]:
        """Return the types of key and value."""
        if not self._keyed:
            return str, elements.element_type
        kind = elements.element_type
        if isinstance(kind, typehints.TupleHint.TupleConstraint) and len(kind.tuple_types) == 2:
            return kind.tuple_types
        if kind in {typehints.Any, object, None}:
            return typehints.Any, typehints.Any
        raise ValueError(f"keyed is True, and the elements are {kind}; give pairs of key and value")


class _ChunkFn(beam.DoFn):
    """Packs a bundle's elements per key and window, with what the policy has to know of them.

    Chunks are keyed by the key's encoding: Beam's workers find state by Python's equality, by which ``True`` and ``1``
    would share it.
    """

    def __init__(self, settings: Settings, shards: int) -> None:
        self._settings = settings
        self._shards = shards

    def setup(self) -> None:
        settings, policy = self._settings, self._settings.policy
        self._coder = ElementsCoder(settings.coder)
        self._encode_key = settings.key_coder.get_impl().encode
        self._asks = bool(
            policy.latency_slo or policy.deadline_fn or policy.weight_fn or policy.length_fn or policy.priority_fn
        )
        self._shard = 0
        self._watch = BundleWatch(allowed_wait(policy))
        check_flags()

    def start_bundle(self) -> None:
        warn("bundles", self._watch.start())
        self._open: dict[Any, _Open] = {}
        self._held = self._closed = 0

    def process(
        self,
        element: Any,
        timestamp: Timestamp = beam.DoFn.TimestampParam,
        window: Any = beam.DoFn.WindowParam,
    ) -> Iterator[WindowedValue]:
        """Keep an element, and let a full chunk go."""
        if self._settings.keyed:
            key, value = element
            place = self._encode_key(key), window
        else:
            value, place = element, (b"", window)
        chunk = self._open.get(place)
        if chunk is None:
            chunk = self._open[place] = _Open(*place, self._settings.clock(), Rows())
        rows = chunk.rows
        rows.elements.append(value)
        rows.times.append(timestamp.micros)
        if self._asks:
            self._ask(value, chunk)
        self._held += 1
        if len(rows.times) >= _CHUNK:
            yield self._close(self._open.pop(place))
        elif self._held >= _BUNDLE:
            yield from self.finish_bundle()
            self._open, self._held = {}, 0

    def finish_bundle(self) -> Iterator[WindowedValue]:
        """Let the rest go."""
        self._watch.finish(self._closed + self._held)
        for chunk in self._open.values():
            yield self._close(chunk)

    def _ask(self, value: Any, chunk: _Open) -> None:
        """Ask the policy's functions about an element."""
        policy, rows = self._settings.policy, chunk.rows
        if policy.deadline_fn or policy.latency_slo is not None:
            rows.deadlines.append(policy.deadline_of(value, chunk.arrival))
        if policy.weight_fn or policy.length_fn:
            rows.weights.append(policy.weight_of(value))
        if policy.priority_fn:
            rows.priorities.append(policy.priority_of(value))

    def _close(self, chunk: _Open) -> WindowedValue:
        rows, key = chunk.rows, chunk.key
        self._held -= len(rows.times)
        self._closed += len(rows.times)
        rows.arrivals = [chunk.arrival] * len(rows.times)
        if not self._settings.keyed and self._settings.policy.time_domain is TimeDomain.REAL_TIME:
            self._shard = (self._shard + 1) % self._shards
            key = _PROCESS + bytes((self._shard,))
        return WindowedValue((key, pack(rows, self._coder)), timestamp_of(min(rows.times)), (chunk.window,))


@dataclass(slots=True)
class _Open:
    """A chunk that is being filled."""

    key: bytes
    window: Any
    arrival: float
    rows: Rows


_PROCESS = uuid.uuid4().bytes
"""Names this process in the keys of unkeyed input."""


def _never() -> float:
    """Return the time on bounded input, where arrivals mean nothing."""
    return 0.0
