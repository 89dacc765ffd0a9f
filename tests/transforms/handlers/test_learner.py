from __future__ import annotations

from pathlib import Path
from typing import Any

import apache_beam as beam
import numpy as np
import pytest
from apache_beam.runners.portability.fn_api_runner import FnApiRunner

from contbatch.pipelines.infer import infer
from contbatch.transforms import BatchPolicy, ModelStore, SparseLearner
from contbatch.transforms.handlers.learner import LearnerModelHandler
from contbatch.transforms.testing import Sink

LEARNER = SparseLearner(("user", "item"), bits=6, factors=2)


def trained(small: Any) -> Any:
    columns = small.requests.decode([small.request(row, row).payload for row in range(4)]).columns
    return LEARNER.step(LEARNER.init(), columns, np.array([0.0, 1.0, 0.0, 1.0]), np.ones(4))


def test_it_serves_a_version_of_a_store(small: Any, tmp_path: Path) -> None:
    state, store = trained(small), ModelStore(str(tmp_path))
    about = {"epoch": 0, "step": 1, "parent": None, "examples": 4, "loss": 0.5, "time": 0, "config": {}}
    store.publish(LEARNER.export(state), model="", **about)
    events = [small.request(row, row) for row in range(10)]
    bad = small.request(10, 10)._replace(payload=b"\xff")
    predicted, failed = Sink(), Sink()
    with beam.Pipeline(FnApiRunner()) as pipeline:
        requests = pipeline | beam.Create([*events, bad], reshuffle=False)
        done = infer(requests, LEARNER, str(tmp_path), codec=small.requests, policy=BatchPolicy(4))
        _ = done.predictions | "p" >> predicted
        _ = done.failed | "f" >> failed
    expected = LEARNER.predict(state, small.requests.decode([event.payload for event in events]).columns)
    found = {one.request_id: (one.score, one.version) for one in predicted.elements}
    assert found == {str(row): (score, "0.1") for row, score in enumerate(expected)}
    (one,) = failed.elements
    assert (one.kind, one.status, one.row) == ("request", "failed", 10)
    assert "not an Avro record" in one.reason


def test_without_a_version_it_serves_what_has_learned_nothing(small: Any) -> None:
    handler = LearnerModelHandler(LEARNER, small.requests)
    (result,) = handler.run_inference([small.request(3, 3)], handler.load_model())
    assert (result.inference.request_id, result.inference.score, result.inference.batch_size) == ("3", 0.5, 1)


def test_a_version_of_another_configuration_is_an_error(small: Any, tmp_path: Path) -> None:
    store, about = ModelStore(str(tmp_path)), {"epoch": 0, "parent": None, "examples": 4, "loss": 0.5, "time": 0}
    manifest = store.publish(LEARNER.export(trained(small)), model="", step=1, config={}, **about)
    handler = LearnerModelHandler(SparseLearner(("user", "item"), bits=6, factors=3), small.requests)
    handler.update_model_path(store.weights(manifest))
    with pytest.raises(ValueError, match="do not fit bits=6, factors=3"):
        handler.load_model()
