"""The stateless half of ``ParallelUpdate``: gradients, computed where the chunks are."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import apache_beam as beam
import numpy as np
import safetensors.numpy
from apache_beam import coders
from apache_beam.utils.timestamp import Timestamp

from contbatch.transforms.chunks import at
from contbatch.transforms.coders import RecordCoder
from contbatch.transforms.learning.batches import Batch, unpack_batch
from contbatch.transforms.learning.learner import Arrays, prefixed, unprefixed
from contbatch.transforms.learning.metrics import log_loss
from contbatch.transforms.learning.staleness import GradientLearner
from contbatch.transforms.learning.store import ModelStore, StoreError


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


coders.registry.register_coder(BadChunk, RecordCoder)


class Read(NamedTuple):
    """The weights that a worker has read: a published version, and the digest of its arrays."""

    epoch: int
    step: int
    digest: str


INITIAL = Read(0, 0, "")
"""What the learner starts from; never published."""


class Message(NamedTuple):
    """A gradient on its way to the one who applies it.

    Attributes:
        read: the weights that it was computed on.
        shard: where its rows came from.
        loss: their log loss as these weights score them, summed.
        gradient: what the learner returned.
        chunk: the rows, packed.
    """

    read: Read
    shard: str
    loss: float
    gradient: Arrays
    chunk: bytes

    @property
    def batch(self) -> Batch:
        """The rows."""
        return unpack_batch(self.chunk)

    def dump(self) -> bytes:
        """Return it as bytes."""
        about = json.dumps({"read": self.read, "shard": self.shard, "loss": self.loss})
        arrays = {name: np.ascontiguousarray(array) for name, array in self.gradient.items()}
        content = {"about": np.frombuffer(about.encode(), np.uint8), "chunk": np.frombuffer(self.chunk, np.uint8)}
        return safetensors.numpy.save(content | prefixed(arrays, "gradient/"))

    @classmethod
    def load(cls, content: bytes) -> Message:
        """Return what :meth:`dump` made."""
        arrays = safetensors.numpy.load(content)
        about = json.loads(arrays["about"].tobytes())
        gradient, chunk = unprefixed(arrays, "gradient/"), arrays["chunk"].tobytes()
        return cls(Read(*about["read"]), about["shard"], about["loss"], gradient, chunk)


class GradientFn(beam.DoFn):
    """Turns ``(shard, chunk)`` into ``(model, message)``, or into a :class:`BadChunk` at the tag ``failed``.

    Args:
        learner: computes gradients.
        store: folder of the published versions.
        model: its name there.
        poll_every: seconds between looks into it.
        clock: seconds.
    """

    def __init__(
        self, learner: GradientLearner[Any], store: str, model: str, poll_every: float, clock: Callable[[], float]
    ) -> None:
        self._learner = learner
        self._folder = store
        self._model = model
        self._poll_every = poll_every
        self._clock = clock

    def setup(self) -> None:
        """Start from the initial weights."""
        self._store = ModelStore(self._folder)
        self._read, self._state = INITIAL, self._learner.init()
        self._polled = -math.inf

    def process(self, element: tuple[str, bytes], timestamp: Timestamp = beam.DoFn.TimestampParam) -> Iterator[Any]:
        """Compute a chunk's gradient on the newest weights known here."""
        shard, chunk = element
        self._refresh()
        try:
            message = self._message(shard, chunk)
        except Exception as error:  # whatever the bytes or the rows happen to break
            failed = BadChunk(shard, f"{type(error).__name__}: {error}", chunk)
            yield beam.pvalue.TaggedOutput("failed", at(failed, timestamp.micros))
        else:
            yield at((self._model, message), timestamp.micros)

    def _message(self, shard: str, chunk: bytes) -> bytes:
        batch = unpack_batch(chunk)
        scores = self._learner.predict(self._state, batch.columns)
        gradient = self._learner.gradient(self._state, *batch)
        if not all(np.isfinite(array).all() for array in gradient.values()):
            raise ValueError("the gradient is not finite; look for labels, weights or values that are not")
        loss = math.fsum(map(log_loss, scores.tolist(), batch.labels.tolist()))
        return Message(self._read, shard, loss, gradient, chunk).dump()

    def _refresh(self) -> None:
        """Go on with the newest version, if it is time to look."""
        now = self._clock()
        if now - self._polled < self._poll_every:
            return
        self._polled = now
        for manifest in self._store.newest(self._model):
            read = Read(manifest.epoch, manifest.step, manifest.digest)
            if read == self._read:
                return
            try:
                arrays = self._store.read(manifest)
            except StoreError:
                continue  # torn: the version before it stands
            self._read, self._state = read, self._learner.load(arrays)
            return
