"""A ready-made model of two sides, as a user and an item: hashed ids, a small network a side, one logit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from contbatch.transforms.learning.hashing import hash_values
from contbatch.transforms.learning.learner import Columns
from contbatch.transforms.learning.step_size import StepSize
from contbatch.transforms.learning.torch_learner import TorchLearner


@dataclass(frozen=True)
class HashedIds:
    """Turns columns of values, or of lists of values, into slots 1 to ``2**bits``; 0 fills up a list.

    Attributes:
        fields: names of the columns, in the order of the tensors.
        bits: log2 of the number of slots of each field.
    """

    fields: tuple[str, ...]
    bits: int

    def __call__(self, columns: Columns) -> tuple[Tensor, ...]:
        """Return a tensor of shape (n, longest) per field, ``longest`` 1 for a column without lists."""
        return tuple(self._slots(field, columns[field]) for field in self.fields)

    def _slots(self, field: str, column: Sequence[Any]) -> Tensor:
        lists = column if column and isinstance(column[0], list) else [[value] for value in column]
        lengths = np.fromiter(map(len, lists), np.int64, len(lists))
        longest = max(lengths.max(initial=0), 1)
        slots = np.zeros((len(lists), longest), np.int64)
        hashed = np.fromiter(hash_values(field, chain.from_iterable(lists), self.bits), np.int64, lengths.sum())
        slots[np.arange(longest) < lengths[:, None]] = hashed + 1
        return torch.from_numpy(slots)


Interactions = Sequence[tuple[Sequence[str], Sequence[str]]]
"""Pairs of sides, each the names of its fields."""


class TwoTower(nn.Module):
    """A logit per row: bias, a weight per id, and what its sides have to say to each other.

    A side sums the vectors of its fields (the mean, for a list) and adds what a dense layer after LayerNorm makes of
    them. The dense parts start at 0, so that from the first row ids learn as in a factorisation.

    The ids of all fields share a table, row 0 for filling, then the slots of each field in turn: on a CPU small steps
    cost what their many operations cost, and a table per field has that many times as many.

    Args:
        fields: names of the fields, in the order of the tensors.
        interactions: pairs of sides.
        factors: length of an id's vector.
        bits: log2 of the slots of each field.
        hidden: width of the dense layers.
        head: ``"dot"`` for the dot product of each pair, ``"mlp"`` for a network over all sides.

    Raises:
        ValueError: an argument is outside its range, or an interaction names a field that is not read.
    """

    def __init__(
        self, fields: Sequence[str], interactions: Interactions, factors: int, bits: int, hidden: int, head: str
    ) -> None:
        super().__init__()
        sides = [side for pair in interactions for side in pair]
        for name in chain.from_iterable(sides):
            if name not in fields:
                raise ValueError(f"interactions names {name!r}, which is not one of fields {tuple(fields)}")
        if not sides or not all(sides):
            raise ValueError(f"interactions is {interactions}; give pairs of sides, each of one field or more")
        if min(factors, hidden) < 1:
            raise ValueError(f"factors is {factors} and hidden is {hidden}; give 1 or more of each")
        if not 4 <= bits <= 28:
            raise ValueError(f"bits is {bits}; give 4 to 28")
        if head not in {"dot", "mlp"}:
            raise ValueError(f"head is {head!r}; give 'dot' or 'mlp'")
        self.sides = [[fields.index(name) for name in side] for side in sides]
        self.slots = 1 << bits
        self.used = sorted(set(chain.from_iterable(self.sides)))
        self.weights = _table(len(fields) * self.slots, 1, 0.0)
        self.vectors = _table(len(self.used) * self.slots, factors, 0.1)
        self.dense = nn.ModuleList(_dense(len(side) * factors, hidden, factors) for side in sides)
        self.head = _dense(len(sides) * factors, hidden, 1) if head == "mlp" else None
        self.bias = nn.Parameter(torch.zeros(()))

    def forward(self, *slots: Tensor) -> Tensor:
        """Return logits of shape (n,) for a tensor of slots, shape (n, any), per field."""
        vectors = dict(zip(self.used, self._means(self.vectors, [slots[at] for at in self.used]), strict=True))
        sides = []
        for side, dense in zip(self.sides, self.dense, strict=True):
            parts = [vectors[at] for at in side]
            sides.append(torch.stack(parts).sum(0) + dense(torch.cat(parts, 1)))
        logit = self.bias + torch.cat(self._means(self.weights, slots), 1).sum(1)
        if self.head is not None:
            return logit + self.head(torch.cat(sides, 1))[:, 0]
        for left, right in zip(sides[::2], sides[1::2], strict=True):
            logit = logit + (left * right).sum(1)
        return logit

    def _means(self, table: nn.Embedding, slots: Sequence[Tensor]) -> list[Tensor]:
        """Return for each field, whose slots follow each other in the table, the mean of its ids, shape (n, width)."""
        rows = [ids + (ids > 0) * (place * self.slots) for place, ids in enumerate(slots)]
        parts = table(torch.cat(rows, 1)).split([ids.shape[1] for ids in slots], 1)
        return [_mean(part, ids) for part, ids in zip(parts, slots, strict=True)]


def two_tower(
    fields: Sequence[str],
    interactions: Interactions,
    *,
    factors: int = 16,
    bits: int = 14,
    hidden: int = 32,
    head: str = "dot",
    rate: float = 0.1,
    **settings: Any,
) -> TorchLearner:
    """Return a learner of :class:`TwoTower` over columns of strings or lists of strings.

    Its optimizer is AdaGrad, which leaves the ids alone that a step does not see, at the same rate whatever the
    weight of a step.

    Args:
        fields: names of the columns read; one in no interaction has a weight per id alone.
        interactions: pairs of sides, as ``((("user",), ("item", "genres")),)``.
        factors: length of an id's vector.
        bits: log2 of the slots of each field; memory is about ``fields * 2**bits * (factors + 1) * 8`` bytes.
        hidden: width of the dense layers.
        head: ``"dot"`` or ``"mlp"``.
        rate: learning rate.
        settings: of :class:`.torch_learner.TorchLearner`.

    Raises:
        ValueError: an argument is outside its range; those of the model when it is made.
    """
    given = {"optimizer": partial(torch.optim.Adagrad, lr=rate), "step_size": StepSize(), **settings}
    model = partial(TwoTower, tuple(fields), interactions, factors, bits, hidden, head)
    return TorchLearner(model, HashedIds(tuple(fields), bits), tuple(fields), **given)


def _table(slots: int, width: int, deviation: float) -> nn.Embedding:
    table = nn.Embedding(1 + slots, width, padding_idx=0, sparse=True)
    with torch.no_grad():
        table.weight[1:].normal_(std=deviation)
    return table


def _dense(width: int, hidden: int, out: int) -> nn.Module:
    last = nn.Linear(hidden, out)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return nn.Sequential(nn.LayerNorm(width), nn.Linear(width, hidden), nn.ReLU(), last)


def _mean(vectors: Tensor, ids: Tensor) -> Tensor:
    """Return the mean over the ids that are no filling, shape (n, width)."""
    if ids.shape[1] == 1:
        return vectors[:, 0]  # that of filling is 0
    return vectors.sum(1) / (ids > 0).sum(1, keepdim=True).clamp(min=1)
