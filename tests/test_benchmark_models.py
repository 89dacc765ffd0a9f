"""The benchmarks' models: what is in a batch with an element does not change its result."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Iterator

import pytest
import torch

from benchmarks.models import VOCABULARY, Decoder, DecoderHandler, Encoder, Request, State
from contbatch.transforms.handlers.torch import TorchModelHandler


def prompt(rng: random.Random, longest: int = 12) -> list[int]:
    return [rng.randrange(VOCABULARY) for _ in range(rng.randint(1, longest))]


def requests(count: int, seed: int = 1) -> list[Request]:
    rng = random.Random(seed)
    return [(prompt(rng), rng.randint(1, 30)) for _ in range(count)]


def alone(handler: DecoderHandler, model: Decoder, elements: list[Request]) -> list[list[int]]:
    return [handler.run_inference([element], model)[0] for element in elements]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def decoder() -> tuple[DecoderHandler, Decoder]:
    handler = DecoderHandler(slots=8, max_length=64)
    return handler, handler.load_model()


@pytest.mark.parametrize("pad_to", [(), (100, 200)])
def test_the_encoder_ignores_padding(pad_to: tuple[int, ...]) -> None:
    rng = random.Random(3)
    batch = [torch.tensor(prompt(rng, 80)) for _ in range(12)]
    handler = TorchModelHandler(Encoder, pad=True, pad_to=pad_to)
    model = handler.load_model()
    for element, result in zip(batch, handler.run_inference(batch, model), strict=True):
        exact = model(element[None], torch.tensor([len(element)]))[0]
        assert (result.inference - exact).abs().max() <= 1e-5
        assert exact.std() > 0.01


def test_the_decoders_tokens_do_not_depend_on_the_batch(decoder: tuple[DecoderHandler, Decoder]) -> None:
    handler, model = decoder
    elements = requests(8)
    together = handler.run_inference(elements, model)
    assert [len(tokens) for tokens in together] == [count for _, count in elements]
    assert together == alone(handler, model, elements)
    assert len({token for tokens in together for token in tokens}) > 20


def test_elements_join_leave_and_are_given_up_between_steps(decoder: tuple[DecoderHandler, Decoder]) -> None:
    handler, model = decoder
    rng, elements = random.Random(5), requests(24, seed=2)
    waiting = deque(enumerate(elements))
    running: list[tuple[int, State]] = []
    results: dict[int, list[int]] = {}
    while waiting or running:
        joining = [waiting.popleft() for _ in range(min(len(waiting), rng.randint(0, len(model.free))))]
        if joining:
            states = handler.start([element for _, element in joining], model)
            running += [(number, state) for (number, _), state in zip(joining, states, strict=True)]
        if running and rng.random() < 0.1:
            number, state = running.pop(rng.randrange(len(running)))
            handler.abandon(state, model)
            waiting.append((number, elements[number]))
        rng.shuffle(running)
        finished = handler.step([state for _, state in running], model) if running else []
        results |= {n: handler.finish(state, model) for (n, state), done in zip(running, finished, strict=True) if done}
        running = [it for it, done in zip(running, finished, strict=True) if not done]
    assert sorted(model.free) == list(range(8))
    assert [results[number] for number in range(len(elements))] == alone(handler, model, elements)


def test_the_decoder_says_what_it_cannot_do(decoder: tuple[DecoderHandler, Decoder]) -> None:
    handler, model = decoder
    for wrong in (([], 1), ([1], 0), ([1] * 60, 5)):
        with pytest.raises(ValueError, match="give at least 1 of each and at most 64 in all"):
            handler.start([([1], 1), wrong], model)
    with pytest.raises(RuntimeError, match="9 elements for 8 free slots; finish others before"):
        handler.start([([1], 1)] * 9, model)
    assert len(model.free) == 8
    assert len(handler.run_inference([([1] * 60, 4)], model)[0]) == 4
