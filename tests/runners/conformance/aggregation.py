"""An aggregation by windows of a second behind every stateful transform: nothing comes late into it."""

from __future__ import annotations

import apache_beam as beam

from contbatch.transforms import BatchPolicy, ContinuousBatch, ContinuousInference, Event, ParallelUpdate
from contbatch.transforms.learning.batches import pack_batch
from tests.runners.conformance.batching import COUNT, TIMED, keyed, size_keyed
from tests.runners.conformance.jobs import Cell, Job
from tests.runners.conformance.learning import EVENTS, SMALL, fates, served_and_feedback, timed
from tests.runners.test_parallel_update import LEARNER, batch
from tests.runners.test_prism_inference import Doubling
from tests.transforms.test_feedback import expected, join, stream


def behind(cell: Cell) -> None:
    """Eight transforms in one job; behind each, the windows' counts add up to what came out of it."""
    served, feedback = stream(50, 3)

    def build(job: Job) -> None:
        numbers = job.source(TIMED)
        for name, policy in (
            ("real time", BatchPolicy(16, 0.2)),
            ("event time", BatchPolicy(16, 2.0, time_domain="event_time")),
        ):
            job.count(name, numbers | f"Batch in {name}" >> ContinuousBatch(policy), len)
        pairs = numbers | beam.Map(keyed).with_output_types(tuple[str, int])
        job.count("keyed", pairs | "Batch keys" >> ContinuousBatch(BatchPolicy(16), keyed=True), size_keyed)
        job.count("inference", numbers | ContinuousInference(Doubling(), BatchPolicy(16), max_delay=0.2))

        events = job.source(timed(EVENTS), Event, step=5.0)
        serial = events | "Serial" >> SMALL.transform(cell.folder / "serial")
        job.count("predictions", serial["predictions"])
        job.count("learned", serial["learned"])
        job.count("trainer", (events | "Trainer" >> SMALL.trainer(cell.folder / "trainer")).learned)

        examples = served_and_feedback(job, served, feedback) | join()
        job.count("join", fates(examples) | beam.Flatten())
        if job.input != "bounded":
            chunks = numbers | "Chunks" >> beam.Map(chunk_of).with_output_types(tuple[str, bytes])
            job.count("parallel", chunks | ParallelUpdate(LEARNER, str(cell.folder / "parallel")))

    out = cell.run(build).outputs
    counted = {name.removesuffix(" behind"): sum(sums) for name, sums in out.items() if name != "end"}
    every = {
        **dict.fromkeys(("real time", "event time", "keyed"), COUNT),
        **dict.fromkeys(("predictions", "learned", "trainer"), len(EVENTS) // 2),
        "inference": COUNT - 1,
        "join": expected(served, feedback).total(),
        "parallel": COUNT,
    }
    assert counted == {name: every[name] for name in counted}
    assert len(counted) == 8 + (cell.input != "bounded")


def chunk_of(number: int) -> tuple[str, bytes]:
    return f"k{number % 3}", pack_batch(batch(number))
