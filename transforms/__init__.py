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
    from contbatch.transforms.engine.versions import FileVersions as FileVersions
    from contbatch.transforms.engine.versions import StoreVersions as StoreVersions
    from contbatch.transforms.events import Event as Event
    from contbatch.transforms.events import Kind as Kind
    from contbatch.transforms.feedback import JoinFeedback as JoinFeedback
    from contbatch.transforms.handlers.learner import LearnerModelHandler as LearnerModelHandler
    from contbatch.transforms.handlers.torch import TorchModelHandler as TorchModelHandler
    from contbatch.transforms.infer import FailedElement as FailedElement
    from contbatch.transforms.infer import ShedElement as ShedElement
    from contbatch.transforms.inference import ContinuousInference as ContinuousInference
    from contbatch.transforms.io.replay import PacedReplay as PacedReplay
    from contbatch.transforms.learning import GatePolicy as GatePolicy
    from contbatch.transforms.learning import Learner as Learner
    from contbatch.transforms.learning import ModelStore as ModelStore
    from contbatch.transforms.learning import SparseLearner as SparseLearner
    from contbatch.transforms.learning.bursts import BurstCapped as BurstCapped
    from contbatch.transforms.learning.calibration import CalibrationMonitor as CalibrationMonitor
    from contbatch.transforms.learning.coordinate import Ftrl as Ftrl
    from contbatch.transforms.learning.delayed import DelayedLabels as DelayedLabels
    from contbatch.transforms.learning.detectors import Detector as Detector
    from contbatch.transforms.learning.drift import DriftAware as DriftAware
    from contbatch.transforms.learning.reactions import Background as Background
    from contbatch.transforms.learning.reactions import Boost as Boost
    from contbatch.transforms.learning.reactions import Refresh as Refresh
    from contbatch.transforms.learning.reactions import Replay as Replay
    from contbatch.transforms.learning.recent import RecentLabels as RecentLabels
    from contbatch.transforms.learning.replay_buffer import ReplayBuffer as ReplayBuffer
    from contbatch.transforms.learning.replay_buffer import Replayed as Replayed
    from contbatch.transforms.learning.sampling import Downsampled as Downsampled
    from contbatch.transforms.learning.statistics import Standardized as Standardized
    from contbatch.transforms.learning.torch_learner import TorchLearner as TorchLearner
    from contbatch.transforms.learning.vocabulary import BoundedIds as BoundedIds
    from contbatch.transforms.microbatch import MicroBatch as MicroBatch
    from contbatch.transforms.parallel_update import ParallelUpdate as ParallelUpdate
    from contbatch.transforms.records import Example as Example
    from contbatch.transforms.records import Failed as Failed
    from contbatch.transforms.records import Learned as Learned
    from contbatch.transforms.records import Prediction as Prediction
    from contbatch.transforms.records import Published as Published
    from contbatch.transforms.records import Served as Served
    from contbatch.transforms.update import OnlineUpdate as OnlineUpdate
    from contbatch.transforms.update import PredictThenLearn as PredictThenLearn


_HOME = {
    "AvroCodec": "codecs",
    "Background": "learning.reactions",
    "BatchPolicy": "batching",
    "Boost": "learning.reactions",
    "BoundedIds": "learning.vocabulary",
    "BurstCapped": "learning.bursts",
    "CalibrationMonitor": "learning.calibration",
    "Codec": "codecs",
    "ContinuousBatch": "batch",
    "ContinuousInference": "inference",
    "CostModel": "batching",
    "DelayedLabels": "learning.delayed",
    "Detector": "learning.detectors",
    "Downsampled": "learning.sampling",
    "DriftAware": "learning.drift",
    "Event": "events",
    "Example": "records",
    "Failed": "records",
    "FailedElement": "infer",
    "FileVersions": "engine.versions",
    "Ftrl": "learning.coordinate",
    "GatePolicy": "learning",
    "JoinFeedback": "feedback",
    "Kind": "events",
    "Learned": "records",
    "Learner": "learning",
    "LearnerModelHandler": "handlers.learner",
    "MicroBatch": "microbatch",
    "ModelStore": "learning",
    "OnlineUpdate": "update",
    "Overflow": "batching",
    "PacedReplay": "io.replay",
    "ParallelUpdate": "parallel_update",
    "PredictThenLearn": "update",
    "Prediction": "records",
    "Published": "records",
    "Reason": "batching",
    "RecentLabels": "learning.recent",
    "Refresh": "learning.reactions",
    "Replay": "learning.reactions",
    "ReplayBuffer": "learning.replay_buffer",
    "Replayed": "learning.replay_buffer",
    "Scheduler": "batching",
    "Served": "records",
    "ShedElement": "infer",
    "SparseLearner": "learning",
    "Standardized": "learning.statistics",
    "StoreVersions": "engine.versions",
    "TimeDomain": "batching",
    "TorchLearner": "learning.torch_learner",
    "TorchModelHandler": "handlers.torch",
}

__all__ = sorted(_HOME)  # noqa: PLE0605


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value
