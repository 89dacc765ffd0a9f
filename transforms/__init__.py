"""Transforms for continuous batching and online learning in Beam pipelines.

Names are imported on first use, so that the pure parts (``contbatch.transforms.batching`` and so on) can be used
without importing Beam.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from contbatch.transforms.batch import ContinuousBatch as ContinuousBatch
    from contbatch.transforms.batching import BatchPolicy as BatchPolicy
    from contbatch.transforms.batching import CostModel as CostModel
    from contbatch.transforms.batching import Overflow as Overflow
    from contbatch.transforms.batching import Reason as Reason
    from contbatch.transforms.batching import Scheduler as Scheduler
    from contbatch.transforms.batching import TimeDomain as TimeDomain
    from contbatch.transforms.codecs import AvroCodec as AvroCodec
    from contbatch.transforms.codecs import Codec as Codec
    from contbatch.transforms.events import Event as Event
    from contbatch.transforms.events import Kind as Kind
    from contbatch.transforms.learning import Learner as Learner
    from contbatch.transforms.learning import ModelStore as ModelStore
    from contbatch.transforms.learning import SparseLearner as SparseLearner
    from contbatch.transforms.microbatch import MicroBatch as MicroBatch
    from contbatch.transforms.records import Failed as Failed
    from contbatch.transforms.records import Learned as Learned
    from contbatch.transforms.records import Prediction as Prediction
    from contbatch.transforms.records import Published as Published
    from contbatch.transforms.update import PredictThenLearn as PredictThenLearn

_HOME = {
    "TimeDomain": "batching",
    "Overflow": "batching",
    "MicroBatch": "microbatch",
    "ContinuousBatch": "batch",
    "AvroCodec": "codecs",
    "BatchPolicy": "batching",
    "Codec": "codecs",
    "CostModel": "batching",
    "Event": "events",
    "Failed": "records",
    "Kind": "events",
    "Learned": "records",
    "Learner": "learning",
    "ModelStore": "learning",
    "PredictThenLearn": "update",
    "Prediction": "records",
    "Published": "records",
    "Reason": "batching",
    "Scheduler": "batching",
    "SparseLearner": "learning",
}

__all__ = sorted(_HOME)  # noqa: PLE0605


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value
