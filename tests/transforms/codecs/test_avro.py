from __future__ import annotations

import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contbatch.transforms.codecs import AvroCodec

CODEC = AvroCodec(
    {
        "type": "record",
        "name": "R",
        "fields": [
            {"name": "id", "type": "string"},
            {"name": "value", "type": "double"},
            {"name": "tags", "type": {"type": "array", "items": "string"}},
        ],
    }
)
records = st.fixed_dictionaries(
    {"id": st.text(max_size=5), "value": st.floats(allow_nan=False), "tags": st.lists(st.text(max_size=3), max_size=3)}
)


@given(st.lists(records, max_size=8))
def test_decode_undoes_encode(given_records: list[dict]) -> None:
    decoded = CODEC.decode([CODEC.encode(record) for record in given_records])
    assert decoded.columns == {field: [record[field] for record in given_records] for field in CODEC.fields}
    assert (decoded.positions, decoded.errors) == (list(range(len(given_records))), [])


@given(st.lists(st.tuples(records, st.sampled_from(["good", "cut", "longer", "empty"])), max_size=10))
def test_a_bad_record_is_told_apart_and_moves_no_neighbour(mixed: list[tuple[dict, str]]) -> None:
    spoil = {"good": lambda b: b, "cut": lambda b: b[:-1], "longer": lambda b: b + b"x", "empty": lambda b: b""}
    decoded = CODEC.decode([spoil[how](CODEC.encode(record)) for record, how in mixed])
    good = [position for position, (_, how) in enumerate(mixed) if how == "good"]
    assert decoded.positions == good
    assert decoded.columns["id"] == [mixed[position][0]["id"] for position in good]
    assert [position for position, _ in decoded.errors] == [p for p, (_, how) in enumerate(mixed) if how != "good"]


@given(st.lists(st.binary(max_size=30), max_size=10))
def test_every_position_has_one_fate_whatever_the_bytes(payloads: list[bytes]) -> None:
    decoded = CODEC.decode(payloads)
    assert sorted([*decoded.positions, *(position for position, _ in decoded.errors)]) == list(range(len(payloads)))
    assert all(len(column) == len(decoded.positions) for column in decoded.columns.values())


def test_an_error_says_what_was_wrong() -> None:
    good = CODEC.encode({"id": "a", "value": 1.0, "tags": []})
    (_, longer), (_, cut) = CODEC.decode([good + b"xyz", good[:4]]).errors
    assert longer == "3 bytes follow the Avro record"
    assert cut.startswith("not an Avro record of this schema: ")


def test_it_survives_the_journey_to_a_worker() -> None:
    record = CODEC.encode({"id": "a", "value": 1.0, "tags": ["t"]})
    assert pickle.loads(pickle.dumps(CODEC)).decode([record]) == CODEC.decode([record])  # noqa: S301


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="record does not fit the schema"):
        CODEC.encode({"id": "a"})
    with pytest.raises(ValueError, match="not an Avro record schema"):
        AvroCodec({"type": "record", "name": "R"})
