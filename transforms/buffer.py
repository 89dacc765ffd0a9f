"""Rows that wait in state, and how they leave it as micro-batches: what the stateful DoFns share."""

from __future__ import annotations

import math
import struct
import sys
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import repeat
from typing import Any

import apache_beam as beam
from apache_beam.coders import BytesCoder, Coder
from apache_beam.metrics import Metrics
from apache_beam.transforms.userstate import BagStateSpec, ReadModifyWriteStateSpec
from apache_beam.transforms.window import GlobalWindow
from apache_beam.utils.shared import Shared
from apache_beam.utils.windowed_value import WindowedValue

from contbatch.transforms.batching import Admission, BatchPolicy, Overflow, Reason, Scheduler
from contbatch.transforms.batching.release import Backlog, ReleaseRule
from contbatch.transforms.chunks import timestamp_of
from contbatch.transforms.events import END_OF_TIME
from contbatch.transforms.kept_cost import KeptCostModel
from contbatch.transforms.microbatch import ElementsCoder, MicroBatch
from contbatch.transforms.rows import Rows, Summary, pack, summary, unpack


@dataclass(frozen=True)
class Settings:
    """What the DoFns have to know.

    Attributes:
        policy: for bounded input already without deadlines.
        keyed: whether elements came with their own keys, and batches leave with them.
        key_coder: of a key.
        coder: of an element.
        shared: identifies the transform, whose instances share a cost model.
        cost_path: where the cost model is kept.
        clock: seconds.
        stopwatch: seconds, for what a batch takes.
        idle_timer: whether REAL_TIME timers are only for idle keys, as on Prism, where they starve under load.
    """

    policy: BatchPolicy
    keyed: bool
    key_coder: Coder
    coder: Coder
    shared: Shared
    cost_path: str | None
    clock: Callable[[], float]
    stopwatch: Callable[[], float]
    idle_timer: bool = False


ROWS = BagStateSpec("rows", BytesCoder())
"""Packed chunks."""
HEAD = ReadModifyWriteStateSpec("head", BytesCoder())
"""Their summary, a :class:`Head`."""

_HEAD = struct.Struct("<Idddqdq")


@dataclass(slots=True)
class Head:
    """What the rows in state are, in summary.

    Attributes:
        backlog: of the rows.
        time: earliest event time among them, microseconds.
        armed: where the timer stands: seconds for REAL_TIME, microseconds for WATERMARK; infinite if nowhere.
        hold: event time at which the armed timer holds the watermark, microseconds.
    """

    backlog: Backlog = field(default_factory=Backlog)
    time: int = END_OF_TIME
    armed: float = math.inf
    hold: int = END_OF_TIME

    @classmethod
    def load(cls, content: bytes | None) -> Head:
        """Read the cell."""
        if not content:
            return cls()
        *backlog, time, armed, hold = _HEAD.unpack(content)
        return cls(Backlog(*backlog), time, armed, hold)

    @classmethod
    def of(cls, chunks: Iterable[bytes]) -> Head:
        """Sum chunks up."""
        head = cls()
        for chunk in chunks:
            head.add(summary(chunk))
        return head

    def dump(self) -> bytes:
        """Return what the cell holds."""
        return _HEAD.pack(*self.backlog, self.time, self.armed, self.hold)

    def add(self, more: Summary) -> None:
        """Add a chunk."""
        self.backlog = self.backlog.plus(more.backlog)
        self.time = min(self.time, more.time)


class BufferFn(beam.DoFn):
    """What the DoFns share: the buffer of one key and window, and how batches leave it."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._batched = Metrics.counter("contbatch", "batched")
        self._shed = Metrics.counter("contbatch", "shed")
        self._sizes = Metrics.distribution("contbatch", "batch_size")
        self._reasons = {reason: Metrics.counter("contbatch", f"released_{reason}") for reason in Reason}

    def setup(self) -> None:
        """Make what cannot be sent."""
        settings = self._settings
        self._cost = settings.shared.acquire(lambda: KeptCostModel(settings.cost_path))
        self._rule = ReleaseRule(settings.policy, self._cost)
        self._unbounded = replace(settings.policy, capacity=sys.maxsize, capacity_seconds=None)
        self._learns = settings.policy.asks_costs
        self._admission = Admission(settings.policy, self._cost)
        self._coder = ElementsCoder(settings.coder)
        self._decode_key = settings.key_coder.get_impl().decode

    def start_bundle(self) -> None:
        """Know no state yet."""
        self._heads: dict[tuple[bytes, Any], Head] = {}

    def finish_bundle(self) -> None:
        """Keep what was learned, now and then."""
        self._cost.save()

    def teardown(self) -> None:
        """Keep what was learned."""
        self._cost.save(now=True)

    def _head(self, key: bytes, window: Any, state: Any) -> Head:
        """Return the summary of what is in state, loaded once per bundle."""
        place = key, window
        if place not in self._heads:
            self._heads[place] = self._load(state)
        return self._heads[place]

    def _load(self, cell: Any) -> Head:
        return Head.load(cell.read())

    def _keep(self, head: Head, cell: Any) -> None:
        """Write the summary, or leave nothing behind of an empty buffer, for keys may come and go for ever."""
        if head.backlog.size:
            cell.write(head.dump())
        else:
            cell.clear()

    def _forget(self, key: bytes, window: Any) -> None:
        """Load the summary anew when it is asked for next."""
        self._heads.pop((key, window), None)

    def _release(
        self, key: bytes, window: Any, rows: Rows, hold: int, drain: Reason | None = None
    ) -> Generator[Any, None, Rows]:
        """Yield batches of the rows as long as one is due, or until none is left; returns the rows that are left."""
        clock, stopwatch = self._settings.clock, self._settings.stopwatch
        scheduler = self._scheduler(rows)
        left = set(range(len(rows.times)))
        while scheduler and (reason := drain or self._why_more(scheduler)):
            batch, shed, because, size, weight, _ = scheduler.release(clock(), flush=drain is not None)
            left.difference_update(batch, shed)
            if shed:
                yield self._shed_rows(key, window, rows.pick(shed), Reason.DEADLINE, hold)
            if batch:
                started = stopwatch()
                reason = reason if because is Reason.IDLE_DEVICE else because
                yield self._batch(key, window, rows.pick(batch), reason, hold, size)
                seconds = stopwatch() - started  # what is fused behind this DoFn has run
                if self._learns and seconds > 0:
                    scheduler.finish(size, seconds, weight)
        return rows.pick(sorted(left))

    def _scheduler(self, rows: Rows) -> Scheduler[int]:
        """Return a scheduler in which the rows wait, by their index."""
        scheduler: Scheduler[int] = Scheduler(self._unbounded, self._cost)
        deadlines = rows.deadlines or repeat(math.inf)
        weights, priorities = rows.weights or repeat(0.0), rows.priorities or repeat(0.0)
        for at, row in enumerate(zip(rows.arrivals, deadlines, weights, priorities, strict=False)):
            scheduler.submit(at, *row)
        return scheduler

    def _why_more(self, scheduler: Scheduler[int]) -> Reason | None:
        """Return why another batch is due; what every waiting element is asked for is looked at last."""
        full = self._rule.due(Backlog(len(scheduler)), -math.inf)
        return full or self._why(scheduler.backlog())

    def _why(self, backlog: Backlog) -> Reason | None:
        """Return why a batch is due now, or ``None``."""
        over = self._settings.policy.overflow is Overflow.BLOCK and self._room(backlog) < 0
        return self._rule.due(backlog, self._settings.clock()) or (Reason.CAPACITY if over else None)

    def _room(self, backlog: Backlog) -> int:
        return self._admission.room(backlog.size, backlog.weight)

    def _add(self, key: bytes, window: Any, head: Head, bag: Any, chunk: bytes, hold: int) -> Iterator[Any]:
        """Put a chunk into state, but for what is shed."""
        chunk = yield from self._admit(key, window, head, chunk, hold)
        if chunk:
            bag.add(chunk)
            head.add(summary(chunk))

    def _admit(self, key: bytes, window: Any, head: Head, chunk: bytes, hold: int) -> Generator[Any, None, bytes]:
        """Shed what there is no room for, the least urgent and then the latest first; returns the chunk without it."""
        count = summary(chunk).backlog.size
        room = max(0, self._room(head.backlog))
        if self._settings.policy.overflow is Overflow.BLOCK or count <= room:
            return chunk
        rows = unpack(chunk, self._coder)
        order = sorted(range(count), key=lambda at: -rows.priorities[at] if rows.priorities else 0.0)
        yield self._shed_rows(key, window, rows.pick(sorted(order[room:])), Reason.CAPACITY, hold)
        return pack(rows.pick(sorted(order[:room])), self._coder) if room else b""

    def _batch(self, key: bytes, window: Any, rows: Rows, reason: Reason, hold: int, size: int = 0) -> WindowedValue:
        count = len(rows.times)
        self._batched.inc(count)
        self._sizes.update(count)
        self._reasons[reason].inc()
        return self._at(key, window, MicroBatch(rows.elements, rows.times, reason, size or count), hold)

    def _shed_rows(self, key: bytes, window: Any, rows: Rows, reason: Reason, hold: int) -> beam.pvalue.TaggedOutput:
        count = len(rows.times)
        self._shed.inc(count)
        batch = MicroBatch(rows.elements, rows.times, reason, count)
        return beam.pvalue.TaggedOutput("shed", self._at(key, window, batch, hold))

    def _at(self, key: bytes, window: Any, batch: MicroBatch[Any], hold: int) -> WindowedValue:
        """Return the batch at its earliest time, but neither behind the watermark nor outside its window."""
        time = min(max(min(batch.times), hold), window.max_timestamp().micros)
        out = (self._decode_key(key), batch) if self._settings.keyed else batch
        return WindowedValue(out, timestamp_of(time), (window,))

    def _read(self, bag: Any) -> Rows:
        rows = Rows()
        for chunk in bag.read():
            rows.extend(unpack(chunk, self._coder))
        return rows

    def _write(self, head: Head, bag: Any, rows: Rows) -> None:
        """Put rows back in place of what was in state."""
        bag.clear()
        head.backlog, head.time = Backlog(), END_OF_TIME
        if rows.times:
            bag.add(pack(rows, self._coder))
            head.add(rows.summary())


def end_of(window: Any) -> Reason:
    """Return why what is left of a window is released."""
    return Reason.DRAIN if isinstance(window, GlobalWindow) else Reason.WINDOW_END
