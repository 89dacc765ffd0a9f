"""A small job on Prism that is killed: a scripted source that acks by a bundle finalizer, a model, an idempotent sink.

Run as ``python -m tests.runners.scripted PRISM FOLDER COUNT [apart]``. The folder is all that outlives the job:
``acked`` has the ids that the source was told to forget, each with whether it was answered then; ``out/ID`` is the
answer to one; ``apart`` puts a shuffle between source and sink.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import apache_beam as beam
from apache_beam.io.restriction_trackers import OffsetRange, OffsetRestrictionTracker
from apache_beam.ml.inference.base import ModelHandler, PredictionResult
from apache_beam.transforms.core import RestrictionProvider
from apache_beam.utils.timestamp import Duration

from contbatch.pipelines.options import pipeline_options
from contbatch.transforms import BatchPolicy, ContinuousInference

TOGETHER, PAUSE, DEVICE = 5, 0.02, 0.01
"""Messages in a bundle of the source, seconds between two, seconds that the model needs for a batch."""


class Doubling(ModelHandler):
    """Doubles numbers, slowly."""

    def load_model(self) -> Any:
        return object()

    def run_inference(self, batch: Sequence[int], model: Any, inference_args: Any = None) -> Any:
        time.sleep(DEVICE)
        return [PredictionResult(one, 2 * one) for one in batch]


class Pending(RestrictionProvider):
    """The places in the list of messages that were not acked when the job began."""

    def initial_restriction(self, element: Sequence[int]) -> OffsetRange:
        return OffsetRange(0, len(element))

    def create_tracker(self, restriction: OffsetRange) -> OffsetRestrictionTracker:
        return OffsetRestrictionTracker(restriction)

    def restriction_size(self, element: Sequence[int], restriction: OffsetRange) -> int:
        return restriction.size()


class ReadFn(beam.DoFn):
    """Gives a few messages, and acks them when the runner says that their bundle has been kept."""

    def __init__(self, folder: str) -> None:
        self._folder = folder

    @beam.DoFn.unbounded_per_element()
    def process(
        self,
        element: Sequence[int],
        finalizer: Any = beam.DoFn.BundleFinalizerParam,  # before the tracker: Beam gives it by place, that by name
        tracker: Any = beam.DoFn.RestrictionParam(Pending()),  # noqa: B008
    ) -> Iterator[int]:
        start = tracker.current_restriction().start
        given = []
        for position in range(start, min(start + TOGETHER, len(element))):
            if not tracker.try_claim(position):
                return
            given.append(element[position])
            yield element[position]
        finalizer.register(lambda: self._ack(given))
        if start + TOGETHER < len(element):
            tracker.defer_remainder(Duration(PAUSE))
        else:
            tracker.try_claim(len(element))

    def _ack(self, given: Sequence[int]) -> None:
        answered = written(Path(self._folder))
        with (Path(self._folder) / "acked").open("a") as file:
            file.write("".join(f"{one} {one in answered}\n" for one in given))


class WriteFn(beam.DoFn):
    """Writes each answer into a file of its own, whole or not at all; slower than the source gives, if it may."""

    def __init__(self, folder: str, pause: float) -> None:
        self._folder, self._pause = folder, pause

    def process(self, result: PredictionResult) -> None:
        time.sleep(self._pause)
        temporary = Path(self._folder) / f"{result.example}.tmp"
        temporary.write_text(str(result.inference))
        os.replace(temporary, Path(self._folder) / "out" / str(result.example))


def acked(folder: Path) -> dict[int, bool]:
    """Return the ids that were acked, and whether each was answered then."""
    path = folder / "acked"
    lines = (
        [line.split() for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]
        if path.exists()
        else []
    )
    return {int(one): answered == "True" for one, answered in lines}


def written(folder: Path) -> dict[int, int]:
    """Return the answers by id."""
    return {int(path.name): int(path.read_text()) for path in (folder / "out").iterdir()}


def main(prism: str, folder: str, count: int, apart: bool) -> None:
    """Answer what is not acked."""
    left = sorted(set(range(count)) - acked(Path(folder)).keys())
    options = pipeline_options(["--runner=PrismRunner", f"--prism_location={prism}"], streaming=True)
    with beam.Pipeline(options=options) as pipeline:
        messages = pipeline | beam.Create([left]) | beam.ParDo(ReadFn(folder)).with_output_types(int)
        answers = messages | ContinuousInference(Doubling(), BatchPolicy(16))
        if apart:
            answers |= beam.Reshuffle()
        _ = answers | beam.ParDo(WriteFn(folder, 0.01 if apart else 0.0))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), "apart" in sys.argv)
