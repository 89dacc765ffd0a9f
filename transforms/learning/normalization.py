"""Normalisation for models that learn from micro-batches of any size, down to one row.

Batch normalisation in training mode does not fit them: the mean and the variance of 1 to 8 rows are noise, they make
one user's score depend on who else is in the batch, they differ from what serves, and with gradient accumulation they
are of a chunk and not of the batch. LayerNorm, GroupNorm and RMSNorm look at one row only and need none of this.
"""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

Module = TypeVar("Module", bound=nn.Module)


def freeze_batch_norm(module: Module) -> Module:
    """Put every batch normalisation inside into evaluation mode and return the module; its scale still learns."""
    for inner in module.modules():
        if isinstance(inner, _BatchNorm):
            inner.eval()
    return module


def check_batch_norm(module: nn.Module) -> None:
    """Refuse a module whose training normalises by the statistics of a batch.

    Raises:
        ValueError: a batch normalisation inside is in training mode, or keeps no running statistics.
    """
    for name, inner in module.named_modules():
        if isinstance(inner, _BatchNorm) and (inner.training or inner.running_mean is None):
            state = "in training mode" if inner.training else "without running statistics"
            raise ValueError(
                f"{name or 'the model'} is a {type(inner).__name__} {state}: statistics of 1 to 8 rows are noise, "
                "couple unrelated rows of a batch, differ from those that serve, and are of a chunk where gradients "
                "are accumulated. Use LayerNorm or GroupNorm, freeze trained statistics with freeze_batch_norm, or "
                "use BatchRenorm1d"
            )


class BatchRenorm1d(nn.Module):
    """Batch renormalisation (Ioffe, 2017) of inputs (n, features), with moving statistics that count rows.

    Training normalises by the batch and corrects by ``r`` and ``d`` towards the moving statistics, by which serving
    normalises: while neither is at its limit, both give the same output. Two things differ from the paper, for small
    batches: a single row, whose variance is 0, is normalised by the moving statistics in training too, so that it
    has a gradient; and the moving variance takes in how far the batch's mean is from the moving one, so that single
    rows do not draw it to 0. In a chunk of more rows a row's training output still depends on the others through the
    gradient of the batch's statistics, and beyond the limits through the output.

    Args:
        features: width of the input.
        momentum: how much of a moving statistic stays after one row, 0 to 1, 1 not included.
        warm_up: rows during which ``r`` is 1 and ``d`` is 0; the limits then grow over as many rows again.
        r_max: limit of ``r`` and of ``1 / r``.
        d_max: limit of ``d``.
        eps: added to a variance.

    Raises:
        ValueError: an argument is outside its range.
    """

    mean: Tensor
    variance: Tensor
    rows: Tensor

    def __init__(
        self,
        features: int,
        momentum: float = 0.999,
        warm_up: int = 10_000,
        r_max: float = 3.0,
        d_max: float = 5.0,
        eps: float = 1e-5,
    ) -> None:
        super().__init__()
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum is {momentum}; give 0 or more, below 1")
        if warm_up < 0:
            raise ValueError(f"warm_up is {warm_up}; give 0 rows or more")
        if not (r_max >= 1 and d_max >= 0):
            raise ValueError(f"r_max is {r_max} and d_max is {d_max}; give at least 1 and at least 0")
        self.features, self.momentum, self.warm_up = features, momentum, warm_up
        self.r_max, self.d_max, self.eps = r_max, d_max, eps
        self.weight = nn.Parameter(torch.ones(features))
        self.bias = nn.Parameter(torch.zeros(features))
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("variance", torch.ones(features))
        self.register_buffer("rows", torch.zeros((), dtype=torch.int64))

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the normalised rows, shape (n, features); in training the moving statistics take them in.

        Raises:
            ValueError: the input is not (n, features).
        """
        if inputs.shape[1:] != (self.features,):
            raise ValueError(f"input of shape {tuple(inputs.shape)}; give (n, {self.features})")
        mean, deviation = self.mean.clone(), (self.variance + self.eps).sqrt()  # of before this batch
        if not self.training or len(inputs) == 0:
            return (inputs - mean) / deviation * self.weight + self.bias
        ours, variance = inputs.mean(0), inputs.var(0, correction=0)
        if len(inputs) == 1:
            normal = (inputs - mean) / deviation
        else:
            own = (variance + self.eps).sqrt()
            with torch.no_grad():
                share = ((self.rows - self.warm_up + 1) / (self.warm_up + 1)).clamp(0, 1)
                r_most, d_most = 1 + (self.r_max - 1) * share, self.d_max * share
                r = (own / deviation).clamp(1 / r_most, r_most)
                d = ((ours - mean) / deviation).clamp(-d_most, d_most)
            normal = (inputs - ours) / own * r + d
        with torch.no_grad():
            part = 1 - self.momentum ** len(inputs)
            self.variance.add_(part * (variance - self.variance + (1 - part) * (ours - mean) ** 2))
            self.mean.add_(part * (ours - mean))
            self.rows.add_(len(inputs))
        return normal * self.weight + self.bias
