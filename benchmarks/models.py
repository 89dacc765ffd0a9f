"""Small torch models with random weights, for benchmarks: an encoder that is padded, and a decoder that is stepped.

Run as a script, it prints what they cost on one core.
"""

from __future__ import annotations

import itertools
import sys
import timeit
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from apache_beam.ml.inference.base import ModelHandler
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

VOCABULARY = 512

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Queries [B, T, heads, dim], keys and values [B, T, shared, dim] to what was attended to [B, T, heads, dim]."""


class Block(nn.Module):
    """One layer of a transformer; heads of queries may share heads of keys and values.

    What is attended to is the caller's.
    """

    def __init__(self, width: int, heads: int, shared: int) -> None:
        super().__init__()
        self.heads, self.shared, self.dim = heads, shared, width // heads
        self.qkv = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width + 2 * shared * self.dim))
        self.out = nn.Linear(width, width)
        self.inner = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, inputs: Tensor, attend: Attend) -> Tensor:
        """Return [B, T, width] for [B, T, width]."""
        query, key, value = (
            self.qkv(inputs).unflatten(-1, (-1, self.dim)).split((self.heads, self.shared, self.shared), 2)
        )
        inputs = inputs + self.out(attend(query, key, value).flatten(2))
        return inputs + self.inner(inputs)


def attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    """Attend from [B, T, heads, dim] to [B, S, heads or 1, dim]; a mask [B, 1, T or 1, S] is added or says where."""
    heads = query.shape[2]
    heads_first = (each.expand(-1, -1, heads, -1).transpose(1, 2) for each in (query, key, value))
    return scaled_dot_product_attention(*heads_first, attn_mask=mask).transpose(1, 2)


class Transformer(nn.Module):
    """The weights of both models, always the same."""

    def __init__(self, max_length: int, width: int, layers: int, heads: int, shared: int, outputs: int) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(7)
            self.tokens = nn.Embedding(VOCABULARY, width)
            self.positions = nn.Embedding(max_length, width)
            self.blocks = nn.ModuleList(Block(width, heads, shared) for _ in range(layers))
            self.head = nn.Linear(width, outputs)
        self.norm = nn.LayerNorm(width)


class Encoder(Transformer):
    """Tokens [B, L] (int64) and lengths [B] to [B, 128] (float32): two layers, mean over the real tokens, a head.

    A row depends on neither the others nor the padding, up to rounding. The cost grows with B * L.
    """

    def __init__(self, max_length: int = 512) -> None:
        super().__init__(max_length, width=128, layers=2, heads=4, shared=4, outputs=128)

    def forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """Return [B, 128]."""
        positions = torch.arange(tokens.shape[1], device=tokens.device)
        real = positions < lengths[:, None]
        hidden = self.tokens(tokens) + self.positions(positions)
        for block in self.blocks:
            hidden = block(hidden, lambda *qkv: attention(*qkv, mask=real[:, None, None, :]))
        total = torch.where(real[:, :, None], self.norm(hidden), 0).sum(1)
        return self.head(total / lengths[:, None])


class Decoder(Transformer):
    """An autoregressive decoder that keeps keys and values in slots.

    In float64, so that rounding, which depends on the batch, does not change which token is the likeliest.

    Args:
        slots: how many elements it decodes at a time.
        max_length: tokens of the longest prompt with all that follows.

    Attributes:
        keys, values: [slots, layers, max_length, 1, dim].
        free: slots that nobody uses.
    """

    def __init__(self, slots: int, max_length: int) -> None:
        width, layers, heads = 64, 4, 8
        super().__init__(max_length, width, layers, heads, shared=1, outputs=VOCABULARY)
        shape = (slots, layers, max_length, 1, width // heads)
        self.keys, self.values = nn.Buffer(torch.zeros(shape)), nn.Buffer(torch.zeros(shape))
        self.free = list(range(slots))
        self.double()

    def forward(self, tokens: Tensor, starts: Tensor, slots: Tensor) -> Tensor:
        """Put tokens [B, T] at the positions from starts [B] on of slots [B]; return what follows the last, [B]."""
        positions = starts[:, None] + torch.arange(tokens.shape[1], device=tokens.device)
        longest = int(positions.max()) + 1
        later = torch.arange(longest, device=tokens.device) > positions[:, None, :, None]
        mask = torch.zeros_like(later, dtype=torch.float64).masked_fill(later, -torch.inf)

        def attend(layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            self.keys[slots[:, None], layer, positions] = key
            self.values[slots[:, None], layer, positions] = value
            seen = (cache[:, layer, :longest].index_select(0, slots) for cache in (self.keys, self.values))
            return attention(query, *seen, mask)

        hidden = self.tokens(tokens) + self.positions(positions)
        for layer, block in enumerate(self.blocks):
            hidden = block(hidden, partial(attend, layer))
        return self.head(self.norm(hidden[:, -1])).argmax(-1)


Request = tuple[Sequence[int], int]
"""A prompt and how many tokens are to follow it."""


@dataclass(slots=True)
class State:
    """An element that is being decoded.

    Attributes:
        slot: where its keys and values are.
        tokens: the prompt and what has followed; the last one has not been through the model.
        prompt: tokens of the prompt.
        end: tokens when it has finished.
    """

    slot: int
    tokens: list[int]
    prompt: int
    end: int

    @property
    def finished(self) -> bool:
        """Whether all has been generated."""
        return len(self.tokens) == self.end

    @property
    def predicted(self) -> list[int]:
        """What has followed the prompt."""
        return self.tokens[self.prompt :]


class DecoderHandler(ModelHandler):
    """Greedy decoding, by steps or by whole requests; a prediction is the list of tokens that follow the prompt.

    Args:
        slots: elements at a time; of a whole batch, its largest size.
        max_length: tokens of the longest prompt with all that follows.
        device: as torch names it.
        **kwargs: those of Beam's ``ModelHandler``.
    """

    def __init__(self, slots: int = 32, max_length: int = 256, device: str = "cpu", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._slots = slots
        self._max_length = max_length
        self._device = device

    def load_model(self) -> Decoder:
        """Return the model with all of its slots free."""
        return Decoder(self._slots, self._max_length).to(self._device).eval().requires_grad_(False)

    def start(self, elements: Sequence[Request], model: Decoder) -> list[State]:
        """Return a state for each element; its prompt is in its slot.

        Raises:
            ValueError: a prompt is empty, nothing is to follow it, or they are too long; nothing has been started.
            RuntimeError: there are not enough free slots; nothing has been started.
        """
        for prompt, count in elements:
            if not prompt or count < 1 or len(prompt) + count > self._max_length:
                raise ValueError(
                    f"a prompt of {len(prompt)} tokens and {count} to follow; "
                    f"give at least 1 of each and at most {self._max_length} in all"
                )
        if len(elements) > len(model.free):
            raise RuntimeError(f"{len(elements)} elements for {len(model.free)} free slots; finish others before")
        states = [State(model.free.pop(), [*prompt], len(prompt), len(prompt) + count) for prompt, count in elements]
        length = max(state.prompt for state in states) - 1
        if length:
            # The step puts the last token; what padding leaves behind is overwritten before it is seen.
            padded = [(state.tokens[:-1] + [0] * length)[:length] for state in states]
            self._run(model, padded, [0] * len(states), states)
        return states

    def step(self, states: Sequence[State], model: Decoder) -> list[bool]:
        """Generate a token for each; return which have finished. Those that had already are run along, unchanged."""
        last = [state.tokens[-1:] for state in states]
        chosen = self._run(model, last, [len(state.tokens) - 1 for state in states], states)
        for state, token in zip(states, chosen, strict=True):
            if not state.finished:
                state.tokens.append(token)
        return [state.finished for state in states]

    def finish(self, state: State, model: Decoder) -> list[int]:
        """Return the prediction of a finished element, and free its slot."""
        self.abandon(state, model)
        return state.predicted

    def abandon(self, state: State, model: Decoder) -> None:
        """Free the slot of an element."""
        model.free.append(state.slot)

    def run_inference(
        self, batch: Sequence[Request], model: Decoder, inference_args: dict[str, Any] | None = None
    ) -> list[list[int]]:
        """Decode a batch as a whole: the finished are run along until the last has finished."""
        states = self.start(batch, model)
        try:
            while not all(self.step(states, model)):
                pass
            return [state.predicted for state in states]
        finally:
            for state in states:
                self.abandon(state, model)

    @torch.inference_mode()
    def _run(self, model: Decoder, tokens: list[list[int]], starts: list[int], states: Sequence[State]) -> list[int]:
        slots = [state.slot for state in states]
        return model(*(torch.tensor(each, device=self._device) for each in (tokens, starts, slots))).tolist()


def main() -> int:
    """Print what a batch of the encoder and a step of the decoder take at the least on one core."""
    torch.set_num_threads(1)
    calls: dict[str, Callable[[], Any]] = {}
    encoder = Encoder().eval().requires_grad_(False)
    for size, length in ((1, 50), (1, 100), (4, 50), (16, 50), (16, 200)):
        batch = torch.zeros(size, length, dtype=torch.int64), torch.full((size,), length)
        calls[f"encoder, {size} x {length}"] = partial(encoder, *batch)
    handler = DecoderHandler()
    for size, length in itertools.product((1, 4, 16, 32), (16, 64, 128)):
        model = handler.load_model()
        states = handler.start([([1] * length, 1)] * size, model)
        handler.step(states, model)  # all have finished: from here on they stay where they are
        calls[f"decoder, {size} at {length}"] = partial(handler.step, states, model)
    for name, call in calls.items():
        print(f"{name}: {min(timeit.repeat(call, number=1, repeat=100)) * 1e3:.2f} ms")
    return 0


if __name__ == "__main__":
    sys.exit(main())
