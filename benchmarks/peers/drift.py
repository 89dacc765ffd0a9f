"""River on drifting streams: its retrain wrapper, its model without it, and its detectors at their defaults.

Reads ``{"batch": rows, "streams": [{"columns": {field: [id, ...]}, "labels": [0 or 1, ...]}, ...], "losses": [[squared
error, ...], ...], "most": {detector: values}}`` and prints ``{"scores": [{peer: [score, ...]}, ...], "alarms": [{
detector: [place, ...]}, ...]}``. A micro-batch is predicted, then learned one by one. A detector that is named in
``most`` sees only so many values of each loss.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from multiprocessing import Pool

from river import drift, linear_model, optim
from river.drift import binary


def make_model():
    return linear_model.LogisticRegression(optimizer=optim.AdaGrad(0.4))


PEERS = {
    "River": make_model,
    "River retrain wrapper": lambda: drift.DriftRetrainingClassifier(make_model()),
}
DETECTORS = {
    "ADWIN": drift.ADWIN,
    "Page-Hinkley": drift.PageHinkley,
    "KSWIN": lambda: drift.KSWIN(seed=0),
    "DDM": binary.DDM,
}


def predict_then_learn(peer: str, batch: int, stream: dict) -> list[float]:
    model, labels, scores = PEERS[peer](), [label == 1 for label in stream["labels"]], []
    rows = [dict.fromkeys(ids, 1.0) for ids in zip(*stream["columns"].values(), strict=True)]
    for start in range(0, len(rows), batch):
        part = slice(start, start + batch)
        scores += [model.predict_proba_one(row).get(True, 0.5) for row in rows[part]]
        for row, label in zip(rows[part], labels[part], strict=True):
            model.learn_one(row, label)
    return scores


def find_alarms(name: str, values: list[float]) -> list[int]:
    detector, alarms = DETECTORS[name](), []
    for place, value in enumerate(values):
        detector.update(value > 0.25 if name == "DDM" else value)
        if detector.drift_detected:
            alarms.append(place)
    return alarms


def by_name(names: Iterable[str], results: list) -> list[dict]:
    """Give each run of as many results as there are names their names."""
    names = list(names)
    return [
        dict(zip(names, results[start : start + len(names)], strict=True))
        for start in range(0, len(results), len(names))
    ]


def main() -> None:
    workload = json.load(sys.stdin)
    watched = [(name, losses[: workload["most"].get(name)]) for losses in workload["losses"] for name in DETECTORS]
    runs = [(peer, workload["batch"], stream) for stream in workload["streams"] for peer in PEERS]
    with Pool(2) as pool:
        found = pool.starmap_async(find_alarms, watched, chunksize=1)
        scores = by_name(PEERS, pool.starmap(predict_then_learn, runs, chunksize=1))
        json.dump({"scores": scores, "alarms": by_name(DETECTORS, found.get())}, sys.stdout)


if __name__ == "__main__":
    main()
