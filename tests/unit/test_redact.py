"""Ready-made patterns, what they take out and what they leave; and patterns that would take too long."""

from __future__ import annotations

import json
import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forwarder import config
from forwarder.configcheck import keys
from forwarder.redact import READYMADE, Rule, luhn, redaction, slowness

TAKEN_OUT = [
    ("email", "from ann.o'b+x@mail.example.co.uk, to", "from ann.o'*, to"),
    ("email", "ann@example.com", "*"),
    ("email", '{"@timestamp":"2026","to":"<ann@example.com>."}', '{"@timestamp":"2026","to":"<*>."}'),
    ("email", "a@b and c@d", "* and *"),
    ("email", "x" * 100 + "@example.com", None),
    ("credit-card", "card 4111 1111 1111 1111 of", "card * of"),
    ("credit-card", "4111-1111-1111-1111,378282246310005;5555555555554444", "*,*;*"),
    ("credit-card", "4111 1111 1111 1112 has a wrong digit", None),
    ("credit-card", "id 94111111111111111 and a4111111111111111 and 4111111111111111b", None),
    ("ipv4", "from 10.0.0.1:80, 192.168.255.254. And 0.0.0.0", "from *:80, *. And *"),
    ("ipv4", "256.1.1.1 1.2.3 1.2.3.4.5 v1.2.3.4 1.2.3.400 01.2.3.4", None),
    ("jwt", "auth=eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmN;", "auth=*;"),
    ("jwt", "keyJhbGciOiJIUzI1NiJ9.eyJzdWIi.x and eyJ alone", None),
    ("bearer-token", '"authorization":"Bearer abc.DEF-123_~+/=="', '"authorization":"Bearer *"'),
    ("bearer-token", "BEARER abcd, bearer  efgh", "BEARER *, bearer  *"),
    ("bearer-token", "a bearer of news", None),
    ("aws-key", "key AKIAIOSFODNN7EXAMPLE, ASIAIOSFODNN7EXAMPLE", "key *, *"),
    ("aws-key", "XAKIAIOSFODNN7EXAMPLE AKIAIOSFODNN7EXAMPLEX AKIAiosfodnn7example", None),
    ("url-password", "postgres://app:s3cr3t!@db:5432/x amqp://:pw@mq", "postgres://app:*@db:5432/x amqp://:*@mq"),
    ("url-password", "http://host:8080/a@b https://user@host", None),
    ("email", "rené@example.com", "*"),
]
SECRETS = {
    "email": "ann@example.com",
    "credit-card": "4111 1111 1111 1111",
    "ipv4": "10.0.0.1",
    "jwt": "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmN",
    "bearer-token": "Bearer abcdef123456",
    "aws-key": "AKIAIOSFODNN7EXAMPLE",
    "url-password": 'amqp://app:p"w\\d@mq',
}


def take_out(name: str, text: str) -> str:
    return redaction(Rule(name, None, "*"))([text.encode()])[0].decode()


@pytest.mark.parametrize(("name", "text", "left"), TAKEN_OUT)
def test_a_ready_made_pattern_takes_out_what_it_names_and_nothing_else(name: str, text: str, left: str | None) -> None:
    assert take_out(name, text) == (text if left is None else left)


@pytest.mark.parametrize("before", ["", "to:", "a\n", "a\t", "a\r\n", "a\b", "a\f", "é", 'a"', "\x01", "😀"])
@pytest.mark.parametrize("ascii_only", [True, False])
@pytest.mark.parametrize("name", SECRETS)
def test_in_json_it_is_found_behind_every_escape_and_the_record_stays_json(name: str, ascii_only: bool, before: str) -> None:
    left = json.loads(take_out(name, json.dumps({"m": f"{before}{SECRETS[name]} end"}, ensure_ascii=ascii_only)))["m"]
    kept = {"bearer-token": "Bearer *", "url-password": "amqp://app:*@mq"}.get(name, "*")
    assert left in (f"{before}{kept} end", f"{kept} end"), "a letter before an address may belong to it"


@pytest.mark.parametrize("text", ['{"card":4111111111111111}', '{"cards":[ 4111111111111111,1],"n":4111111111111111 }'])
def test_a_number_of_json_becomes_a_string(text: str) -> None:
    left = take_out("credit-card", text)
    assert "4111" not in left
    assert "*" in str(json.loads(left))


def test_all_that_are_there_can_be_configured() -> None:
    (name,) = (key for key in keys(config.Redact) if key.name == "name")
    assert set(name.shape.choices) == READYMADE.keys()


@pytest.mark.parametrize(("number", "valid"), [("79927398713", True), ("79927398710", False), ("0", True), ("4-2", True)])
def test_the_check_digit_is_that_of_the_standard(number: str, valid: bool) -> None:
    assert luhn(number.encode()) == valid


@pytest.mark.parametrize("name", READYMADE)
def test_none_of_them_takes_long_whatever_a_record_holds(name: str) -> None:
    assert slowness(READYMADE[name].pattern.decode()) == ""


@given(st.lists(st.text(alphabet='a1.@ -:/eyJAKISB_rx\n"', max_size=300)))
def test_what_is_taken_out_once_is_not_there_again(texts: list[str]) -> None:
    records = [text.encode() for text in texts]
    for name in ("jwt", "aws-key", "ipv4"):
        left = redaction(Rule(name, None, "*"))(records)
        assert len(left) == len(records)
        assert not any(re.search(READYMADE[name].pattern, record) for record in left)


@pytest.mark.parametrize(
    "pattern",
    [
        "(a+)+$",
        "(a|a)*b",
        r"(\w+\s?)*$",
        "(x+x+)+y",
        ".*.*=.*",
        r"\S+@\S+",
        "(foo|foofoo)+$",
        "(?:a b)+c|(?:(?:a )+)+$",
        ".+secret",
    ],
)
def test_a_pattern_that_is_not_linear_is_found_out_in_a_moment(pattern: str) -> None:
    begun = time.thread_time()
    assert "takes it" in slowness(pattern), slowness(pattern)
    assert time.thread_time() - begun < 5


@pytest.mark.parametrize(
    "pattern", [r"customer \d+", 'password=[^ "]+', r"\d{3}-\d{2}-\d{4}", r"(?i)token=\w+", "a", r"\S{1,64}@\S{1,64}"]
)
def test_a_pattern_that_is_fast_enough_is_taken(pattern: str) -> None:
    assert slowness(pattern) == ""


@pytest.mark.parametrize(
    "text", ["a1.@ -:/eyJ4AKIA", "://", "a@", "Bearer ", "eyJaaaaa.", "4 ", "1.", r"\u00e9", r"\n", "rené@", "://a:bb"]
)
@pytest.mark.parametrize("more", ["", "a"])
def test_a_record_of_a_megabyte_is_through_in_no_time(text: str, more: str) -> None:
    record = (text + more * (1 << 20) if more else text * (1 << 20)).encode()[: 1 << 20]
    begun = time.thread_time()
    for name in READYMADE:
        (record,) = redaction(Rule(name, None, "*"))([record])
    assert time.thread_time() - begun < 10
