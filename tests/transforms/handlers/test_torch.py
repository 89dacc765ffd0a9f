"""The torch handler: alone, and in Beam's own RunInference."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import apache_beam as beam
import numpy as np
import pytest
import safetensors.torch
import torch
from apache_beam.ml.inference.base import RunInference
from apache_beam.ml.inference.pytorch_inference import PytorchModelHandlerTensor
from apache_beam.testing.util import assert_that
from torch import Tensor, nn

from contbatch.transforms.handlers.torch import Staging, TorchModelHandler


def linear() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        return nn.Sequential(nn.Linear(3, 2), nn.Dropout(0.5))


class Sum(nn.Module):
    """Sums what is not padding; shows what it was given."""

    def forward(self, padded: Tensor, lengths: Tensor) -> dict[str, Tensor]:
        real = torch.arange(padded.shape[1]) < lengths[:, None]
        return {"sum": (padded * real[:, :, None]).sum(1), "given": torch.full_like(lengths, padded.shape[1])}


class Named(nn.Module):
    def forward(self, left: Tensor, right: Tensor, scale: float = 1.0) -> tuple[Tensor, dict[str, Tensor]]:
        return left * scale, {"both": left[:, None] + right}


class Half(nn.Module):
    def forward(self, inputs: Tensor) -> Tensor:
        return inputs[::2]


def run(handler: TorchModelHandler, batch: list[Any], **inference_args: Any) -> list[Any]:
    results = handler.run_inference(batch, handler.load_model(), inference_args)
    assert [result.example is element for result, element in zip(results, batch, strict=True)] == [True] * len(batch)
    return [result.inference for result in results]


def saved(path: Path, module: nn.Module) -> str:
    safetensors.torch.save_file(module.state_dict(), path)
    return str(path)


def elements(count: int = 5) -> list[Tensor]:
    return [torch.arange(3.0) + row for row in range(count)]


def test_in_a_pipeline_its_outputs_are_those_of_beams_handler(tmp_path: Path) -> None:
    torch.save(linear().state_dict(), tmp_path / "weights.pt")
    beams = PytorchModelHandlerTensor(str(tmp_path / "weights.pt"), linear, {})
    expected = [result.inference.tolist() for result in beams.run_inference(elements(), beams.load_model())]

    def same(results: list[Any]) -> None:
        assert np.allclose(sorted(result.inference.tolist() for result in results), sorted(expected))

    handler = TorchModelHandler(linear, saved(tmp_path / "weights.safetensors", linear()), max_batch_size=2)
    with beam.Pipeline() as pipeline:
        assert_that(pipeline | beam.Create(elements()) | RunInference(handler), same)


def test_rows_are_ordinary_tensors_that_hold_nothing_of_their_batch() -> None:
    rows = run(TorchModelHandler(linear), elements(1000))
    assert rows[0].shape == (2,)
    assert not rows[0].is_inference()
    assert len(pickle.dumps(rows[0])) < 1000


@pytest.mark.parametrize("convert", [Tensor.numpy, lambda it: np.broadcast_to(it.numpy(), (3,))])
def test_arrays_are_as_good_as_tensors(convert: Callable[[Tensor], Any]) -> None:
    rows = run(TorchModelHandler(linear), [convert(element) for element in elements()])
    assert torch.equal(torch.stack(rows), linear().eval()(torch.stack(elements())))


def test_mappings_are_keyword_arguments_and_outputs_of_any_form_are_split() -> None:
    batch = [{"left": torch.tensor(row), "right": np.array([1, 2])} for row in range(3)]
    handler = TorchModelHandler(Named)
    rows = run(handler, batch, scale=2)
    assert [(left.item(), other["both"].tolist()) for left, other in rows] == [
        (2 * i, [i + 1, i + 2]) for i in range(3)
    ]
    assert handler.get_num_bytes(batch) == 3 * (8 + 16)


def test_mappings_must_have_the_same_names() -> None:
    batch = [{"left": torch.ones(1)}, {"left": torch.ones(1), "right": torch.ones(1)}]
    with pytest.raises(ValueError, match=r"\['left'\] and \['left', 'right'\]; all must have the same names"):
        run(TorchModelHandler(Named), batch)


@pytest.mark.parametrize(("pad_to", "length"), [((), 5), ((8, 4), 8)])
def test_padding_changes_no_result(pad_to: tuple[int, ...], length: int) -> None:
    batch = [torch.ones(size, 2) for size in (3, 5, 1)]
    handler = TorchModelHandler(Sum, pad=True, pad_to=pad_to)
    rows = run(handler, batch)
    assert [row["given"].item() for row in rows] == [length] * 3
    alone = [run(handler, [element])[0]["sum"] for element in batch]
    assert torch.equal(torch.stack([row["sum"] for row in rows]), torch.stack(alone))
    assert alone[1].tolist() == [5.0, 5.0]


def test_what_is_longer_than_pad_to_is_an_error() -> None:
    handler = TorchModelHandler(Sum, pad=True, pad_to=(2, 4))
    with pytest.raises(ValueError, match=r"length 5 exceeds pad_to, \[2, 4\]; shorten it or add to pad_to"):
        run(handler, [torch.ones(5, 2)])


@pytest.mark.parametrize(("pad", "pad_to"), [(False, (4,)), (True, (0, 4))])
def test_pad_to_is_checked(pad: bool, pad_to: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="give lengths of at least 1, and pad=True"):
        TorchModelHandler(Sum, pad=pad, pad_to=pad_to)


def test_bfloat16_is_inside_only() -> None:
    handler = TorchModelHandler(linear, dtype=torch.bfloat16)
    assert {weights.dtype for weights in handler.load_model().parameters()} == {torch.bfloat16}
    rows, exact = torch.stack(run(handler, elements())), torch.stack(run(TorchModelHandler(linear), elements()))
    assert rows.dtype == torch.float32
    assert torch.allclose(rows, exact, rtol=0.03, atol=0.03)
    assert not torch.equal(rows, exact)


def test_a_compiled_module_gives_the_same() -> None:
    rows = run(TorchModelHandler(linear, compile={"backend": "eager"}), elements())
    assert torch.equal(torch.stack(rows), torch.stack(run(TorchModelHandler(linear), elements())))


def test_the_model_is_for_inference_and_another_path_is_another_model(tmp_path: Path) -> None:
    other = nn.Sequential(nn.Linear(3, 2))
    handler = TorchModelHandler(linear, saved(tmp_path / "one", linear()))
    handler.update_model_path(saved(tmp_path / "two", other))
    handler.update_model_path(None)
    model = handler.load_model()
    assert not model.training
    assert not any(weights.requires_grad for weights in model.parameters())
    (result,) = handler.run_inference(elements(1), model)
    assert torch.equal(result.inference, other(elements(1)[0]))
    assert result.model_id == str(tmp_path / "two")


@pytest.mark.parametrize("content", [safetensors.torch.save({"0.weight": torch.ones(2, 3)}), b"no weights"])
def test_weights_of_another_module_are_an_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "weights").write_bytes(content)
    with pytest.raises(ValueError, match=r"(?s)/weights does not hold the weights of Sequential: .*save_file"):
        TorchModelHandler(linear, str(tmp_path / "weights")).load_model()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="device is 'cuda', but torch finds no GPU here; use device='cpu'"):
        TorchModelHandler(linear, device="cuda").load_model()


def test_as_many_rows_as_elements() -> None:
    with pytest.raises(ValueError, match="3 rows for 5 elements"):
        run(TorchModelHandler(Half), elements())


def test_it_can_be_pickled_and_leaves_its_buffers_behind() -> None:
    handler = TorchModelHandler(linear, dtype=torch.float64, device="cpu", max_batch_size=2)
    content = pickle.dumps(handler)
    rows = run(handler, elements())
    assert len(pickle.dumps(handler)) == len(content)
    assert torch.equal(torch.stack(run(pickle.loads(content), elements())), torch.stack(rows))  # noqa: S301


def test_staging_is_reused_and_grows() -> None:
    staging = Staging(pin=False)
    first = staging.empty("a", (4, 2), torch.float32)
    assert staging.empty("a", (4,), torch.int64).data_ptr() == first.data_ptr()
    assert staging.empty("b", (4, 2), torch.float32).data_ptr() != first.data_ptr()
    assert staging.empty("a", (5, 2), torch.float32).shape == (5, 2)


def test_a_later_batch_leaves_the_rows_of_one_before_and_an_error_leaves_the_handler_usable() -> None:
    handler = TorchModelHandler(nn.Identity)
    model = handler.load_model()
    before = handler.run_inference(elements(), model)
    with pytest.raises(RuntimeError, match="equal size"):
        handler.run_inference([torch.ones(3), torch.ones(4)], model)
    handler.run_inference([torch.zeros(3)] * 5, model)
    assert torch.equal(torch.stack([result.inference for result in before]), torch.stack(elements()))
