from __future__ import annotations

import pickle
from functools import partial
from typing import Any

import apache_beam as beam
import pytest
from apache_beam.options.pipeline_options import PipelineOptions

from contbatch.transforms.io.replay import PacedEvents, PacedReplay, PacedScript
from contbatch.transforms.testing import Sink


def test_a_script_replays_all_events_in_order_at_their_rate(small: Any) -> None:
    events, sink = small.events(30), Sink()
    with beam.Pipeline(options=PipelineOptions([], streaming=True)) as pipeline:
        _ = pipeline | PacedScript(events[::-1], rate=1_000.0, step=0.01) | sink
    found = sink.elements
    assert [one._replace(time=0) for one in found] == [one._replace(time=0) for one in sorted(events)]
    assert [one.time - found[0].time for one in found] == [1_000 * index for index in range(60)]


@pytest.mark.parametrize("rate", [0.0, -1.0, float("nan"), 1e7])
def test_a_rate_outside_its_range_is_refused(rate: float) -> None:
    with pytest.raises(ValueError, match=f"rate is {rate} events a second; give a number above 0"):
        PacedScript([], rate)
    with pytest.raises(ValueError, match="rate is"):
        PacedReplay(list, 0, rate)


def test_a_source_travels(small: Any) -> None:
    source = pickle.loads(pickle.dumps(PacedReplay(partial(list, small.events(2)), 4, 10.0)))  # noqa: S301
    event_at = source._fn._open()
    assert [event_at(place) for place in range(4)] == sorted(small.events(2))


def test_events_that_are_made_are_made_one_by_one(small: Any) -> None:
    source = pickle.loads(pickle.dumps(PacedEvents(partial(small.label, seconds=1.0), 10**9, 10.0)))  # noqa: S301
    assert source._fn._open()(7) == small.label(7, 1.0)


@pytest.mark.parametrize("rest", [0.0, -1.0, float("nan"), float("inf")])
def test_a_rest_outside_its_range_is_refused(rest: float) -> None:
    with pytest.raises(ValueError, match=f"rest is {rest} s; give seconds above 0"):
        PacedReplay(list, 0, 1.0, rest)
