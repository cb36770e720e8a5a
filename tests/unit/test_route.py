"""Templates of topic and key, bound to an app and a host: what is constant, and what looks inside a record."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forwarder.route import MISSING, Route, make_route, topic_name


def route(topic: str, key: str | None = None, app: str = "shop", host: str = "web1") -> Route:
    return make_route(topic, key, app=app, host=host)


def topic_of(template: str, record: bytes) -> str:
    made = route(template)
    return made.topic if isinstance(made.topic, str) else made.topic(record)


def key_of(template: str, record: bytes) -> str:
    made = route("logs", template)
    assert made.key is not None
    return made.key.decode() if isinstance(made.key, bytes) else made.key(record)


def test_a_template_of_app_and_host_is_a_constant_and_looks_at_no_record() -> None:
    made = route("logs.{app}.{host}", "{host}/{app}")
    assert made.topic == "logs.shop.web1"
    assert made.key == b"web1/shop"


def test_without_a_key_and_with_one_topic_a_whole_chunk_may_go_to_one_partition() -> None:
    assert route("logs").pinned
    assert route("logs.{app}").pinned
    assert not route("logs", "{app}").pinned
    assert not route("logs.{level}").pinned
    assert not route("logs", "{field:user}").pinned


@pytest.mark.parametrize("name", ["levelname", "level", "log.level", "SeverityText", "severity", "@fields.levelname"])
def test_the_level_is_found_under_the_name_that_each_layout_gives_it(name: str) -> None:
    assert topic_of("logs.{level}", b'{"message":"m","%s":"ERROR"}' % name.encode()) == "logs.ERROR"


def test_a_name_with_dots_is_found_as_it_stands_and_inside_objects() -> None:
    assert key_of("{field:user.id}", b'{"user.id":"flat"}') == "flat"
    assert key_of("{field:user.id}", b'{"user":{"id":"deep"}}') == "deep"
    assert key_of("{field:a.b.c}", b'{"a":{"b":{"c":1}}}') == "1"
    assert key_of("{field:a.b.c}", b'{"a":{"b":2}}') == MISSING
    assert topic_of("{level}", b'{"log":{"level":"warn"}}') == "warn"


@pytest.mark.parametrize(
    ("value", "key"),
    [(b'"text"', "text"), (b"7", "7"), (b"1.5", "1.5"), (b"true", "true"), (b'{"a":1}', '{"a":1}'), (b"null", MISSING)],
)
def test_any_value_can_be_a_key(value: bytes, key: str) -> None:
    assert key_of("{field:f}", b'{"f":%s}' % value) == key


@pytest.mark.parametrize("record", [b"plain text", b"{broken", b"[1]", b"{}", b"", b"\xff\xfe", b'{"f":1} tail'])
def test_what_has_no_such_field_counts_as_unknown(record: bytes) -> None:
    assert key_of("{field:f}", record) == MISSING
    assert topic_of("logs.{level}", record) == f"logs.{MISSING}"


def test_several_parts_stand_side_by_side() -> None:
    assert key_of("{app}:{field:user}@{host}", b'{"user":"ann"}') == "shop:ann@web1"


def test_what_a_field_says_of_the_template_is_not_obeyed() -> None:
    assert key_of("{field:user}", b'{"user":"{host}"}') == "{host}"


def test_braces_that_name_nothing_known_stay() -> None:
    assert key_of("{what}{field:f}{field:}", b'{"f":"x"}') == "{what}x{field:}"


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("logs", "logs"),
        ("a.b_c-D9", "a.b_c-D9"),
        ("a/b c", "a_b_c"),
        ("grüße", "gr__e"),
        ("日志", "__"),
        ("x" * 300, "x" * 249),
        ("", MISSING),
        ("a\nb", "a_b"),
    ],
)
def test_a_topic_is_made_of_what_kafka_allows(text: str, name: str) -> None:
    assert topic_name(text) == name


@pytest.mark.parametrize("text", [".", ".."])
def test_the_two_names_that_kafka_refuses_are_not_made(text: str) -> None:
    assert topic_name(text) not in {".", ".."}


@given(st.text())
def test_whatever_a_record_says_becomes_a_topic_that_kafka_allows(text: str) -> None:
    name = topic_name(text)
    assert 1 <= len(name) <= 249
    assert set(name) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-")
    assert name not in {".", ".."}


@given(st.binary())
def test_no_bytes_make_a_template_fail(record: bytes) -> None:
    assert topic_of("logs.{level}", record)
    assert isinstance(key_of("{field:a.b}", record), str)
