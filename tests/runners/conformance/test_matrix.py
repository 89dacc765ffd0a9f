"""Every feature on every runner: a cell of the matrix is a real run, or a limit of the runner that is still there."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.runners.conformance.cases import CASES, Case
from tests.runners.conformance.jobs import Cell
from tests.runners.conformance.limits import LIMITS, Limit
from tests.runners.conformance.places import PLACES, Input, Place


def parameters(*rows: tuple[Place, Input, str, object]) -> Iterator[object]:
    for place, source, feature, what in rows:
        marks = [pytest.mark.needs(*place.needs)] if place.needs else []
        marks += [pytest.mark.slow] if place.is_flink else []
        yield pytest.param(place, source, what, id=f"{place.name}-{source}-{feature}", marks=marks)


RUNS = [
    (place, source, case.name, case)
    for place in PLACES
    for case in CASES
    for source in place.inputs
    if source in case.inputs and (place.name, case.name, source) not in LIMITS
]
BARRED = [
    (place, source, feature, limit)
    for place in PLACES
    for (name, feature, source), limit in LIMITS.items()
    if place.name == name
]


@pytest.mark.parametrize(("place", "source", "case"), [*parameters(*RUNS)])
def test_cell(place: Place, source: Input, case: Case, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    holds = (place.name, "aggregation behind it", source) not in LIMITS
    case.check(Cell(place, source, tmp_path, request.getfixturevalue, holds))


@pytest.mark.parametrize(("place", "source", "limit"), [*parameters(*BARRED)])
def test_limit_is_still_there(
    place: Place, source: Input, limit: Limit, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    limit.still_there(Cell(place, source, tmp_path, request.getfixturevalue))


def test_every_cell_is_a_run_or_a_limit() -> None:
    """And Prism and Flink's streaming jobs have no limit."""
    filled = {(place.name, feature) for place, _, feature, _ in RUNS + BARRED}
    assert filled == {(place.name, case.name) for place in PLACES for case in CASES}
    assert len(BARRED) == len(LIMITS)
    assert not {"Prism", "Flink, streaming"} & {name for name, *_ in LIMITS}
