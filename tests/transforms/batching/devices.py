"""Devices whose batches take ``fixed + each * size + per_weight * weight`` seconds, and cost models that know them."""

from __future__ import annotations

from contbatch.transforms.batching import CostModel


class Line(CostModel):
    """Knows a device exactly, so that the arithmetic of a test is that of the line; learns nothing.

    Its upper bound is above the line by the share ``doubt``.
    """

    def __init__(self, fixed: float, each: float, per_weight: float = 0.0, doubt: float = 0.0) -> None:
        super().__init__()
        self._line = fixed, each, per_weight
        self._doubt = doubt

    @property
    def parameters(self) -> tuple[float, float, float]:
        return self._line

    def observe(self, size: int, seconds: float, weight: float = 0.0) -> None:
        pass

    def expected(self, size: int, weight: float = 0.0) -> float:
        fixed, each, per_weight = self._line
        return fixed + each * size + per_weight * weight

    def upper(self, size: int, weight: float = 0.0) -> float:
        return (1 + self._doubt) * self.expected(size, weight)

    def largest(self, seconds: float, limit: int, weight_per_element: float = 0.0) -> int:
        sizes = [size for size in range(1, limit + 1) if self.upper(size, size * weight_per_element) <= seconds]
        return max(sizes, default=1)


def known_device(fixed: float = 0.010, each: float = 0.0005) -> CostModel:
    """Return a cost model that has learned a line, by default 10 ms + 0.5 ms * n."""
    model = CostModel()
    for size in (1, 8, 16, 32) * 6:
        model.observe(size, fixed + each * size)
    return model
