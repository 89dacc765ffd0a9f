"""Micro-batches: policy and formation. Pure: imports neither Beam nor torch, and takes time as an argument."""

from contbatch.transforms.batching.former import BatchFormer
from contbatch.transforms.batching.policy import BatchPolicy, Reason

__all__ = ["BatchFormer", "BatchPolicy", "Reason"]
