"""Examples per second of learning alone, in one process, beside the AUC that the same configuration reaches.

What the peers learn from is made before their clock starts (see ``benchmarks/peers/learning.py``); ours hashes its
columns while it runs.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import accumulate, pairwise

import numpy as np
import torch

from benchmarks.harness import Report, run_peers
from benchmarks.inference_parts.driving import progress
from benchmarks.learning_parts.accuracy import (
    batches,
    draw_sizes,
    even_sizes,
    peers_workload,
    rate_scores,
    run_batched,
    run_one_by_one,
    stream,
    tokens,
)
from contbatch.pipelines import movielens
from contbatch.transforms.learning import SparseLearner

ROUNDS = 5
MICRO_BATCH = 4096
GOALS = {8: 50_000.0, 32: 180_000.0}
PEERS = {
    "River AdaGrad, one by one": ("River AdaGrad", 1),
    "VW, one by one": ("VW", 1),
    "VW, from a file": ("VW, from a file", 1),
    "sklearn partial_fit, batches of 32": ("sklearn partial_fit", 32),
    "sklearn partial_fit, batches of 512": ("sklearn partial_fit", 512),
}
TORCH, TORCH_BATCH, TORCH_RATE = "torch Adagrad, batches of 32", 32, 0.4

Batch = tuple[slice, torch.Tensor, torch.Tensor, torch.Tensor]


def measure(learner: SparseLearner) -> float:
    """Return the examples per second of the fastest round, from decoded columns and a new state."""
    labels, taken = stream().labels, []
    work = list(batches(even_sizes(MICRO_BATCH)))
    weights = np.ones(len(labels))
    for _ in range(ROUNDS):
        state = learner.init()
        started = time.perf_counter()
        for at, columns in work:
            state = learner.step(state, columns, labels[at], weights[at])
        taken.append(time.perf_counter() - started)
    return len(labels) / min(taken)


class TorchModel:
    """Logistic regression as PyTorch has it: a bag of one weight per token, dense Adagrad on the summed loss."""

    def __init__(self) -> None:
        self._weights = torch.nn.EmbeddingBag(int(tokens()[0].max()) + 1, 1, mode="sum")
        torch.nn.init.zeros_(self._weights.weight)
        self._bias = torch.nn.Parameter(torch.zeros(1))
        self._loss = torch.nn.BCEWithLogitsLoss(reduction="sum")
        self._optimizer = torch.optim.Adagrad([*self._weights.parameters(), self._bias], lr=TORCH_RATE)

    def logits(self, ids: torch.Tensor, starts: torch.Tensor) -> torch.Tensor:
        """Return a logit per row, shape (n,)."""
        return self._weights(ids, starts)[:, 0] + self._bias

    def learn(self, ids: torch.Tensor, starts: torch.Tensor, labels: torch.Tensor) -> None:
        """Make one step."""
        self._optimizer.zero_grad()
        self._loss(self.logits(ids, starts), labels).backward()
        self._optimizer.step()


def torch_batches(sizes: Sequence[int]) -> Iterator[Batch]:
    """Yield where each batch is, and its tokens, where its rows begin in them, and its labels."""
    ids, starts = tokens()
    labels = torch.tensor(stream().labels, dtype=torch.float32)
    for start, end in pairwise([0, *accumulate(sizes)]):
        first, last = starts[start], starts[end]
        yield (
            slice(start, end),
            torch.tensor(ids[first:last]),
            torch.tensor(starts[start:end] - first),
            labels[start:end],
        )


def measure_torch() -> tuple[float, float]:
    """Return the examples per second of the fastest round and the AUC; one thread, as two are slower at this size."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    work, taken = list(torch_batches(even_sizes(TORCH_BATCH))), []
    model, scores = TorchModel(), np.empty(len(stream().labels))
    for at, ids, starts, labels in work:
        with torch.no_grad():
            scores[at] = model.logits(ids, starts).numpy()
        model.learn(ids, starts, labels)
    for _ in range(ROUNDS):
        model = TorchModel()
        started = time.perf_counter()
        for _, ids, starts, labels in work:
            model.learn(ids, starts, labels)
        taken.append(time.perf_counter() - started)
    torch.set_num_threads(threads)
    return len(scores) / min(taken), rate_scores((1 + np.tanh(scores / 2)) / 2).auc


def speed(report: Report) -> None:
    """Learn without predicting, one process on an idle machine: examples per second, the fastest of five rounds."""
    ours = {chunk: measure(replace(movielens.learner(), chunk=chunk)) for chunk in GOALS}
    progress(f"ours: {', '.join(f'{value:,.0f}/s at chunk {chunk}' for chunk, value in ours.items())}")
    seen = {TORCH: measure_torch()}
    jobs = [{"peer": peer, "sizes": even_sizes(size), "rounds": ROUNDS} for peer, size in PEERS.values()]
    for name, result in zip(PEERS, run_peers("learning", peers_workload() | {"jobs": jobs}), strict=True):
        rows = len(result["scores"])
        seen[name] = rows / min(result["seconds"]), rate_scores(result["scores"]).auc
    for chunk, goal in GOALS.items():
        report.at_least(
            f"learned at chunk {chunk}, micro-batches of {MICRO_BATCH:,}",
            "/s",
            ours[chunk],
            goal,
            {name: rate for name, (rate, _) in seen.items()},
        )
    for chunk in GOALS:
        learner = replace(movielens.learner(), chunk=chunk)
        for kind in ("lognormal", "bursts"):
            report.note(f"AUC at chunk {chunk}, {kind} batches", "", run_batched(learner, draw_sizes(kind, 0)).auc)
    report.note(
        "AUC, one by one, at either chunk", "", run_one_by_one(0).auc, {name: area for name, (_, area) in seen.items()}
    )
