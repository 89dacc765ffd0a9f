"""Cuts encoded rows into chunks and writes each as one small dense matrix, so that learning it is two products.

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
        rows: which rows, r of them.
        slots: the k slots used, ascending, each once.
        matrix: shape ``(r * blocks, k)``. A row's block 0 says how often it uses a slot; then, for each side, the
            share that a slot has in the side's vector.
        mass: per slot the summed importance weight of its uses, shape (k, 1).
    """

    rows: slice
    slots: Ids
    matrix: Floats
    mass: Floats


def cut(tokens: Tokens, weights: Floats, sides: Sequence[Sequence[str]], chunk: int, bits: int) -> Iterator[Chunk]:
    """Yield the rows in chunks of at most ``chunk``, in order; all are sorted and counted in one pass.

    Args:
        tokens: the encoded rows.
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
        rows = slice(begin, min(begin + chunk, tokens.size))
        height, width, offset = blocks * (rows.stop - begin), stop - start, blocks * chunk * start
        matrix = matrices[offset : offset + height * width].reshape(height, width)
        yield Chunk(rows, slots[start:stop], matrix, mass[start:stop])
        begin = rows.stop
