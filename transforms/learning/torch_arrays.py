"""What a torch learner's state and gradient hold, and both as plain arrays."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from contbatch.transforms.learning.learner import Arrays
from contbatch.transforms.learning.step_size import NOTHING, Noise, Scale

Forms = dict[str, tuple[tuple[int, ...], np.dtype[Any]]]
"""Shape and type by name."""


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


class TorchGradient(NamedTuple):
    """The gradient of some rows, as sums.

    Attributes:
        weight: total weight of the rows; at 0 there is nothing to learn and the rest is empty.
        loss: weighted sum of the rows' losses, float32.
        within: how the gradients of chunks spread, see :class:`.step_size.Spread`; not exported.
        sums: weighted sum of the rows' gradients, for each parameter that has one.
        buffers: the model's buffers after the rows.
        chunks: how many chunks have weight, where the step size looks at them; not exported.
    """

    weight: float
    loss: Tensor
    within: Tensor
    sums: dict[str, Tensor]
    buffers: dict[str, Tensor]
    chunks: int = 0


def export_state(state: TorchState) -> Arrays:
    """Return parameters, buffers, the optimizer's moments and all counts."""
    arrays = {name: _to_numpy(tensor) for name, tensor in _weights(state.model).items()}
    arrays |= {name: _to_numpy(moments[key]) for name, moments, key in _moments(state)}
    return arrays | _counts(state)


def _counts(state: TorchState) -> Arrays:
    return {
        "steps": np.array(state.steps, np.int64),
        "refused": np.array(state.refused, np.int64),
        "progress": np.array(state.progress),
        "noise": np.array(state.noise),
        "decay": np.array(state.decay),
    }


def load_state(state: TorchState, arrays: Arrays) -> None:
    """Put an exported state into one that has no steps yet; it shares nothing with the arrays.

    Raises:
        ValueError: the arrays are of another model or optimizer; the text names what differs.
    """
    _make_moments(state.optimizer)
    some = any(name.startswith("optimizer/") for name in arrays) or not arrays.get("steps", 1)
    for parameter, prefix in _prefixes(state).items():
        if some and not any(name.startswith(prefix) for name in arrays):
            state.optimizer.state.pop(parameter, None)  # it never had a gradient
    _check(_forms(state), arrays)
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


def export_gradient(gradient: TorchGradient) -> Arrays:
    """Return ``weight``, ``loss``, ``sum/NAME`` for a parameter and ``buffer/NAME``.

    A sparse sum over a table of shape (n, width) is ``row/NAME``, shape (1, k), the rows of the table that it is of,
    and ``sum/NAME``, shape (k, width).
    """
    arrays = {"weight": np.array(gradient.weight), "loss": _to_numpy(gradient.loss)}
    for name, total in gradient.sums.items():
        if total.is_sparse:
            arrays[f"row/{name}"] = _to_numpy(total.indices())
        arrays[f"sum/{name}"] = _to_numpy(total.values() if total.is_sparse else total)
    return arrays | {f"buffer/{name}": _to_numpy(buffer) for name, buffer in gradient.buffers.items()}


def load_gradient(model: nn.Module, arrays: Arrays) -> TorchGradient:
    """Return the exported gradient, on the device of each parameter; it shares nothing with the arrays.

    Raises:
        ValueError: the arrays are of another model; the text names what differs.
    """
    parameters = {name: each for name, each in model.named_parameters() if f"sum/{name}" in arrays}
    buffers = dict(model.named_buffers()) if arrays.get("weight", 1) else {}
    forms: Forms = {"weight": ((), np.dtype(np.float64)), "loss": ((), np.dtype(np.float32))}
    forms |= {f"buffer/{name}": (buffer.shape, _dtype(buffer)) for name, buffer in buffers.items()}
    beyond = []
    for name, parameter in parameters.items():
        shape, rows = tuple(parameter.shape), arrays.get(f"row/{name}")
        if rows is not None:
            if rows.max(initial=-1) >= len(parameter):
                beyond.append(f"row/{name} has row {rows.max()}, expected rows below {len(parameter)}")
            forms[f"row/{name}"] = (1, rows.size), np.dtype(np.int64)
            shape = (rows.size, *shape[1:])
        forms[f"sum/{name}"] = shape, _dtype(parameter)
    _check(forms, arrays, beyond)
    sums = {}
    for name, parameter in parameters.items():
        sums[name] = torch.tensor(arrays[f"sum/{name}"], dtype=parameter.dtype, device=parameter.device)
        if f"row/{name}" in arrays:
            at = torch.tensor(arrays[f"row/{name}"], device=parameter.device)
            sums[name] = torch.sparse_coo_tensor(
                at, sums[name], parameter.shape, is_coalesced=True, check_invariants=False
            )
    loss = torch.tensor(arrays["loss"], device=next(model.parameters()).device)
    return TorchGradient(
        weight=float(arrays["weight"]),
        loss=loss,
        within=torch.zeros_like(loss),
        sums=sums,
        buffers={name: torch.tensor(arrays[f"buffer/{name}"]) for name in buffers},
    )


@contextmanager
def training(state: TorchState) -> Iterator[nn.Module]:
    """Give the model in the modes in which it trains; afterwards its buffers are as they were before."""
    for module, mode in zip(state.model.modules(), state.modes, strict=True):
        module.training = mode
    before = clone_buffers(state.model)
    try:
        yield state.model
    finally:
        set_buffers(state.model, before)


def clone_buffers(model: nn.Module) -> dict[str, Tensor]:
    """Return a copy of each buffer by name."""
    return {name: buffer.clone() for name, buffer in model.named_buffers()}


def set_buffers(model: nn.Module, values: Mapping[str, Tensor]) -> None:
    """Copy values, one for each buffer, into the model."""
    for name, buffer in model.named_buffers():
        buffer.copy_(values[name])


def set_scale(state: TorchState, scale: Scale, rate: float) -> None:
    """Put a step size's word, and the schedule's ``rate``, into the optimizer's settings."""
    for group, configured in zip(state.optimizer.param_groups, state.settings, strict=True):
        group["lr"] = configured["lr"] * (scale.rate * rate)
        if isinstance(configured.get("eps"), float):
            group["eps"] = configured["eps"] * scale.epsilon
        if isinstance(state.optimizer, torch.optim.RMSprop):
            group["alpha"] = configured["alpha"] ** scale.decay
        if "betas" in configured:
            group["betas"] = tuple(beta**scale.decay for beta in configured["betas"])
            _recount(state.optimizer, group["params"], state.decay / scale.decay)
    state.decay = scale.decay


def move(state: TorchState, gradients: Mapping[str, Tensor]) -> None:
    """Let the optimizer take a step along these gradients."""
    parameters = dict(state.model.named_parameters())
    for name, gradient in gradients.items():
        parameters[name].grad = gradient
    checked = torch.sparse.check_sparse_tensor_invariants
    with checked(checked.is_enabled()):  # type: ignore[no-untyped-call]  # torch warns unless it is told
        state.optimizer.step()
    state.optimizer.zero_grad()


def square(gradients: Mapping[str, Tensor]) -> Tensor:
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


def _forms(state: TorchState) -> Forms:
    """Return the forms of what :func:`export_state` gives, and copy nothing."""
    values = _weights(state.model) | {name: moments[key] for name, moments, key in _moments(state)}
    forms = {name: (tuple(np.shape(value)), _dtype(value)) for name, value in values.items()}
    return forms | {name: (array.shape, array.dtype) for name, array in _counts(state).items()}


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


def _dtype(value: Tensor | float) -> np.dtype[Any]:
    return _to_numpy(value.new_empty(0) if isinstance(value, Tensor) else value).dtype


def _check(expected: Forms, given: Arrays, wrong: Iterable[str] = ()) -> None:
    """Refuse arrays of other names, shapes or types, or for what else is ``wrong``."""
    wrong = [f"{name} is missing" for name in expected if name not in given] + list(wrong)
    wrong += [f"{name} is unknown" for name in given if name not in expected]
    wrong += [
        f"{name} has {given[name].dtype} {given[name].shape}, expected {dtype} {tuple(shape)}"
        for name, (shape, dtype) in expected.items()
        if name in given and (given[name].shape, given[name].dtype) != (tuple(shape), dtype)
    ]
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise ValueError(
            f"the arrays do not fit this model and optimizer: {'; '.join(wrong[:3])}{more}; use them with the "
            "configuration that they were exported with"
        )
