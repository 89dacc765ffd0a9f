"""Learning from a stream: learners, the feedback join, the serial loop, the model store. Pure, but for the store."""

from contbatch.transforms.learning.config import Order, PrequentialConfig
from contbatch.transforms.learning.gate import GatePolicy
from contbatch.transforms.learning.learner import Arrays, Columns, Learner
from contbatch.transforms.learning.lineage import Version
from contbatch.transforms.learning.manifest import Manifest, Restore
from contbatch.transforms.learning.metrics import auc, log_loss, mean_log_loss
from contbatch.transforms.learning.prequential import PrequentialLoop
from contbatch.transforms.learning.sparse import SparseLearner
from contbatch.transforms.learning.store import ModelStore, StoreError

__all__ = [
    "Arrays",
    "Columns",
    "GatePolicy",
    "Learner",
    "Manifest",
    "ModelStore",
    "Order",
    "PrequentialConfig",
    "PrequentialLoop",
    "Restore",
    "SparseLearner",
    "StoreError",
    "Version",
    "auc",
    "log_loss",
    "mean_log_loss",
]
