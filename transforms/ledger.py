"""The laws of conservation, which a job checks of itself: nothing is lost, and nothing comes out twice."""

from __future__ import annotations

from collections.abc import Mapping

from contbatch.transforms.events import Event, Kind
from contbatch.transforms.records import Failed, Learned, Prediction, Published

REQUEST_FATES = ("predicted", "shed", "failed")
NEGATIVES = ("assumed", "settled")
"""Rows that are learned and are no feedback: requests that had none when a window ended."""

FEEDBACK_FATES = ("learned", "duplicate", "late", "unmatched", "refused")


def violations(counts: Mapping[str, int]) -> list[str]:
    """Return one sentence per law that the counts break; names that are missing count as 0.

    The laws: ``requests`` is the sum of :data:`REQUEST_FATES`, ``feedback`` that of :data:`FEEDBACK_FATES`.
    """
    broken = []
    for name, fates in (("requests", REQUEST_FATES), ("feedback", FEEDBACK_FATES)):
        total = counts.get(name, 0)
        parts = {fate: counts.get(fate, 0) for fate in fates}
        if total != sum(parts.values()):
            listed = " + ".join(f"{count} {fate}" for fate, count in parts.items())
            broken.append(f"{name}: {total} went in, but {listed} = {sum(parts.values())} came out")
    return broken


def name_in(record: Event | Failed) -> str:
    """Return the name under which an event is counted as it goes in; a failed one is what it was meant to be."""
    kind = Kind[record.kind.upper()] if isinstance(record, Failed) else record.kind
    return "requests" if kind in {Kind.REQUEST, Kind.SERVED} else "feedback"


def name_out(record: Prediction | Learned | Failed | Published) -> str:
    """Return the name under which a record is counted as it comes out."""
    if isinstance(record, Learned) and record.observed in NEGATIVES:
        return record.observed
    return record.status if isinstance(record, Failed) else _NAMES[type(record)]


_NAMES: dict[type, str] = {Prediction: "predicted", Learned: "learned", Published: "versions"}
