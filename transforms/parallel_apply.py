"""The stateful half of ``ParallelUpdate``: the one who applies gradients, one key for the model.

It hands what arrives to the :class:`~contbatch.transforms.learning.staleness.Applier` and publishes every
``publish_every`` versions.

State: ``log`` holds what was submitted since the last snapshot, ``head`` says where the weights stand. The applier in
the DoFn is only a cache, marked with a hash over snapshot and log; one that a failed bundle advanced, or that another
instance has gone on from, does not fit the head and is rebuilt. Only a WATERMARK timer, at the end of time, for the
last version.

A version is known by its digest as well as its number: after a failure the store may hold versions that this line of
weights never had. Their gradients are computed again, and the epoch goes up, so that the next version published is
newer than theirs.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

import apache_beam as beam
from apache_beam import coders
from apache_beam.metrics import Metrics
from apache_beam.transforms.timeutil import TimeDomain
from apache_beam.transforms.userstate import BagStateSpec, ReadModifyWriteStateSpec, TimerSpec, on_timer
from apache_beam.utils.timestamp import Timestamp

from contbatch.transforms.chunks import END, at
from contbatch.transforms.coders import RecordCoder
from contbatch.transforms.learning.shelf import extend
from contbatch.transforms.learning.staleness import Applier, Fate, GradientLearner, OnStale
from contbatch.transforms.learning.store import ModelStore
from contbatch.transforms.parallel_gradient import INITIAL, Message, Read
from contbatch.transforms.records import Published

_THIN_EVERY = 32
"""Versions after which old ones are thinned out."""


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


coders.registry.register_coder(Update, RecordCoder)


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
    published: list[Read] = field(default_factory=lambda: [INITIAL])
    loss: float = 0.0
    time: int = 0

    @classmethod
    def load(cls, content: bytes | None) -> _Head:
        values = json.loads(content) if content else {}
        published = [Read(*read) for read in values.pop("published", [INITIAL])]
        return cls(published=published, **values)

    def dump(self) -> bytes:
        return json.dumps(asdict(self)).encode()

    def version_of(self, read: Read, oldest: int) -> int | None:
        """Return the version that a worker has read, or ``None`` if these weights never were at it.

        One below ``oldest`` is beyond the bound in any case.
        """
        if read in self.published:
            return read.step
        if read[:2] >= (self.epoch, self.published[-1].step):
            self.epoch = read.epoch + 1
        return read.step if read.step < oldest else None


class ApplyFn(beam.DoFn):
    """Turns ``(model, message)`` into an :class:`Update`; the versions made are at the tag ``published``.

    Args:
        learner: applies gradients.
        store: folder for versions and snapshots.
        model: its name there.
        bound: most versions that an applied gradient may be behind.
        on_stale: what happens to the others.
        publish_every: versions between published ones.
        snapshot_every: gradients between snapshots.
    """

    LOG = BagStateSpec("log", coders.BytesCoder())
    HEAD = ReadModifyWriteStateSpec("head", coders.BytesCoder())
    LAST = TimerSpec("last", TimeDomain.WATERMARK)

    def __init__(
        self,
        learner: GradientLearner[Any],
        store: str,
        model: str,
        bound: int,
        on_stale: OnStale,
        publish_every: int,
        snapshot_every: int,
    ) -> None:
        self._learner = learner
        self._folder = store
        self._model = model
        self._bound = bound
        self._on_stale = on_stale
        self._publish_every = publish_every
        self._snapshot_every = snapshot_every
        self._counters = {fate: Metrics.counter("contbatch", fate.value) for fate in Fate}
        self._rebuilt = Metrics.counter("contbatch", "rebuilt")

    def setup(self) -> None:
        """Start without a cache."""
        self._store = ModelStore(self._folder)
        self._cache: tuple[str, Applier[Any]] | None = None
        self._published = 0

    def start_bundle(self) -> None:
        """Read the head anew: the bundle before may have failed."""
        self._head: _Head | None = None

    def process(
        self,
        element: tuple[str, bytes],
        timestamp: Timestamp = beam.DoFn.TimestampParam,
        log: Any = beam.DoFn.StateParam(LOG),
        head_cell: Any = beam.DoFn.StateParam(HEAD),
        last: Any = beam.DoFn.TimerParam(LAST),
    ) -> Iterator[Any]:
        """Submit a gradient, and publish if it is time to."""
        head, applier = self._open(log, head_cell)
        content = element[1]
        message = Message.load(content)
        batch = message.batch
        version = head.version_of(message.read, applier.version - self._bound)
        outcome = applier.submit(version, message.gradient, batch)
        if outcome.fate is not Fate.DROPPED:
            head.loss += message.loss
        head.time = max(head.time, timestamp.micros)
        self._record(head, applier, log, _entry(head.entries, version, content))
        published = self._publish(head, applier, self._publish_every)
        head_cell.write(head.dump())
        last.set(END)
        self._counters[outcome.fate].inc()
        name = f"{head.epoch}.{outcome.version}"
        staleness = -1 if outcome.staleness is None else outcome.staleness
        update = Update(message.shard, batch.size, outcome.fate.value, staleness, name, self._model)
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
        if head.snapshot:
            self._store.snapshots.retire(head.snapshot)  # nobody goes on from the end
        head_cell.write(head.dump())
        for record in published:
            yield beam.pvalue.TaggedOutput("published", at(record, timestamp.micros))

    def _open(self, log: Any, head_cell: Any) -> tuple[_Head, Applier[Any]]:
        """Return where the weights stand, and the applier there; it leaves the cache until :meth:`_record`."""
        head = self._head = self._head or _Head.load(head_cell.read())
        cache, self._cache = self._cache, None
        if cache is not None and cache[0] == head.chain:
            return head, cache[1]
        applier = Applier(self._learner, self._bound, self._on_stale)
        if head.snapshot:
            applier.load(self._store.read_snapshot(head.snapshot))
        if head.chain:
            self._rebuilt.inc()
        chain = head.snapshot
        for entry in sorted(log.read()):
            version, content = _submitted(entry)
            message = Message.load(content)
            applier.submit(version, message.gradient, message.batch)
            chain = extend(chain, entry)
        if chain != head.chain:
            raise RuntimeError(f"model {self._model!r}: the log in state does not lead to the state's own {head}")
        return head, applier

    def _record(self, head: _Head, applier: Applier[Any], log: Any, entry: bytes) -> None:
        """Note what was submitted, in the log or as a snapshot."""
        head.entries += 1
        if head.entries < self._snapshot_every:
            head.chain = extend(head.chain, entry)
            log.add(entry)
        else:
            digest = self._store.write_snapshot(applier.export())
            self._store.snapshots.replace(head.snapshot, digest)
            head.snapshot = head.chain = digest
            head.entries = 0
            log.clear()
        self._cache = head.chain, applier

    def _publish(self, head: _Head, applier: Applier[Any], least: int) -> list[Published]:
        """Publish the weights if they are ``least`` versions on."""
        before = head.published[-1]
        if applier.version - before.step < least:
            return []
        examples = applier.statistics().learned_examples
        manifest = self._store.publish(
            self._learner.export(applier.state),
            model=self._model,
            epoch=head.epoch,
            step=applier.version,
            parent=f"{before.epoch}.{before.step}" if before.step else None,
            examples=examples,
            loss=head.loss / examples,
            time=head.time,
            config={"learner": repr(self._learner), "bound": str(self._bound), "on_stale": self._on_stale},
        )
        self._published += 1
        if self._published % _THIN_EVERY == 0:
            self._store.thin(self._model)
        oldest = applier.version - self._bound
        head.published = [read for read in head.published if read.step >= oldest]
        head.published.append(Read(head.epoch, applier.version, manifest.digest))
        return [Published(manifest.version, manifest.digest, manifest.examples, manifest.time, self._model)]


def _entry(number: int, version: int | None, content: bytes) -> bytes:
    """Encode what was submitted, so that entries sort by their number."""
    known = -1 if version is None else version
    return number.to_bytes(8, "big") + known.to_bytes(8, "big", signed=True) + content


def _submitted(entry: bytes) -> tuple[int | None, bytes]:
    version = int.from_bytes(entry[8:16], "big", signed=True)
    return None if version < 0 else version, entry[16:]
