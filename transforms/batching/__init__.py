"""Micro-batches: policy, cost and formation. Pure: imports neither Beam nor torch, and takes time as an argument."""

from contbatch.transforms.batching.cost import CostModel
from contbatch.transforms.batching.former import BatchFormer
from contbatch.transforms.batching.policy import BatchPolicy, Reason
from contbatch.transforms.batching.queue import DeadlineQueue
from contbatch.transforms.batching.scheduler import Released, Scheduler, SchedulerStatistics

__all__ = [
    "BatchFormer",
    "BatchPolicy",
    "CostModel",
    "DeadlineQueue",
    "Reason",
    "Released",
    "Scheduler",
    "SchedulerStatistics",
]
