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
from threading import RLock
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from contbatch.transforms.learning.learner import Arrays, Columns
from contbatch.transforms.learning.normalization import check_batch_norm
from contbatch.transforms.learning.step_size import NOTHING, Noise, Scale, Spread, SquareRoot, StepSize

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


@dataclass
class TorchState:
    """What has been learned. A step changes it in place.

    Attributes:
        model: the module, with its parameters and buffers.
        optimizer: with its moments; they are never reset.
        modes: which modules train when the model trains; the others stay in evaluation mode.
        settings: the optimizer's settings per group as configured.
        steps: steps done.
        refused: steps not done because the loss or the gradient was not finite.
        progress: steps done, counted in steps of the reference.
        noise: what the step size knows about gradients.
        decay: the power of the last step's decays, see :class:`.step_size.Scale`.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    modes: tuple[bool, ...]
    settings: tuple[dict[str, Any], ...]
    steps: int = 0
    refused: int = 0
    progress: float = 0.0
    noise: Noise = NOTHING
    decay: float = 1.0


@dataclass(frozen=True)
class TorchLearner:
    """Learns any torch module from a stream.

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
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.fields:
            raise ValueError("fields is empty; name at least one column")
        if self.chunk < 1:
            raise ValueError(f"chunk is {self.chunk}; give 1 row or more")
        if self.clip is not None and not self.clip > 0:
            raise ValueError(f"clip is {self.clip}; give a norm above 0, or None")
        if self.seed < 0:
            raise ValueError(f"seed is {self.seed}; give 0 or more")

    def init(self) -> TorchState:
        """Return the seeded module and its optimizer, on the device.

        Raises:
            ValueError: the module cannot learn from uneven micro-batches, for the reason given.
        """
        with self._seeded(0):
            model = deepcopy(self.model()).to(self._device)  # a factory may give the same one again
        check_batch_norm(model)
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
        with torch.inference_mode():
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
        total = math.fsum(weights.tolist())
        if total == 0:
            return state
        for module, mode in zip(state.model.modules(), state.modes, strict=True):
            module.training = mode
        buffers = {name: buffer.clone() for name, buffer in state.model.named_buffers()}
        with self._seeded(1 + state.steps):
            gradient, spread = self._gradient(state.model, columns, labels, weights, total)
        if spread is None:
            for name, buffer in state.model.named_buffers():
                buffer.copy_(buffers[name])
            state.refused += 1
            return state
        norm = math.sqrt(spread.whole)
        shrink = 1.0 if self.clip is None or norm <= self.clip else self.clip / norm
        state.noise = self.step_size.observe(state.noise, spread)
        scale = self.step_size.scale(total / self.step_size.reference, state.noise, state.progress)
        self._set(state, scale)
        for parameter, mean in gradient.items():
            parameter.grad = mean if shrink == 1 else mean * shrink
        checked = torch.sparse.check_sparse_tensor_invariants
        with checked(checked.is_enabled()):  # type: ignore[no-untyped-call]  # torch warns unless it is told
            state.optimizer.step()
        state.optimizer.zero_grad()
        state.steps += 1
        state.progress += scale.progress
        return state

    def export(self, state: TorchState) -> Arrays:
        """Return parameters, buffers, the optimizer's moments and all counts.

        numpy has no bfloat16: such a tensor is exported as float32, which holds it exactly.
        """
        arrays = {name: _to_numpy(tensor) for name, tensor in _weights(state.model).items()}
        arrays |= {name: _to_numpy(moments[key]) for name, moments, key in _moments(state)}
        return arrays | {
            "steps": np.array(state.steps, np.int64),
            "refused": np.array(state.refused, np.int64),
            "progress": np.array(state.progress),
            "noise": np.array(state.noise),
            "decay": np.array(state.decay),
        }

    def load(self, arrays: Arrays) -> TorchState:
        """Return the exported state, which shares nothing with the arrays.

        Raises:
            ValueError: the arrays are of another model or optimizer; the text names what differs.
        """
        state = self.init()
        _make_moments(state.optimizer)
        some = any(name.startswith("optimizer/") for name in arrays) or not arrays.get("steps", 1)
        for parameter, prefix in _prefixes(state).items():
            if some and not any(name.startswith(prefix) for name in arrays):
                state.optimizer.state.pop(parameter, None)  # it never had a gradient
        _check(self.export(state), arrays)
        with torch.no_grad():
            for name, tensor in _weights(state.model).items():
                tensor.copy_(torch.tensor(arrays[name]))
            for name, moments, key in _moments(state):
                if isinstance(moments[key], Tensor):
                    moments[key].copy_(torch.tensor(arrays[name]))
                else:
                    moments[key] = type(moments[key])(arrays[name].item())
        state.steps, state.refused = int(arrays["steps"]), int(arrays["refused"])
        state.progress, state.decay = float(arrays["progress"]), float(arrays["decay"])
        state.noise = Noise(*arrays["noise"].tolist())
        return state

    def _gradient(
        self, model: nn.Module, columns: Columns, labels: Floats, weights: Floats, total: float
    ) -> tuple[dict[nn.Parameter, Tensor], Spread | None]:
        """Return the mean gradient of each parameter that has one, and how the chunks' gradients spread.

        The spread is ``None`` where the loss or a gradient is not finite.
        """
        size, least = len(labels), self.step_size.least_chunks
        inputs = self._inputs(columns, size)
        targets, mass = (torch.tensor(part, dtype=torch.float32, device=self._device) for part in (labels, weights))
        parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        sums: dict[nn.Parameter, Tensor] = {}
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
            given = torch.autograd.grad(total_loss, parameters, allow_unused=True)
            gradients = {each: grad for each, grad in zip(parameters, given, strict=True) if grad is not None}
            weight = float(weights[part].sum())
            if least > 1 and weight > 0:
                chunks += 1
                within += _square(gradients) / weight
            for parameter, gradient in gradients.items():
                sums[parameter] = sums[parameter] + gradient if parameter in sums else gradient
        means = {parameter: gradient / total for parameter, gradient in sums.items()}
        loss, *squares = torch.stack([value, within, _square(means)]).tolist()  # one wait for the device
        return means, Spread(chunks, total, *squares) if all(map(math.isfinite, (loss, *squares))) else None

    def _set(self, state: TorchState, scale: Scale) -> None:
        """Put the rule's word into the optimizer's settings."""
        rate = scale.rate * (1.0 if self.schedule is None else self.schedule(state.progress))
        for group, configured in zip(state.optimizer.param_groups, state.settings, strict=True):
            group["lr"] = configured["lr"] * rate
            if isinstance(configured.get("eps"), float):
                group["eps"] = configured["eps"] * scale.epsilon
            if isinstance(state.optimizer, torch.optim.RMSprop):
                group["alpha"] = configured["alpha"] ** scale.decay
            if "betas" in configured:
                group["betas"] = tuple(beta**scale.decay for beta in configured["betas"])
                _recount(state.optimizer, group["params"], state.decay / scale.decay)
        state.decay = scale.decay

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

    @property
    def _device(self) -> torch.device:
        if self.device == "auto":
            return torch.device("cuda" if torch.cuda.is_available() else "cpu")
        return torch.device(self.device)

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


def _square(gradients: Mapping[nn.Parameter, Tensor]) -> Tensor:
    """Return the squared norm of all together, in float32."""
    values = [each.coalesce().values() if each.is_sparse else each for each in gradients.values()]
    return torch.stack([torch.linalg.vector_norm(value, dtype=torch.float32) for value in values]).square().sum()


def _recount(optimizer: torch.optim.Optimizer, parameters: Iterable[nn.Parameter], factor: float) -> None:
    """Count the steps so far in steps of the coming decay.

    Adam divides its averages by ``1 - beta**steps``; with ``beta**k`` for beta that is right only for steps of k.
    """
    if factor != 1:
        for moments in (optimizer.state.get(parameter, {}) for parameter in parameters):
            if "step" in moments:
                moments["step"] = moments["step"] * factor


def _weights(model: nn.Module) -> dict[str, Tensor]:
    return {f"parameter/{name}": tensor for name, tensor in model.named_parameters()} | {
        f"buffer/{name}": tensor for name, tensor in model.named_buffers()
    }


def _prefixes(state: TorchState) -> dict[nn.Parameter, str]:
    return {parameter: f"optimizer/{name}/" for name, parameter in state.model.named_parameters()}


def _moments(state: TorchState) -> list[tuple[str, dict[str, Any], str]]:
    """Return what the optimizer holds: for each value its name, its dict and its key."""
    return [
        (f"{prefix}{key}", moments, key)
        for parameter, prefix in _prefixes(state).items()
        for moments in [state.optimizer.state.get(parameter, {})]
        for key, value in moments.items()
        if value is not None
    ]


def _make_moments(optimizer: torch.optim.Optimizer) -> None:
    """Take a step by no gradient, so that every moment exists in its own type and on its own device."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad()


def _to_numpy(value: Tensor | float) -> NDArray[Any]:
    if not isinstance(value, Tensor):
        return np.array(value)
    value = value.detach()
    return (value.float() if value.dtype == torch.bfloat16 else value).cpu().contiguous().numpy().copy()


def _check(expected: Arrays, given: Arrays) -> None:
    """Refuse arrays of other names, shapes or types."""
    wrong = [f"{name} is missing" for name in expected if name not in given]
    wrong += [f"{name} is unknown" for name in given if name not in expected]
    wrong += [
        f"{name} has {given[name].dtype} {given[name].shape}, expected {array.dtype} {array.shape}"
        for name, array in expected.items()
        if name in given and (given[name].shape, given[name].dtype) != (array.shape, array.dtype)
    ]
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise ValueError(
            f"the arrays do not fit this model and optimizer: {'; '.join(wrong[:3])}{more}; load them with the "
            "configuration that they were exported with"
        )
