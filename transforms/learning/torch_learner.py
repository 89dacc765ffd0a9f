"""A learner for any torch module: micro-batches of any size, each step the gradient of all its rows.

What makes steps of uneven micro-batches right: gradients are accumulated as *sums* over chunks and divided once by
the weight of the whole micro-batch (the mean of the chunks' means would give a row of a small chunk too much say),
the step size follows the weight by a rule of :mod:`.step_size`, and schedules are driven by progress, not by steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field
from functools import cached_property
from threading import RLock
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from contbatch.transforms.learning.learner import Arrays, Columns
from contbatch.transforms.learning.normalization import check_batch_norm
from contbatch.transforms.learning.step_size import Spread, SquareRoot, StepSize
from contbatch.transforms.learning.torch_arrays import (
    TorchGradient,
    TorchState,
    clone_buffers,
    export_gradient,
    export_state,
    load_gradient,
    load_state,
    move,
    set_buffers,
    set_scale,
    square,
    training,
)

Floats = NDArray[np.float64]

Inputs = Tensor | Mapping[str, Tensor] | tuple[Tensor, ...]
"""What a module's ``forward`` takes, alone, by name or in order; the first axis of each tensor is the rows."""

_seeding = RLock()  # torch's generators belong to the process


def log_loss_of_logits(outputs: Tensor, labels: Tensor) -> Tensor:
    """Return the binary cross entropy per row, shape (n,), of logits of shape (n,) or (n, 1)."""
    return binary_cross_entropy_with_logits(outputs.reshape(labels.shape).float(), labels, reduction="none")


def adam(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """Return Adam with torch's own settings."""
    return torch.optim.Adam(parameters)


@dataclass(frozen=True)
class TorchLearner:
    """Learns any torch module from a stream.

    It is a :class:`.staleness.GradientLearner` too, except with a step size that is measured on chunks.

    The same state, columns, labels and weights give the same result to the bit on one CPU and build of torch; on a
    GPU where torch's own operations are deterministic (``torch.use_deterministic_algorithms``). Up to rounding the
    result does not depend on ``chunk``, unless a part of the model looks at the chunk (:class:`.BatchRenorm1d`),
    draws random numbers (dropout), or the step size is measured on chunks (:class:`.step_size.AdaScale`).

    An embedding may have sparse gradients with AdaGrad, so that a step's cost does not grow with the table. Optimizers
    that need a closure (LBFGS) are not supported. NAdam keeps a product of its decays that the square root rule
    cannot follow; give it a constant step size.

    Attributes:
        model: makes the module. Called under the seed, so that every call gives the same one; a module that it
            returns twice is copied. What it leaves in evaluation mode, as a frozen part, stays in it.
        encode: turns columns into what the module's ``forward`` takes, one row per example, on the CPU.
        fields: names of the columns read.
        loss: outputs and labels, float32 of shape (n,), to a loss per row of shape (n,).
        link: outputs to a score per row, shape (n,) or (n, 1).
        optimizer: makes the optimizer of the trainable parameters, as ``partial(torch.optim.SGD, lr=0.1)``.
        step_size: how its settings follow the weight of a step.
        schedule: multiplies the learning rate, given the progress in steps of the reference.
        chunk: most rows in one forward and backward pass.
        clip: largest norm of the mean gradient, or ``None``.
        device: ``"auto"`` for a GPU where torch sees one, else what ``torch.device`` takes.
        threads: of the CPU that an operation may use. More help large layers on idle cores; where other work keeps
            the cores busy, threads that wait for each other make a step ten times slower.
        seed: decides the initial weights and the random numbers of training.

    Raises:
        ValueError: an attribute is outside its range.
    """

    model: Callable[[], nn.Module]
    encode: Callable[[Columns], Inputs]
    fields: tuple[str, ...]
    loss: Callable[[Tensor, Tensor], Tensor] = log_loss_of_logits
    link: Callable[[Tensor], Tensor] = torch.sigmoid
    optimizer: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer] = adam
    step_size: StepSize = field(default_factory=SquareRoot)
    schedule: Callable[[float], float] | None = None
    chunk: int = 1024
    clip: float | None = None
    device: str = "auto"
    threads: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.fields:
            raise ValueError("fields is empty; name at least one column")
        if self.chunk < 1:
            raise ValueError(f"chunk is {self.chunk}; give 1 row or more")
        if self.threads < 1:
            raise ValueError(f"threads is {self.threads}; give 1 or more")
        if self.clip is not None and not self.clip > 0:
            raise ValueError(f"clip is {self.clip}; give a norm above 0, or None")
        if self.seed < 0:
            raise ValueError(f"seed is {self.seed}; give 0 or more")

    def init(self) -> TorchState:
        """Return the seeded module and its optimizer, on the device.

        Raises:
            ValueError: the module cannot learn from uneven micro-batches, for the reason given.
        """
        with self._threaded():
            return self._init()

    def _init(self) -> TorchState:
        model = deepcopy(self._module).to(self._device)
        trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
        if not trainable:
            raise ValueError("the model has no trainable parameter; there is nothing to learn")
        optimizer = self.optimizer(trainable)
        sparse = any(isinstance(module, nn.Embedding | nn.EmbeddingBag) and module.sparse for module in model.modules())
        if sparse and not isinstance(optimizer, torch.optim.Adagrad):
            raise ValueError(
                f"the model has an embedding with sparse gradients and {type(optimizer).__name__} as its optimizer; "
                "give torch.optim.Adagrad, or sparse=False"
            )
        modes = tuple(module.training for module in model.modules())
        return TorchState(model, optimizer, modes, tuple(map(dict, optimizer.param_groups)))

    def predict(self, state: TorchState, columns: Columns) -> Floats:
        """Return one score per row, shape (n,).

        Raises:
            ValueError: ``link`` does not give one score per row.
        """
        size = len(columns[self.fields[0]])
        scores = np.empty(size)
        state.model.eval()
        with self._threaded(), torch.inference_mode():
            inputs = self._inputs(columns, size) if size else ()
            for part in _parts(size, self.chunk):
                given = self.link(_forward(state.model, inputs, part)).float().cpu().numpy()
                if given.size != part.stop - part.start:
                    raise ValueError(f"link gives {given.shape} for {part.stop - part.start} rows; give one score each")
                scores[part] = given.reshape(-1)
        return scores

    def step(self, state: TorchState, columns: Columns, labels: Floats, weights: Floats) -> TorchState:
        """Take one step by the mean gradient of all rows; changes ``state`` in place and returns it.

        Where the loss or the gradient is not finite, nothing changes but the count of refused steps. Rows of no
        weight in total are no step.

        Raises:
            ValueError: ``loss`` does not give one number per row.
        """
        with self._threaded():
            return self._apply(state, self._gradient(state, columns, labels, weights))

    def gradient(self, state: TorchState, columns: Columns, labels: Floats, weights: Floats) -> Arrays:
        """Return the gradient of the rows for :meth:`apply`; leaves ``state`` as it is.

        It holds one array per parameter, a sparse one for an embedding with sparse gradients, see
        :func:`.torch_arrays.export_gradient`. All gradients of one state draw the same random numbers.

        Raises:
            ValueError: ``loss`` does not give one number per row, or the step size has to see chunks.
        """
        self._check_halves()
        with self._threaded():
            return export_gradient(self._gradient(state, columns, labels, weights))

    def apply(self, state: TorchState, gradient: Arrays) -> TorchState:
        """Do what :meth:`step` does, to the bit where the gradient is of this state; changes it in place, returns it.

        Buffers become what they were after the gradient's rows: of gradients of one state, the last one's stay.

        Raises:
            ValueError: the gradient is of another model, or the step size has to see chunks.
        """
        self._check_halves()
        with self._threaded():
            return self._apply(state, load_gradient(state.model, gradient))

    def export(self, state: TorchState) -> Arrays:
        """Return parameters, buffers, the optimizer's moments and all counts.

        numpy has no bfloat16: such a tensor is exported as float32, which holds it exactly.
        """
        return export_state(state)

    def load(self, arrays: Arrays) -> TorchState:
        """Return the exported state, which shares nothing with the arrays.

        Raises:
            ValueError: the arrays are of another model or optimizer; the text names what differs.
        """
        with self._threaded():
            state = self._init()
            load_state(state, arrays)
        return state

    def _check_halves(self) -> None:
        if self.step_size.least_chunks > 1:
            raise ValueError(
                f"step_size is {type(self.step_size).__name__}, which has to see the chunks of a step, and a gradient "
                "holds only their sum; give StepSize, Linear or SquareRoot"
            )

    def _gradient(self, state: TorchState, columns: Columns, labels: Floats, weights: Floats) -> TorchGradient:
        """Return the sums over all rows; leaves ``state`` as it is."""
        total = math.fsum(weights.tolist())
        if total == 0:
            return TorchGradient(total, torch.zeros(()), torch.zeros(()), {}, {})
        with training(state) as model, self._seeded(1 + state.steps):
            return self._sums(model, columns, labels, weights, total)

    def _sums(self, model: nn.Module, columns: Columns, labels: Floats, weights: Floats, total: float) -> TorchGradient:
        size, least = len(labels), self.step_size.least_chunks
        inputs = self._inputs(columns, size)
        targets, mass = (torch.tensor(part, dtype=torch.float32, device=self._device) for part in (labels, weights))
        parameters = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
        sums: dict[str, Tensor] = {}
        chunks, value, within = 0, targets.new_zeros(()), targets.new_zeros(())
        for part in _parts(size, min(self.chunk, math.ceil(size / least))):
            losses = self.loss(_forward(model, inputs, part), targets[part])
            if losses.shape != targets[part].shape:
                raise ValueError(
                    f"loss gives shape {tuple(losses.shape)} for {len(targets[part])} rows; give one number per row, "
                    "without a reduction"
                )
            total_loss = (losses * mass[part]).sum()
            value += total_loss.detach()
            given = torch.autograd.grad(total_loss, list(parameters.values()), allow_unused=True)
            gradients = {name: each for name, each in zip(parameters, given, strict=True) if each is not None}
            weight = float(weights[part].sum())
            if least > 1 and weight > 0:
                chunks += 1
                within += square(gradients) / weight
            for name, gradient in gradients.items():
                sums[name] = sums[name] + gradient if name in sums else gradient
        plain = {name: each.coalesce() if each.is_sparse else each.contiguous() for name, each in sums.items()}
        return TorchGradient(total, value, within, plain, clone_buffers(model), chunks)

    def _apply(self, state: TorchState, gradient: TorchGradient) -> TorchState:
        total = gradient.weight
        if total == 0:
            return state
        means = {name: each / total for name, each in gradient.sums.items()}
        numbers = torch.stack([gradient.loss, gradient.within, square(means)])
        loss, within, whole = numbers.tolist()  # one wait for the device
        if not all(map(math.isfinite, (loss, within, whole))):
            state.refused += 1
            return state
        set_buffers(state.model, gradient.buffers)
        norm = math.sqrt(whole)
        shrink = 1.0 if self.clip is None or norm <= self.clip else self.clip / norm
        state.noise = self.step_size.observe(state.noise, Spread(gradient.chunks, total, within, whole))
        scale = self.step_size.scale(total / self.step_size.reference, state.noise, state.progress)
        set_scale(state, scale, 1.0 if self.schedule is None else self.schedule(state.progress))
        move(state, means if shrink == 1 else {name: mean * shrink for name, mean in means.items()})
        state.steps += 1
        state.progress += scale.progress
        return state

    def _inputs(self, columns: Columns, size: int) -> Inputs:
        inputs = self.encode(columns)
        if isinstance(inputs, Tensor):
            inputs = (inputs,)
        for tensor in inputs.values() if isinstance(inputs, Mapping) else inputs:
            if len(tensor) != size:
                raise ValueError(f"encode gives a tensor of shape {tuple(tensor.shape)} for {size} rows; one row each")
        if isinstance(inputs, Mapping):
            return {name: tensor.to(self._device) for name, tensor in inputs.items()}
        return tuple(tensor.to(self._device) for tensor in inputs)

    @cached_property
    def _module(self) -> nn.Module:
        """The module as it begins, of which every state has a copy."""
        with self._seeded(0):
            model = deepcopy(self.model())  # a factory may give the same one again
        check_batch_norm(model)
        return model

    def __getstate__(self) -> dict[str, Any]:
        """Leave the module out of pickles."""
        return {name: value for name, value in vars(self).items() if name != "_module"}

    def __deepcopy__(self, memo: dict[int, Any]) -> TorchLearner:
        """Return itself, as it never changes: copies share the module."""
        return self

    @property
    def _device(self) -> torch.device:
        if self.device == "auto":
            return torch.device("cuda" if torch.cuda.is_available() else "cpu")
        return torch.device(self.device)

    @contextmanager
    def _threaded(self) -> Iterator[None]:
        """Use so many threads inside; torch's setting is the calling thread's own."""
        before = torch.get_num_threads()
        torch.set_num_threads(self.threads)
        try:
            yield
        finally:
            torch.set_num_threads(before)

    @contextmanager
    def _seeded(self, step: int) -> Iterator[None]:
        """Draw random numbers of this step inside; the process's generators come out as they went in."""
        seed = int(np.random.SeedSequence([self.seed, step]).generate_state(1, np.uint64)[0])
        device = self._device
        with _seeding, torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.default_generator.manual_seed(seed)
            if device.type == "cuda":
                with torch.cuda.device(device):
                    torch.cuda.manual_seed(seed)
            yield


def _parts(size: int, most: int) -> Iterator[slice]:
    return (slice(start, min(start + most, size)) for start in range(0, size, most))


def _forward(model: nn.Module, inputs: Inputs, part: slice) -> Tensor:
    if isinstance(inputs, Mapping):
        return model(**{name: tensor[part] for name, tensor in inputs.items()})
    return model(*(tensor[part] for tensor in inputs))
