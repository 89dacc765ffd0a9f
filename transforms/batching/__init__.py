"""Micro-batches: policy, cost and formation. Pure: imports neither Beam nor torch, and takes time as an argument."""

from contbatch.transforms.batching.admission import Admission
from contbatch.transforms.batching.cost import CostModel
from contbatch.transforms.batching.former import BatchFormer
from contbatch.transforms.batching.policy import BatchPolicy, Overflow, Reason, TimeDomain
from contbatch.transforms.batching.queue import DeadlineQueue, Waiting
from contbatch.transforms.batching.scheduler import Released, Scheduler, SchedulerStatistics

__all__ = [
    "Admission",
    "BatchFormer",
    "BatchPolicy",
    "CostModel",
    "DeadlineQueue",
    "Overflow",
    "Reason",
    "Released",
    "Scheduler",
    "SchedulerStatistics",
    "TimeDomain",
    "Waiting",
]
