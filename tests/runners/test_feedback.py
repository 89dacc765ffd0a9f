"""``JoinFeedback`` on a real Prism."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import apache_beam as beam
import pytest
from apache_beam.options.pipeline_options import PipelineOptions

from contbatch.transforms import Event, JoinFeedback, Kind, Served
from contbatch.transforms.testing import Sink
from tests.small import Small
from tests.transforms.test_feedback import expected, fate, live, stream

pytestmark = pytest.mark.needs("go")


def on_prism(location: str, **flags: Any) -> PipelineOptions:
    singleton = "disable_prism_server_singleton"
    return PipelineOptions([], runner="PrismRunner", prism_location=location, experiments=[singleton], **flags)


def test_a_live_stream_gives_the_same_as_anywhere_and_loses_nothing_downstream(prism: str) -> None:
    served, feedback = stream(80, 3)
    assert Counter(map(fate, live(served, feedback, on_prism(prism, streaming=True)).elements)) == expected(
        served, feedback
    )


def test_bounded_input_of_two_sources_is_all_there_before_anything_falls_due(
    small: Small, tmp_path: Path, prism: str
) -> None:
    """40 requests, 30 with a label, from two sources: a timer that fired between them would make every one late."""
    requests = [event for event in small.events(40) if event.kind is Kind.REQUEST]
    served = [Served(one.payload, str(one.row), one.time, 0.5, "0.0") for one in requests]
    labels = [event for event in small.events(40) if event.kind is Kind.FEEDBACK and event.row % 4]
    for number in range(3):
        learned, failed = Sink(), Sink()
        with beam.Pipeline(options=on_prism(prism)) as pipeline:
            asked = pipeline | "Requests" >> beam.Create(served).with_output_types(Served)
            told = pipeline | "Feedback" >> beam.Create(labels).with_output_types(Event)
            examples = (asked, told) | JoinFeedback(small.feedback, ttl=60.0, wait_window=1.0, shards=2)
            published = examples | small.trainer(tmp_path / str(number), feedback=None)
            published.learned | "Learned" >> learned
            (published.failed, examples.failed, examples.late) | beam.Flatten() | "Failed" >> failed
        assert Counter(one.observed for one in learned.elements) == {"label": 30, "assumed": 10}
        assert failed.elements == []
