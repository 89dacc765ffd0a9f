"""Cuts encoded rows into chunks and writes each as one small dense matrix, so that its gradient is two products.

A sparse sum per slot and per row takes a dozen calls of numpy a chunk and is slower up to some hundred rows; the
price is that a chunk's matrix grows with the square of its rows. The products are BLAS's: the same rows give the same
bits on one platform and BLAS.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from contbatch.transforms.learning.hashing import Floats, Ids, Tokens


class Chunk(NamedTuple):
    """Some rows, by the slots that they use.

    Attributes:
        labels: of the r rows, shape (r,).
        weights: their importance, shape (r,).
        slots: the k slots used, ascending, each once.
        matrix: shape ``(r * blocks, k)``. A row's block 0 says how often it uses a slot; then, for each side, the
            share that a slot has in the side's vector.
        mass: per slot the summed importance weight of its uses, shape (k, 1).
    """

    labels: Floats
    weights: Floats
    slots: Ids
    matrix: Floats
    mass: Floats

    def gradient(self, used: Floats) -> Floats:
        """Return the gradient of the summed log loss, without penalties, shape (k, 1 + factors).

        Args:
            used: what the model has for each slot, a linear weight and then a factor, shape (k, 1 + factors).
        """
        sums = self.matrix.dot(used).reshape(len(self.labels), -1, used.shape[1])
        left, right = sums[:, 1::2, 1:], sums[:, 2::2, 1:]
        error = (sigmoid(sums[:, 0, 0] + np.einsum("rif,rif->r", left, right)) - self.labels) * self.weights
        pull = np.zeros(sums.shape)
        pull[:, 0, 0] = error
        error = error[:, None, None]
        np.multiply(right, error, out=pull[:, 1::2, 1:])
        np.multiply(left, error, out=pull[:, 2::2, 1:])
        return self.matrix.T.dot(pull.reshape(len(self.matrix), -1))


def cut(
    tokens: Tokens, labels: Floats, weights: Floats, sides: Sequence[Sequence[str]], chunk: int, bits: int
) -> Iterator[Chunk]:
    """Yield the rows in chunks of at most ``chunk``, in order; all are sorted and counted in one pass.

    Args:
        tokens: the encoded rows.
        labels: label per row, shape (n,).
        weights: importance weight per row, shape (n,).
        sides: fields of each side.
        chunk: most rows in one chunk.
        bits: log2 of the number of slots.
    """
    if not tokens.size:
        return
    every = tokens.rows[: tokens.size]
    part = every // chunk
    key = (part << bits)[tokens.rows]
    key += tokens.slots
    order = key.argsort(kind="stable")
    ordered = key[order]
    first = np.zeros(len(key), bool)
    np.not_equal(ordered[1:], ordered[:-1], out=first[1:])
    place = np.empty_like(order)  # of each token's slot among the slots of all chunks
    place[order] = first.cumsum()
    first[0] = True
    used = ordered[first]
    slots = used & ((1 << bits) - 1)
    mass = np.bincount(place, weights[tokens.rows]).astype(float, copy=False)[:, None]
    widths = np.bincount(used >> bits)
    stops = widths.cumsum()
    starts = stops - widths

    # Chunk c begins at blocks * chunk * starts[c], its row r, block b a further (r * blocks + b) * widths[c].
    blocks = 1 + len(sides)
    width = widths[part]
    row_at = (blocks * chunk - 1) * starts[part] + (every - chunk * part) * (blocks * width)
    index = row_at[tokens.rows] + place
    indices, shares = [index], [np.ones(len(index))]
    for block, side in enumerate(sides, 1):
        for at, share in (tokens.spans[field] for field in side):
            indices.append(index[at] + block * width[tokens.rows[at]])
            shares.append(shares[0][at] if share is None else share)
    size = blocks * (chunk * starts[-1] + (tokens.size - chunk * (len(widths) - 1)) * widths[-1])
    matrices = np.bincount(np.concatenate(indices), np.concatenate(shares), size).astype(float, copy=False)
    begin = 0
    for start, stop in zip(starts.tolist(), stops.tolist(), strict=True):
        end = min(begin + chunk, tokens.size)
        height, width, offset = blocks * (end - begin), stop - start, blocks * chunk * start
        matrix = matrices[offset : offset + height * width].reshape(height, width)
        yield Chunk(labels[begin:end], weights[begin:end], slots[start:stop], matrix, mass[start:stop])
        begin = end


def sigmoid(logits: Floats) -> Floats:
    """Return the probabilities that these logits stand for."""
    return 0.5 + 0.5 * np.tanh(0.5 * logits)
