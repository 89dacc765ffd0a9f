"""``ParallelUpdate``: asynchronous data-parallel training with bounded staleness, the Beam shell.

Two steps that meet in the model store. ``Gradient`` is stateless and runs wherever its shard's chunks are: it looks
for the newest published version at most every ``poll_every`` seconds, computes a gradient on what it has, and sends it
on with that version's name and the examples. It waits for nothing, so a shard that stalls stops no other. ``Apply`` is
stateful, one key for the model: it hands what arrives to the :class:`~contbatch.transforms.learning.staleness.Applier`
and publishes every ``publish_every`` versions.

State: ``log`` holds what was submitted since the last snapshot, ``head`` says where the weights stand. The applier in
the DoFn is only a cache, marked with a hash over snapshot and log; one that a failed bundle advanced, or that another
instance has gone on from, does not fit the head and is rebuilt. Only a WATERMARK timer, at the end of time, for the
last version.

A version is known by its digest as well as its number: after a failure the store may hold versions that this line of
weights never had. Their gradients are computed again, and the epoch goes up, so that the next version published is
newer than theirs.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

import apache_beam as beam
import numpy as np
import safetensors.numpy
from apache_beam import coders
from apache_beam.metrics import Metrics
from apache_beam.options.pipeline_options import DebugOptions
from apache_beam.transforms.timeutil import TimeDomain
from apache_beam.transforms.userstate import BagStateSpec, ReadModifyWriteStateSpec, TimerSpec, on_timer
from apache_beam.transforms.window import GlobalWindows
from apache_beam.utils.timestamp import Timestamp

import contbatch.transforms.coders  # noqa: F401  registers the coders
from contbatch.transforms.chunks import END, at
from contbatch.transforms.learning.learner import Arrays
from contbatch.transforms.learning.metrics import log_loss
from contbatch.transforms.learning.staleness import Applier, Batch, Fate, GradientLearner, OnStale, check_bound
from contbatch.transforms.learning.store import ModelStore, StoreError
from contbatch.transforms.records import Published


class Update(NamedTuple):
    """What became of a chunk of examples.

    Attributes:
        shard: where it came from.
        examples: how many it held.
        fate: ``applied``, ``recomputed`` or ``dropped``.
        staleness: versions that its gradient was behind when it came; -1 if its weights were of a lost line.
        version: the weights afterwards, ``epoch.step``.
        model: which model.
    """

    shard: str
    examples: int
    fate: str
    staleness: int
    version: str
    model: str


class BadChunk(NamedTuple):
    """A chunk that gives no gradient.

    Attributes:
        shard: where it came from.
        reason: what was wrong, in words.
        chunk: as it arrived.
    """

    shard: str
    reason: str
    chunk: bytes


for record in (Update, BadChunk):
    coders.registry.register_coder(record, coders.RowCoder)


def pack_batch(batch: Batch) -> bytes:
    """Encode labelled rows as a chunk. Columns are numeric arrays, or sequences of what JSON can hold.

    Raises:
        ValueError: it has no rows, or not one value for each of them everywhere.
    """
    _check(batch)
    arrays: Arrays = {"labels": np.array(batch.labels, float), "weights": np.array(batch.weights, float)}
    lists = {}
    for name, column in batch.columns.items():
        if isinstance(column, np.ndarray) and column.dtype.kind in "biuf":
            arrays[f"column/{name}"] = np.ascontiguousarray(column)
        else:
            lists[name] = column.tolist() if isinstance(column, np.ndarray) else list(column)
    return safetensors.numpy.save({**arrays, "lists": _json(lists)})


def unpack_batch(chunk: bytes) -> Batch:
    """Decode what :func:`pack_batch` encoded.

    Raises:
        Exception: the bytes are not such a chunk; of the kind that what is wrong with them leads to.
    """
    arrays = safetensors.numpy.load(chunk)
    columns = json.loads(arrays["lists"].tobytes())
    prefix = "column/"
    columns |= {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
    batch = Batch(columns, arrays["labels"], arrays["weights"])
    _check(batch)
    return batch


def _check(batch: Batch) -> None:
    sizes = {"labels": len(batch.labels), "weights": len(batch.weights)}
    sizes |= {name: len(column) for name, column in batch.columns.items()}
    if batch.size == 0 or len(set(sizes.values())) > 1:
        raise ValueError(f"the sizes of a batch are {sizes}; give the same number everywhere, 1 or more")


class ParallelUpdate(beam.PTransform):
    """Trains one model on many shards at once; nobody waits, and nothing staler than ``bound`` is applied.

    Takes an unbounded PCollection of ``(shard, chunk)``, the chunk from :func:`pack_batch`, and returns the
    :class:`Update` of each chunk, with the attributes ``published`` (of
    :class:`~contbatch.transforms.records.Published`) and ``failed`` (of :class:`BadChunk`). Every chunk comes out as
    one of Update and BadChunk. A gradient beyond the bound is computed again by the applier, or dropped; the counters
    ``applied``, ``recomputed`` and ``dropped`` say how many. Training starts from the learner's initial weights, also
    where the store has versions of an earlier job: the new ones are then of a higher epoch.

    Args:
        learner: the model, in two halves.
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
        self._settings = _Settings(
            learner, store, model, bound, on_stale, publish_every, poll_every, snapshot_every, clock
        )

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
        gradient = beam.ParDo(_GradientFn(self._settings)).with_output_types(tuple[str, bytes], failed=BadChunk)
        apply = beam.ParDo(_ApplyFn(self._settings)).with_output_types(Update, published=Published)
        computed = chunks | "Gradient" >> gradient.with_outputs("failed", main="gradients")
        done = computed.gradients | "Apply" >> apply.with_outputs("published", main="updates")
        updates = done.updates
        updates.published, updates.failed = done.published, computed.failed
        return updates


@dataclass(frozen=True)
class _Settings:
    learner: GradientLearner[Any]
    store: str
    model: str
    bound: int
    on_stale: OnStale
    publish_every: int
    poll_every: float
    snapshot_every: int
    clock: Callable[[], float]


class _Read(NamedTuple):
    """The weights that a worker has read."""

    epoch: int
    step: int
    digest: str


_INITIAL = _Read(0, 0, "")
"""What the learner starts from; never published."""


class _GradientFn(beam.DoFn):
    def __init__(self, settings: _Settings) -> None:
        self._settings = settings

    def setup(self) -> None:
        self._store = ModelStore(self._settings.store)
        self._read, self._state = _INITIAL, self._settings.learner.init()
        self._polled = -math.inf

    def process(self, element: tuple[str, bytes], timestamp: Timestamp = beam.DoFn.TimestampParam) -> Iterator[Any]:
        shard, chunk = element
        self._refresh()
        try:
            message = self._message(shard, chunk)
        except Exception as error:  # whatever the bytes or the rows happen to break
            failed = BadChunk(shard, f"{type(error).__name__}: {error}", chunk)
            yield beam.pvalue.TaggedOutput("failed", at(failed, timestamp.micros))
        else:
            yield at((self._settings.model, message), timestamp.micros)

    def _message(self, shard: str, chunk: bytes) -> bytes:
        learner, batch = self._settings.learner, unpack_batch(chunk)
        scores = learner.predict(self._state, batch.columns)
        gradient = learner.gradient(self._state, *batch)
        if not all(np.isfinite(array).all() for array in gradient.values()):
            raise ValueError("the gradient is not finite; look for labels, weights or values that are not")
        loss = math.fsum(map(log_loss, scores.tolist(), batch.labels.tolist()))
        arrays = {f"gradient/{name}": np.ascontiguousarray(array) for name, array in gradient.items()}
        about = {"read": self._read, "shard": shard, "loss": loss}
        return safetensors.numpy.save({**arrays, "about": _json(about), "chunk": np.frombuffer(chunk, np.uint8)})

    def _refresh(self) -> None:
        """Go on with the newest version, if it is time to look."""
        now = self._settings.clock()
        if now - self._polled < self._settings.poll_every:
            return
        self._polled = now
        for manifest in self._store.newest(self._settings.model):
            read = _Read(manifest.epoch, manifest.step, manifest.digest)
            if read == self._read:
                return
            try:
                arrays = self._store.read(manifest)
            except StoreError:
                continue  # torn: the version before it stands
            self._read, self._state = read, self._settings.learner.load(arrays)
            return


@dataclass
class _Head:
    """The state cell that says where the weights stand.

    Attributes:
        snapshot: digest of the applier's snapshot in the store, or "" before the first.
        chain: hash over the snapshot and the log since.
        entries: gradients in the log.
        epoch: of the versions published from now on.
        published: what workers may have read and the bound allows, oldest first; the last is the newest published.
        loss: log loss of the examples learned, each as its worker scored it before learning it, summed.
        time: newest event time of a chunk, microseconds since the epoch.
    """

    snapshot: str = ""
    chain: str = ""
    entries: int = 0
    epoch: int = 0
    published: list[_Read] = field(default_factory=lambda: [_INITIAL])
    loss: float = 0.0
    time: int = 0

    @classmethod
    def load(cls, content: bytes | None) -> _Head:
        values = json.loads(content) if content else {}
        published = [_Read(*read) for read in values.pop("published", [_INITIAL])]
        return cls(published=published, **values)

    def dump(self) -> bytes:
        return json.dumps(asdict(self)).encode()

    def version_of(self, read: _Read, oldest: int) -> int | None:
        """Return the version that a worker has read, or ``None`` if these weights never were at it.

        One below ``oldest`` is beyond the bound in any case.
        """
        if read in self.published:
            return read.step
        if read[:2] >= (self.epoch, self.published[-1].step):
            self.epoch = read.epoch + 1
        return read.step if read.step < oldest else None


class _ApplyFn(beam.DoFn):
    LOG = BagStateSpec("log", coders.BytesCoder())
    HEAD = ReadModifyWriteStateSpec("head", coders.BytesCoder())
    LAST = TimerSpec("last", TimeDomain.WATERMARK)

    def __init__(self, settings: _Settings) -> None:
        self._settings = settings
        self._counters = {fate: Metrics.counter("contbatch", fate.value) for fate in Fate}
        self._rebuilt = Metrics.counter("contbatch", "rebuilt")

    def setup(self) -> None:
        self._store = ModelStore(self._settings.store)
        self._cache: tuple[str, Applier[Any]] | None = None

    def start_bundle(self) -> None:
        self._head: _Head | None = None

    def process(
        self,
        element: tuple[str, bytes],
        timestamp: Timestamp = beam.DoFn.TimestampParam,
        log: Any = beam.DoFn.StateParam(LOG),
        head_cell: Any = beam.DoFn.StateParam(HEAD),
        last: Any = beam.DoFn.TimerParam(LAST),
    ) -> Iterator[Any]:
        settings, (_, message) = self._settings, element
        head, applier = self._open(log, head_cell)
        about, gradient, batch = _decode(message)
        version = head.version_of(_Read(*about["read"]), applier.version - settings.bound)
        outcome = applier.submit(version, gradient, batch)
        if outcome.fate is not Fate.DROPPED:
            head.loss += about["loss"]
        head.time = max(head.time, timestamp.micros)
        self._record(head, applier, log, _entry(head.entries, version, message))
        published = self._publish(head, applier, settings.publish_every)
        head_cell.write(head.dump())
        last.set(END)
        self._counters[outcome.fate].inc()
        name = f"{head.epoch}.{outcome.version}"
        staleness = -1 if outcome.staleness is None else outcome.staleness
        update = Update(about["shard"], batch.size, outcome.fate.value, staleness, name, settings.model)
        yield at(update, timestamp.micros)
        for record in published:
            yield beam.pvalue.TaggedOutput("published", at(record, timestamp.micros))

    @on_timer(LAST)
    def on_last(
        self,
        timestamp: Timestamp = beam.DoFn.TimestampParam,
        log: Any = beam.DoFn.StateParam(LOG),
        head_cell: Any = beam.DoFn.StateParam(HEAD),
    ) -> Iterator[Any]:
        """End of input: the last weights are published."""
        head, applier = self._open(log, head_cell)
        self._cache = head.chain, applier
        published = self._publish(head, applier, 1)
        head_cell.write(head.dump())
        for record in published:
            yield beam.pvalue.TaggedOutput("published", at(record, timestamp.micros))

    def _open(self, log: Any, head_cell: Any) -> tuple[_Head, Applier[Any]]:
        """Return where the weights stand, and the applier there; it leaves the cache until :meth:`_record`."""
        head = self._head = self._head or _Head.load(head_cell.read())
        cache, self._cache = self._cache, None
        if cache is not None and cache[0] == head.chain:
            return head, cache[1]
        settings = self._settings
        applier = Applier(settings.learner, settings.bound, settings.on_stale)
        if head.snapshot:
            applier.load(self._store.read_snapshot(head.snapshot))
        if head.chain:
            self._rebuilt.inc()
        chain = head.snapshot
        for entry in sorted(log.read()):
            version, message = _submitted(entry)
            applier.submit(version, *_decode(message)[1:])
            chain = _extend(chain, entry)
        if chain != head.chain:
            raise RuntimeError(f"model {settings.model!r}: the log in state does not lead to the state's own {head}")
        return head, applier

    def _record(self, head: _Head, applier: Applier[Any], log: Any, entry: bytes) -> None:
        """Note what was submitted, in the log or as a snapshot."""
        head.entries += 1
        if head.entries < self._settings.snapshot_every:
            head.chain = _extend(head.chain, entry)
            log.add(entry)
        else:
            head.snapshot = head.chain = self._store.write_snapshot(applier.export())
            head.entries = 0
            log.clear()
        self._cache = head.chain, applier

    def _publish(self, head: _Head, applier: Applier[Any], least: int) -> list[Published]:
        """Publish the weights if they are ``least`` versions on."""
        settings, before = self._settings, head.published[-1]
        if applier.version - before.step < least:
            return []
        examples = applier.statistics().learned_examples
        manifest = self._store.publish(
            settings.learner.export(applier.state),
            model=settings.model,
            epoch=head.epoch,
            step=applier.version,
            parent=f"{before.epoch}.{before.step}" if before.step else None,
            examples=examples,
            loss=head.loss / examples,
            time=head.time,
            config={"learner": repr(settings.learner), "bound": str(settings.bound), "on_stale": settings.on_stale},
        )
        oldest = applier.version - settings.bound
        head.published = [read for read in head.published if read.step >= oldest]
        head.published.append(_Read(head.epoch, applier.version, manifest.digest))
        return [Published(manifest.version, manifest.digest, manifest.examples, manifest.time, settings.model)]


def _json(content: Any) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.frombuffer(json.dumps(content).encode(), np.uint8)


def _decode(message: bytes) -> tuple[dict[str, Any], Arrays, Batch]:
    arrays = safetensors.numpy.load(message)
    prefix = "gradient/"
    gradient = {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
    return json.loads(arrays["about"].tobytes()), gradient, unpack_batch(arrays["chunk"].tobytes())


def _entry(number: int, version: int | None, message: bytes) -> bytes:
    """Encode what was submitted, so that entries sort by their number."""
    known = -1 if version is None else version
    return number.to_bytes(8, "big") + known.to_bytes(8, "big", signed=True) + message


def _submitted(entry: bytes) -> tuple[int | None, bytes]:
    version = int.from_bytes(entry[8:16], "big", signed=True)
    return None if version < 0 else version, entry[16:]


def _extend(chain: str, entry: bytes) -> str:
    return hashlib.sha256(chain.encode() + entry).hexdigest()
