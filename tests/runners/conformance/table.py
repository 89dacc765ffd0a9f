"""The matrix as a table in Markdown: ``python -m tests.runners.conformance.table``.

It says what the suite checks: a cell is a run of the test of that name, or a limit that a test has still found.
"""

from __future__ import annotations

from collections.abc import Iterator

from tests.runners.conformance.cases import CASES
from tests.runners.conformance.limits import BLEMISHES, LIMITS
from tests.runners.conformance.places import PLACES, Place

_NAMES = {"bounded": "a list", "live": "live input"}


def lines() -> Iterator[str]:
    """Yield the lines of the table and of its notes."""
    notes: dict[str, int] = {}
    yield f"| | {' | '.join(place.name for place in PLACES)} |"
    yield "|---" * (len(PLACES) + 1) + "|"
    for case in CASES:
        yield f"| {case.name} | {' | '.join(_cell(place, case.name, case.inputs, notes) for place in PLACES)} |"
    yield ""
    yield from (f"{number}. {note}" for note, number in notes.items())


def _cell(place: Place, feature: str, inputs: tuple[str, ...], notes: dict[str, int]) -> str:
    limits = {source: LIMITS[name, row, source] for name, row, source in LIMITS if (name, row) == (place.name, feature)}
    runs = [source for source in place.inputs if source in inputs and source not in limits]
    why = {source: limit.why for source, limit in limits.items()}
    why |= {
        source: BLEMISHES[name, row, source] for name, row, source in BLEMISHES if (name, row) == (place.name, feature)
    }
    said = [f"{_NAMES[source]}: {text}" if runs else text for source, text in why.items()]
    marks = "".join(f" [{notes.setdefault(note, len(notes) + 1)}]" for note in said)
    return ("yes" if runs else "n/a") + marks


if __name__ == "__main__":
    print("\n".join(lines()))
