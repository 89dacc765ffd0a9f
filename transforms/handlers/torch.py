"""A torch module as a Beam ``ModelHandler``: static shapes, pinned copies, results that hold nothing of their batch."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import safetensors.torch
import torch
from apache_beam.ml.inference.base import ModelHandler, PredictionResult
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from contbatch.transforms.files import local_copy


class Staging:
    """Host memory that batches are put together in: a buffer for each input, as large as its largest batch so far.

    Args:
        pin: whether it is page-locked, so that copies to a GPU are asynchronous.
    """

    def __init__(self, pin: bool) -> None:
        self._pin = pin
        self._buffers: dict[str, Tensor] = {}

    def empty(self, name: str, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Return a tensor to fill; it overwrites the one before of this name, which must be done with."""
        size = math.prod(shape) * dtype.itemsize
        buffer = self._buffers.get(name)
        if buffer is None or len(buffer) < size:
            buffer = self._buffers[name] = torch.empty(size, dtype=torch.uint8, pin_memory=self._pin)
        return buffer[:size].view(dtype).view(*shape)


class TorchModelHandler(ModelHandler):
    """Runs batches of tensors through a torch module, in eval mode.

    Elements are tensors on the host or numpy arrays of one shape, which are stacked, or mappings of them, which are
    stacked by name and given to the module as keyword arguments. A result is ``PredictionResult(element, row, path)``:
    the element's row of the output, on the host and in memory of its own. Of an output that is a tuple or a mapping,
    it is a tuple or a dict of rows.

    Args:
        module: makes the module; called without arguments where the model is loaded.
        path: a safetensors file on any filesystem that Beam knows, with all weights of the module and no others;
            ``None`` leaves the module's own.
        device: as torch names it; ``cuda`` where there is none is an error.
        dtype: what weights and floating inputs are cast to; floating outputs come back as float32. ``None`` leaves all.
        pad: whether elements are tensors that differ in their first dimension: they are padded with zeros to
            the longest, and the module is called with ``(padded, lengths)``.
        pad_to: lengths to pad to, of which the next is taken; an element longer than the last is an error.
        compile: arguments of ``torch.compile``; ``None`` does not compile.
        **kwargs: those of Beam's ``ModelHandler``.

    Raises:
        ValueError: ``pad_to`` is given without ``pad`` or has a length below 1.
    """

    def __init__(
        self,
        module: Callable[[], nn.Module],
        path: str | None = None,
        *,
        device: str = "cpu",
        dtype: torch.dtype | None = None,
        pad: bool = False,
        pad_to: tuple[int, ...] = (),
        compile: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if pad_to and (not pad or min(pad_to) < 1):
            raise ValueError(f"pad_to is {pad_to} and pad is {pad}; give lengths of at least 1, and pad=True")
        super().__init__(**kwargs)
        self._module = module
        self._path = path
        self._device = torch.device(device)
        self._dtype = dtype
        self._pad = pad
        self._pad_to = sorted(pad_to)
        self._compile = compile
        self._idle: list[Staging] = []

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_idle": []}

    def update_model_path(self, model_path: str | None = None) -> None:
        """Take the weights from another file when the model is loaded next; ``None`` changes nothing."""
        self._path = model_path or self._path

    def load_model(self) -> nn.Module:
        """Return the module on its device, in eval mode and without gradients.

        Raises:
            RuntimeError: the device is a GPU and there is none.
            ValueError: the file's weights are not those of the module.
        """
        if self._device.type == "cuda" and not torch.cuda.is_available():
            raise RuntimeError(f"device is {str(self._device)!r}, but torch finds no GPU here; use device='cpu'")
        module = self._module()
        if self._path is not None:
            try:
                with local_copy(self._path) as path:  # mapped, and so copied without keeping other threads waiting
                    module.load_state_dict(safetensors.torch.load_file(path))
            except (RuntimeError, SafetensorError) as error:
                raise ValueError(
                    f"{self._path} does not hold the weights of {type(module).__name__}: {error}; "
                    "write them with safetensors.torch.save_file(module.state_dict(), path)"
                ) from error
        module.to(self._device, self._dtype).eval().requires_grad_(False)
        if self._compile is not None:
            module.compile(**self._compile)
        return module

    def run_inference(
        self, batch: Sequence[Any], model: nn.Module, inference_args: dict[str, Any] | None = None
    ) -> list[PredictionResult]:
        """Return a ``PredictionResult`` for each element, in their order.

        Args:
            batch: elements.
            model: from :meth:`load_model`.
            inference_args: further keyword arguments of the module.

        Raises:
            ValueError: an element is longer than ``pad_to`` allows, mappings differ in their names, or the output has
                not as many rows as the batch.
        """
        staging = self._take()
        with torch.inference_mode():
            args, kwargs = self._inputs(batch, staging)
            output = _each(model(*args, **kwargs, **(inference_args or {})), self._fetched)
        if self._device.type == "cuda":
            torch.cuda.current_stream(self._device).synchronize()
        rows = _rows(output)
        self._idle.append(staging)  # not after an error: copies may still be under way
        if len(rows) != len(batch):
            raise ValueError(f"the module returned {len(rows)} rows for {len(batch)} elements; it must return as many")
        return [PredictionResult(element, row, self._path) for element, row in zip(batch, rows, strict=True)]

    def get_num_bytes(self, batch: Sequence[Any]) -> int:
        """Return the bytes of all tensors and arrays."""
        return sum(
            sum(value.nbytes for value in element.values()) if isinstance(element, Mapping) else element.nbytes
            for element in batch
        )

    def _take(self) -> Staging:
        """Return a staging that no other thread uses."""
        try:
            return self._idle.pop()
        except IndexError:
            return Staging(pin=self._device.type == "cuda")

    def _inputs(self, batch: Sequence[Any], staging: Staging) -> tuple[list[Tensor], dict[str, Tensor]]:
        first = batch[0]
        if isinstance(first, Mapping):
            for element in batch:
                if element.keys() != first.keys():
                    raise ValueError(f"elements have {[*first]} and {[*element]}; all must have the same names")
            return [], {name: self._sent(_stacked([it[name] for it in batch], staging, name)) for name in first}
        if not self._pad:
            return [self._sent(_stacked(batch, staging))], {}
        sizes = [len(element) for element in batch]
        padded = _padded(batch, self._length(max(sizes)), staging)
        lengths = staging.empty("lengths", [len(sizes)], torch.int64).copy_(torch.tensor(sizes))
        return [self._sent(padded), self._sent(lengths)], {}

    def _length(self, longest: int) -> int:
        if not self._pad_to:
            return longest
        if longest > self._pad_to[-1]:
            raise ValueError(
                f"an element of length {longest} exceeds pad_to, {self._pad_to}; shorten it or add to pad_to"
            )
        return self._pad_to[bisect_left(self._pad_to, longest)]

    def _sent(self, host: Tensor) -> Tensor:
        tensor = host.to(self._device, non_blocking=True)
        return tensor.to(self._dtype) if self._dtype and tensor.is_floating_point() else tensor

    def _fetched(self, tensor: Tensor) -> Tensor:
        return (tensor.float() if self._dtype and tensor.is_floating_point() else tensor).to("cpu", non_blocking=True)


def _tensor(value: Any) -> Tensor:
    return value if isinstance(value, Tensor) else torch.from_numpy(np.require(value, requirements=["C", "W"]))


def _stacked(values: Sequence[Any], staging: Staging, name: str = "") -> Tensor:
    tensors = [_tensor(value) for value in values]
    return torch.stack(tensors, out=staging.empty(name, (len(tensors), *tensors[0].shape), tensors[0].dtype))


def _padded(values: Sequence[Any], length: int, staging: Staging) -> Tensor:
    longest = pad_sequence([_tensor(value) for value in values], batch_first=True)
    padded = staging.empty("", (len(values), length, *longest.shape[2:]), longest.dtype)
    padded[:, : longest.shape[1]] = longest
    padded[:, longest.shape[1] :] = 0
    return padded


def _each(output: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """Return the output with the function applied to each of its tensors."""
    if isinstance(output, Tensor):
        return function(output)
    if isinstance(output, Mapping):
        return {name: _each(value, function) for name, value in output.items()}
    return tuple(_each(value, function) for value in output)


def _rows(output: Any) -> Sequence[Any]:
    """Return what each element gets, as copies: a view would keep its batch in memory, and be pickled with it."""
    if isinstance(output, Tensor):
        return [row.clone() for row in output]
    if isinstance(output, Mapping):
        columns = [_rows(value) for value in output.values()]
        return [dict(zip(output, row, strict=True)) for row in zip(*columns, strict=True)]
    return list(zip(*map(_rows, output), strict=True))
