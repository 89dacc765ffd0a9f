"""Threads that drive DoFns as a runner's workers do, in a closed loop or as elements arrive."""

from __future__ import annotations

import copy
import sys
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
from apache_beam.ml.inference.base import ModelHandler, PredictionResult, _RunInferenceDoFn
from apache_beam.pvalue import TaggedOutput
from apache_beam.utils.timestamp import Timestamp

from contbatch.transforms import BatchPolicy
from contbatch.transforms.engine.versions import Versions
from contbatch.transforms.infer import InferFn, InferSettings

Element = tuple[int, Any]
"""Its number, and what the handler gets."""


def progress(text: str) -> None:
    """Tell what runs now."""
    print(text, file=sys.stderr)


class Model:
    """Of handlers that need none; Beam shares models by weak references."""


class Device:
    """A device that runs one batch at a time; its sizes are remembered."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.sizes: list[int] = []

    def run(self, size: int, seconds: float) -> None:
        """Run a batch."""
        with self._lock:
            time.sleep(seconds)
            self.sizes.append(size)

    def reset(self) -> list[int]:
        """Return the sizes of all batches so far, and forget them."""
        sizes, self.sizes = self.sizes, []
        return sizes


DEVICE = Device()
"""Of this process, so that a handler that a runner has pickled finds it."""


class DeviceHandler(ModelHandler):
    """Predicts each element itself, on :data:`DEVICE`, in a fixed time and one for each element, in seconds."""

    def __init__(self, fixed: float, each: float = 0.0001, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._fixed = fixed
        self._each = each

    def load_model(self) -> Model:
        """Return a model that nobody looks at."""
        return Model()

    def run_inference(self, batch: Sequence[Any], model: Any, inference_args: Any = None) -> list[PredictionResult]:
        """Take the time."""
        DEVICE.run(len(batch), self._fixed + self._each * len(batch))
        return [PredictionResult(element, element) for element in batch]

    def get_num_bytes(self, batch: Sequence[Any]) -> int:
        """Return eight for each; Beam's own pickles the batch."""
        return 8 * len(batch)


class Ours:
    """Runs bundles through a DoFn of ``ContinuousInference``; to be used by one thread. Copies share an engine."""

    def __init__(
        self, handler: ModelHandler, policy: BatchPolicy, versions: Versions | None = None, poll: float = 1.0
    ) -> None:
        self._settings = InferSettings(
            handler=handler,
            policy=policy,
            key=uuid.uuid4().hex,
            versions=versions,
            poll=poll,
            inference_args=None,
            time_limit=None,
            threshold=1.0,
            namespace="benchmark",
            clock=time.time,
        )

    def setup(self) -> None:
        """Do what a worker does first."""
        self._fn = InferFn(self._settings)
        self._fn.setup()

    def bundle(self, elements: Sequence[Element]) -> Iterator[Element]:
        """Yield the results of a bundle, with the numbers of their elements, each as soon as it comes."""
        self._fn.start_bundle()
        for number, element in elements:
            yield from map(_numbered, self._fn.process(element, Timestamp(micros=number)))
        yield from map(_numbered, self._fn.finish_bundle())

    def teardown(self) -> None:
        """Do what a worker does last."""
        self._fn.teardown()


class Theirs:
    """Runs bundles through the DoFn of ``RunInference``, each as one batch: its stateless path at its best."""

    def __init__(self, handler: ModelHandler) -> None:
        self._fn = _RunInferenceDoFn(handler, time, "benchmark", model_tag=uuid.uuid4().hex)

    def setup(self) -> None:
        """Do what a worker does first. Copies share a model, as Beam sees to."""
        self._fn = copy.copy(self._fn)
        self._fn.setup()

    def bundle(self, elements: Sequence[Element]) -> Iterator[Element]:
        """Yield the results of a bundle, with the numbers of their elements."""
        self._fn.start_bundle()
        results = self._fn.process([element for _, element in elements], None, None)
        yield from zip([number for number, _ in elements], results, strict=True)
        self._fn.finish_bundle()

    def teardown(self) -> None:
        """Do what a worker does last."""
        self._fn.teardown()


def _numbered(out: Any) -> Element:
    windowed = out.value if isinstance(out, TaggedOutput) else out
    return windowed.timestamp.micros, windowed.value


Side = Ours | Theirs


def _workers(side: Side, threads: int, work: Callable[[Side], Any]) -> list[Any]:
    """Do something on threads with a copy of a side each; all are set up before the first begins."""
    ready = threading.Barrier(threads)

    def go(mine: Side) -> Any:
        mine.setup()
        ready.wait()
        try:
            return work(mine)
        finally:
            mine.teardown()

    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(go, [copy.copy(side) for _ in range(threads)]))


def closed_loop(side: Side, threads: int, seconds: float) -> float:
    """Return the elements per second of threads that give one bundle of one element after the other."""
    end = [0.0]

    def work(mine: Side) -> int:
        end[0] = end[0] or time.perf_counter() + seconds
        number = 0
        while time.perf_counter() < end[0]:
            if [value.inference for _, value in mine.bundle([(number, number)])] != [number]:
                raise RuntimeError(f"element {number} did not come out, or not as it should")
            number += 1
        return number

    return sum(_workers(side, threads, work)) / seconds


class Latencies(NamedTuple):
    """Of an open loop.

    Attributes:
        results: of each element, in the order of arrival.
        seconds: from its scheduled arrival to its output.
    """

    results: list[Any]
    seconds: np.ndarray

    def percentile(self, percent: float) -> float:
        """Return it in milliseconds."""
        return float(np.percentile(self.seconds, percent)) * 1e3


class _Arrivals:
    """Elements that wait from their scheduled arrival until a worker takes them."""

    def __init__(self, schedule: Sequence[float], elements: Sequence[Any], least: int, most: int) -> None:
        self._due = deque(zip(schedule, enumerate(elements), strict=True))
        self._least, self._most = least, most
        self._lock = threading.Lock()
        self._started = 0.0

    def take(self) -> tuple[float, list[Element]]:
        """Wait for a bundle and return it after the time of the start; an empty one if there is no more.

        One worker at a time waits, the others for it.
        """
        with self._lock:
            self._started = self._started or time.perf_counter()
            if not self._due:
                return self._started, []
            complete = self._due[min(self._least, len(self._due)) - 1][0]
            time.sleep(max(0.0, self._started + complete - time.perf_counter()))
            now, bundle = time.perf_counter() - self._started, []
            while self._due and self._due[0][0] <= max(now, complete) and len(bundle) < self._most:
                bundle.append(self._due.popleft()[1])
            return self._started, bundle


def open_loop(
    side: Side, threads: int, schedule: Sequence[float], elements: Sequence[Any], least: int = 1, most: int = 1 << 30
) -> Latencies:
    """Give elements at scheduled times, in seconds, to whichever thread is free.

    A bundle holds what has come by then and nobody has taken: from ``least`` to ``most`` elements.

    Raises:
        RuntimeError: an element did not come out, or came twice.
    """
    arrivals = _Arrivals(schedule, elements, least, most)

    def work(mine: Side) -> list[tuple[int, float, Any]]:
        out = []
        while True:
            started, bundle = arrivals.take()
            if not bundle:
                return out
            out += [(number, time.perf_counter() - started, value) for number, value in mine.bundle(bundle)]

    done = sorted((one for outs in _workers(side, threads, work) for one in outs), key=lambda one: one[0])
    if [number for number, _, _ in done] != list(range(len(elements))):
        raise RuntimeError(f"{len(done)} results for {len(elements)} elements, or one of them twice")
    return Latencies([value for _, _, value in done], np.array([when for _, when, _ in done]) - np.array(schedule))
