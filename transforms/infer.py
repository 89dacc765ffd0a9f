"""The DoFns behind ``ContinuousInference``: they hand elements to the engine of their process, and emit outcomes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import apache_beam as beam
from apache_beam.metrics import Metrics
from apache_beam.ml.inference.base import ModelHandler
from apache_beam.pvalue import TaggedOutput
from apache_beam.transforms.window import GlobalWindow
from apache_beam.utils.timestamp import Timestamp
from apache_beam.utils.windowed_value import create

from contbatch.transforms.batching import BatchPolicy, Reason
from contbatch.transforms.bundle_watch import BundleWatch, allowed_wait, warn
from contbatch.transforms.engine.batches import BatchDevice
from contbatch.transforms.engine.call import with_version
from contbatch.transforms.engine.dispatch import Delivery, Shed, Task, Work
from contbatch.transforms.engine.engine import Engine
from contbatch.transforms.engine.faults import Failure
from contbatch.transforms.engine.iterative import iterative
from contbatch.transforms.engine.leases import Lease
from contbatch.transforms.engine.slot import ModelSlot
from contbatch.transforms.engine.steps import StepDevice
from contbatch.transforms.engine.versions import Versions
from contbatch.transforms.infer_metrics import InferMetrics
from contbatch.transforms.microbatch import MicroBatch

_MOST_HELD, _HELD_SECONDS = 1024, 0.001
"""A bundle's elements go to the engine when so many are there, or the first of them is so old, in seconds.

What is kept when nothing more comes goes at the bundle's end: until then no answer could leave. So that is when it
arrives, for a latency goal.
"""
_GLOBAL = (GlobalWindow(),)


class FailedElement(NamedTuple):
    """An element without a prediction, and why.

    Attributes:
        element: as it came to the stage that failed.
        stage: ``preprocess``, ``policy`` (one of its functions), ``inference`` or ``postprocess``.
        error: the type of the error, and its text.
    """

    element: Any
    stage: str
    error: str


class ShedElement(NamedTuple):
    """An element that was given up.

    Attributes:
        element: as the model would have had it.
        reason: ``DEADLINE`` if it could not be answered in time, ``CAPACITY`` if too much was waiting.
    """

    element: Any
    reason: Reason


@dataclass(frozen=True)
class InferSettings:
    """What the DoFn has to know.

    Attributes:
        handler: of the model, without functions before and after it.
        policy: when batches are released.
        key: of the engine.
        versions: where newer models are found, if anywhere.
        poll: seconds between two looks.
        inference_args: for the handler.
        time_limit: seconds that a call may take.
        threshold: share of a bundle's elements that may fail.
        namespace: of the metrics.
        clock: seconds since the epoch, of deadlines.
    """

    handler: ModelHandler
    policy: BatchPolicy
    key: str
    versions: Versions | None
    poll: float
    inference_args: dict[str, Any] | None
    time_limit: float | None
    threshold: float
    namespace: str
    clock: Callable[[], float]

    def engine(self) -> Engine:
        """Make the engine, with its model loaded."""
        device = StepDevice() if iterative(self.handler) else BatchDevice(self.inference_args)
        slot = ModelSlot(self.handler, self.versions, device.warm_up, self.key)
        slot.load()
        if self.versions is not None:
            slot.start(self.poll)
        return Engine(slot, device, self.policy, time_limit=self.time_limit)


class InferFn(beam.DoFn):
    """Elements of the global window to predictions, and to the outputs ``shed`` and ``failed``."""

    _watched = True
    """Whether bundles come as elements do, so that it says something how far apart they begin."""

    def __init__(self, settings: InferSettings) -> None:
        self._settings = settings
        self._metrics = InferMetrics(settings.namespace)
        self._lease: Lease | None = None

    def setup(self) -> None:
        """Find the engine of this process, or make it."""
        settings, policy = self._settings, self._settings.policy
        settings.handler.set_environment_vars()
        settings.handler.override_metrics(settings.namespace)
        self._lease = Lease(settings.key, settings.engine)
        self._engine = self._lease.engine
        self._now = self._engine.clock
        self._most_held = min(policy.max_size, _MOST_HELD)
        self._asks = bool(policy.deadline_fn or policy.weight_fn or policy.length_fn or policy.priority_fn)
        self._flatten = settings.handler.should_skip_batching()
        self._watch = BundleWatch(allowed_wait(policy) if self._watched else math.inf, self._now)
        self._work = Work()

    def start_bundle(self) -> None:
        """Begin anew; what a bundle that failed has left is given up."""
        warn("bundles", self._watch.start())
        self._engine.end(self._work)
        self._work = self._engine.begin()
        self._tasks: list[Task] = []
        self._since = 0.0
        self._seen = self._bad = 0

    def process(self, element: Any, timestamp: Timestamp = beam.DoFn.TimestampParam) -> Iterable[Any]:
        """Keep an element, hand over what was kept if it is enough, and emit what has an outcome."""
        return self._keep(element, timestamp.micros, _GLOBAL)

    def _keep(self, element: Any, micros: int, windows: tuple[Any]) -> Iterable[Any]:
        tasks, work, now = self._tasks, self._work, self._now()
        if not tasks:
            self._since = now
        tasks.append((element, work, micros, windows))
        if len(tasks) >= self._most_held or now >= self._since + _HELD_SECONDS:
            return self._hand_over()
        return self._emit(self._engine.fetch(work)) if work.delivered else ()

    def finish_bundle(self) -> Iterator[Any]:
        """Hand over the rest, and emit the last outcomes."""
        yield from self._hand_over()
        self._watch.finish(self._seen)
        yield from self._emit(self._engine.wait(self._work))
        self._engine.end(self._work)
        if self._bad > self._settings.threshold * self._seen:
            raise RuntimeError(
                f"{self._bad} of a bundle's {self._seen} elements failed, more than the threshold of "
                f"{self._settings.threshold:g}; the last one with {self._error}"
            )

    def teardown(self) -> None:
        """Give the engine back."""
        if self._lease is not None:
            self._engine.end(self._work)
            self._lease.release()

    def _hand_over(self) -> list[Any]:
        """Give the engine what was kept; returns what can be emitted."""
        tasks, self._tasks = self._tasks, []
        self._seen += len(tasks)
        asked: dict[str, list[float]] = {}
        failed: list[Any] = []
        if self._asks:
            tasks, asked, failed = self._ask(tasks)
        if tasks:
            self._engine.submit(self._work, tasks, **asked)
        return failed + self._emit(self._engine.fetch(self._work))

    def _ask(self, tasks: list[Task]) -> tuple[list[Task], dict[str, list[float]], list[Any]]:
        """Ask the policy's functions; returns the elements that they know, what they say, and the others."""
        policy, failed = self._settings.policy, []
        kept: list[Task] = []
        deadlines: list[float] = []
        weights: list[float] = []
        priorities: list[float] = []
        arrival = self._settings.clock()
        since_epoch = arrival - self._now()
        for task in tasks:
            element = task[0]
            try:
                deadline = policy.deadline_of(element, arrival) - since_epoch
                said = deadline, policy.weight_of(element), policy.priority_of(element)
            except Exception as error:  # whatever a user's function raises
                failed.append(self._failed(task, "policy", f"{type(error).__name__}: {error}"))
                continue
            kept.append(task)
            deadlines.append(said[0])
            weights.append(said[1])
            priorities.append(said[2])
        asked = {"weights": weights, "priorities": priorities}
        return kept, asked | ({"deadlines": deadlines} if policy.deadline_fn else {}), failed

    def _emit(self, deliveries: Iterable[Delivery]) -> list[Any]:
        """Return outcomes as outputs, each with the timestamp and window of its element."""
        out: list[Any] = []
        for tasks, outcomes, plain, facts, version in deliveries:
            if facts is not None:
                self._metrics.batch(facts)
            if plain and not self._flatten:
                pairs = zip(outcomes, tasks, strict=True)
                if version is None:
                    out += [create(one, task[2], task[3]) for one, task in pairs]
                else:
                    out += [create(with_version(one, task[0], version), task[2], task[3]) for one, task in pairs]
                self._metrics.predicted.inc(len(tasks))
            else:
                for task, outcome in zip(tasks, outcomes, strict=True):
                    out += self._output(task, outcome, version)
        return out

    def _output(self, task: Task, outcome: Any, version: str | None) -> list[Any]:
        if type(outcome) is Failure:
            return [self._failed(task, "inference", outcome.error)]
        if type(outcome) is Shed:
            self._metrics.shed.inc()
            return [TaggedOutput("shed", create(ShedElement(task[0], outcome.reason), task[2], task[3]))]
        self._metrics.predicted.inc()
        results = outcome if self._flatten else [outcome]
        if version is not None:
            results = [with_version(one, task[0], version) for one in results]
        return [create(one, task[2], task[3]) for one in results]

    def _failed(self, task: Task, stage: str, error: str) -> TaggedOutput:
        self._bad += 1
        self._error = error
        self._metrics.failed.inc()
        return TaggedOutput("failed", create(FailedElement(task[0], stage, error), task[2], task[3]))


class WindowedInferFn(InferFn):
    """The same in any windows. To be told an element's window costs as much as all the rest."""

    def process(
        self,
        element: Any,
        timestamp: Timestamp = beam.DoFn.TimestampParam,
        window: Any = beam.DoFn.WindowParam,
    ) -> Iterable[Any]:
        """See :class:`InferFn`."""
        return self._keep(element, timestamp.micros, (window,))


class InferBatchesFn(InferFn):
    """The same for elements that come as micro-batches: each leaves with its own time where the watermark allows it."""

    _watched = False

    def process(
        self,
        element: MicroBatch[Any],
        timestamp: Timestamp = beam.DoFn.TimestampParam,
        window: Any = beam.DoFn.WindowParam,
    ) -> Iterable[Any]:
        """Hand a batch over, and emit what has an outcome."""
        least = timestamp.micros
        for one, time in zip(element.elements, element.times, strict=True):
            self._tasks.append((one, self._work, max(time, least), (window,)))
        return self._hand_over()


class ApplyFn(beam.DoFn):
    """Applies functions to an element, one after the other; one that raises sends it to ``failed``."""

    def __init__(self, functions: Sequence[Callable[[Any], Any]], stage: str, namespace: str) -> None:
        self._functions = functions
        self._stage = stage
        self._failed = Metrics.counter(namespace, "failed")
        self._predicted = Metrics.counter(namespace, "predicted")

    def process(self, element: Any) -> Iterator[Any]:
        """Apply them."""
        value = element
        try:
            for function in self._functions:
                value = function(value)
        except Exception as error:  # whatever a user's function raises
            self._failed.inc()
            if self._stage == "postprocess":
                self._predicted.dec()
            yield TaggedOutput("failed", FailedElement(element, self._stage, f"{type(error).__name__}: {error}"))
        else:
            yield value
