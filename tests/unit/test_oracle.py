"""The judge of all other tests: what it does not see, no test sees."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from tests.harness.oracle import Judge, judge, read_sealed, sealed


def record(writer: str, number: int) -> bytes:
    return b'{"message": "hello", "writer": "%s", "seq": %d, "level": "INFO"}' % (writer.encode(), number)


def sent(writer: str, count: int) -> list[bytes]:
    return [record(writer, number) for number in range(count)]


def test_what_arrives_as_it_was_sent_is_exact() -> None:
    verdict = judge(sent("a", 100) + sent("b", 50), {"a": 100, "b": 50})
    verdict.assert_none_lost()
    verdict.assert_exact()
    assert (verdict.sent, verdict.received, verdict.reordered) == (150, 150, 0)


def test_a_lost_record_is_named() -> None:
    values = sent("a", 100)
    del values[41]
    verdict = judge(values, {"a": 100})
    assert verdict.writers["a"].first_lost == (41,)
    with pytest.raises(AssertionError, match=r"a: sent 100, received 99, lost 1 \(41\)"):
        verdict.assert_none_lost()


def test_a_duplicate_does_not_make_up_for_a_lost_record() -> None:
    values = sent("a", 100)
    values[41] = values[40]
    verdict = judge(values, {"a": 100})
    assert (verdict.received, verdict.lost, verdict.duplicated) == (100, 1, 1)


def test_every_further_arrival_is_a_duplicate() -> None:
    verdict = judge(sent("a", 10) + sent("a", 10) + sent("a", 3), {"a": 10})
    verdict.assert_none_lost()
    assert verdict.duplicated == 13
    assert verdict.reordered == 0, "what arrives again is no new order"
    with pytest.raises(AssertionError, match="duplicated 13"):
        verdict.assert_exact()


def test_a_record_overtaken_by_a_later_one_is_reordered() -> None:
    values = sent("a", 10)
    values[3], values[7] = values[7], values[3]
    assert judge(values, {"a": 10}).reordered == 4, "4, 5, 6 and 3 come after 7"


def test_order_is_judged_for_each_writer_alone() -> None:
    values = [record(writer, number) for number in range(10) for writer in ("b", "a")]
    assert judge(values, {"a": 10, "b": 10}).reordered == 0


@pytest.mark.parametrize("alien", [b"", b"\xff\x00", b'{"writer": "a"}', b'{"seq": 1}', record("nobody", 1), record("a", 10)])
def test_what_nobody_sent_is_alien(alien: bytes) -> None:
    verdict = judge([*sent("a", 10), alien], {"a": 10})
    verdict.assert_none_lost()
    assert (verdict.alien, verdict.first_alien, verdict.received) == (1, (alien,), 10)
    with pytest.raises(AssertionError, match="alien 1"):
        verdict.assert_exact()


def test_a_writer_of_whom_nothing_arrived_lost_everything() -> None:
    verdict = judge([], {"a": 1000, "b": 0})
    assert verdict.lost == 1000
    assert len(verdict.writers["a"].first_lost) == 20
    assert str(verdict).splitlines()[0].endswith("18, 19, …), duplicated 0, reordered 0, altered 0")


def test_numbers_may_have_gaps_that_were_never_sent() -> None:
    verdict = judge([record("a", 2), record("a", 4), record("a", 3)], {"a": [2, 4, 6]})
    assert verdict.writers["a"].first_lost == (6,)
    assert verdict.alien == 1


def test_records_may_be_read_in_another_way() -> None:
    verdict = judge([b"a-0", b"a-1"], {"a": 2}, read=lambda value: (value[:1].decode(), int(value[2:])))
    verdict.assert_exact()


def test_a_compact_record_with_its_fields_in_another_order_is_read() -> None:
    judge([b'{"seq":0,"message":"\xe4\xb8\xad","writer":"a"}'], {"a": 1}).assert_exact()


def test_a_sealed_record_is_whole_also_with_fields_put_in_around_it() -> None:
    value = sealed("a", 0, "hello")
    around = b'{"host":"h",' + value[1:-1] + b',"app":"shop"}'
    assert judge([value, around], {"a": 1}, read_sealed).duplicated == 1


@pytest.mark.parametrize("spoil", [lambda value: value.replace(b"hello", b"hallo"), lambda value: value[:-5] + b'"}'])
def test_a_record_that_is_not_what_was_sealed_is_altered_and_does_not_count_as_arrived(spoil: Callable[[bytes], bytes]) -> None:
    verdict = judge([spoil(sealed("a", 0, "hello")), sealed("a", 1, "hello")], {"a": 2}, read_sealed)
    assert (verdict.altered, verdict.lost, verdict.alien) == (1, 1, 0)
    with pytest.raises(AssertionError, match="altered 1"):
        verdict.assert_no_harm()


def test_what_was_issued_and_not_acknowledged_may_have_arrived_or_not() -> None:
    verdict = judge(sent("a", 8), {"a": 5}, issued={"a": 10})
    assert (verdict.issued, verdict.sent, verdict.received, verdict.lost, verdict.alien) == (10, 5, 8, 0, 0)
    assert judge(sent("a", 11), {"a": 5}, issued={"a": 10}).alien == 1


def test_order_is_judged_within_each_partition() -> None:
    one = Judge({"a": 4})
    for number, partition in ((2, 0), (0, 1), (3, 0), (1, 1)):
        one.take(record("a", number), partition)
    assert one.verdict().reordered == 0


def test_a_million_records_are_judged_while_one_waits() -> None:
    values = sent("a", 100_000) * 10
    before = time.process_time()
    assert judge(values, {"a": 100_000}).duplicated == 900_000
    assert time.process_time() - before < 15, "it takes about one and a half"
