"""Fields put in and patterns taken out: records of bytes in, records of bytes out."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forwarder.enrich import pipeline, splice
from forwarder.redact import Rule

FIELDS = {"env": "prod", "rack": 7, "tags": ["a", "b"]}


def rules(*pairs: tuple[str, str]) -> list[Rule]:
    return [Rule(None, pattern, replace) for pattern, replace in pairs]


def test_nothing_to_do_is_no_step_at_all() -> None:
    assert pipeline({}, []) is None


@pytest.mark.parametrize(
    "record",
    [
        b'{"message":"hello"}',
        b'{"message": "with {braces} inside"}',
        b'{ "message":"space after the brace"}',
        b'{\t"message":"tab"}',
        '{"message":"你好"}'.encode(),
        b'{"a":{"b":{}}}',
        b"{}",
        b"{ }",
    ],
)
def test_fields_are_put_into_a_json_object_and_it_keeps_its_own(record: bytes) -> None:
    (changed,) = splice(FIELDS)([record])
    assert json.loads(changed) == {**FIELDS, **json.loads(record)}


def test_the_record_s_own_value_wins() -> None:
    (changed,) = splice({"env": "prod", "other": 1})([b'{"env":"mine"}'])
    assert json.loads(changed) == {"env": "mine", "other": 1}


@pytest.mark.parametrize("record", [b"", b"plain", b"[1,2]", b'"text"', b"{", b"{cut", b'{"a":1} tail', b"\xff\xfe", b"42"])
def test_what_is_no_json_object_is_left_as_it_is(record: bytes) -> None:
    assert splice(FIELDS)([record]) == [record]


def test_the_order_and_number_of_records_stay() -> None:
    records = [b'{"n":%d}' % number if number % 3 else b"line %d" % number for number in range(100)]
    changed = splice({"x": 1})(records)
    assert len(changed) == 100
    assert all((b"%d" % number) in record for number, record in enumerate(changed))


@given(st.dictionaries(st.text(), st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text()))
def test_any_object_stays_valid_json(content: dict[str, object]) -> None:
    fields = {"env": "prod"}
    for text in (json.dumps(content), json.dumps(content, ensure_ascii=False, indent=1)):
        (changed,) = splice(fields)([text.encode()])
        assert json.loads(changed) == {**fields, **content}


@given(st.lists(st.binary()))
def test_no_bytes_make_the_steps_fail_or_lose_a_record(records: list[bytes]) -> None:
    run = pipeline({"env": "prod"}, rules(("[0-9]+", "#")))
    assert run is not None
    assert len(run(records)) == len(records)


def test_patterns_are_replaced_in_the_order_in_which_they_stand() -> None:
    run = pipeline({}, rules((r"\d{16}", "CARD"), (r"CARD (\w+)", r"\1 has a CARD")))
    assert run is not None
    assert run([b"1234567812345678 ann", b"nothing here"]) == [b"ann has a CARD", b"nothing here"]


def test_named_groups_and_other_alphabets_are_replaced_too() -> None:
    run = pipeline({}, rules((r"(?P<who>张三)", r"<\g<who>>"), ("geheim", "…")))
    assert run is not None
    assert run(["张三 geheim".encode()]) == ["<张三> …".encode()]


def test_every_place_in_a_record_is_replaced() -> None:
    run = pipeline({}, rules(("pw=[^ ]+", "pw=***")))
    assert run is not None
    assert run([b"pw=a pw=b pw=c"]) == [b"pw=*** pw=*** pw=***"]


def test_fields_that_were_put_in_are_redacted_too() -> None:
    run = pipeline({"token": "secret"}, rules(("secret", "***")))
    assert run is not None
    assert [json.loads(record) for record in run([b'{"m":"a secret"}'])] == [{"token": "***", "m": "a ***"}]
