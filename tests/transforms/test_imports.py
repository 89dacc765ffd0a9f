"""The pure parts and the command stay usable without the weight of Beam."""

from __future__ import annotations

import subprocess
import sys

import pytest

import contbatch.transforms


@pytest.mark.parametrize(
    "module",
    [
        "contbatch.transforms",
        "contbatch.transforms.batching",
        "contbatch.transforms.codecs",
        "contbatch.transforms.learning",
        "contbatch.transforms.events",
        "contbatch.transforms.ledger",
        "contbatch.pipelines.cli",
    ],
)
def test_it_imports_neither_beam_nor_torch(module: str) -> None:
    program = f"import sys, {module}; print([name for name in ('apache_beam', 'torch') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert (done.stdout, done.stderr) == ("[]\n", "")


def test_every_public_name_resolves() -> None:
    assert contbatch.transforms.__all__ == sorted(contbatch.transforms.__all__)
    assert all(getattr(contbatch.transforms, name).__name__ == name for name in contbatch.transforms.__all__)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match=r"contbatch\.transforms.*no attribute 'Batcher'"):
        contbatch.transforms.Batcher  # noqa: B018
