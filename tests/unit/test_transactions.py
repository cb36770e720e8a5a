"""What becomes of a prepared transaction is decided by the number that Kafka has; whose records may be to blame, by reports."""

from __future__ import annotations

import sqlite3
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Any, cast

import pytest
from confluent_kafka import KafkaError, Message

from forwarder.exactly_once import suspects
from forwarder.flight import Flight, Refused
from forwarder.positions import Mark, Marks, Positions, Saved
from forwarder.transactions import NUMBER_LOST, NUMBER_OLD, POSITIONS_LOST, POSITIONS_OLD, outcome

OURS, NEXT = Mark(7, "us"), Mark(8, "us")


@pytest.mark.parametrize(
    ("marks", "found", "expected"),
    [
        (Marks(), None, (False, "")),
        (Marks(None, Mark(1, "us")), None, (False, "")),
        (Marks(None, Mark(1, "us")), Mark(1, "us"), (True, "")),
        (Marks(OURS), OURS, (False, "")),
        (Marks(OURS, NEXT), OURS, (False, "")),
        (Marks(OURS, NEXT), NEXT, (True, "")),
        (Marks(OURS, NEXT), Mark(8, "another"), (False, POSITIONS_OLD)),
        (Marks(OURS, NEXT), Mark(9, "us"), (False, POSITIONS_OLD)),
        (Marks(OURS), Mark(7, "another"), (False, POSITIONS_OLD)),
        (Marks(OURS, NEXT), Mark(6, "us"), (False, NUMBER_OLD)),
        (Marks(OURS), None, (False, NUMBER_LOST)),
        (Marks(OURS, NEXT), None, (False, NUMBER_LOST)),
        (Marks(), OURS, (False, POSITIONS_LOST)),
        (Marks(None, Mark(1, "us")), OURS, (False, POSITIONS_OLD)),
    ],
)
def test_only_the_very_number_that_was_prepared_has_its_positions_adopted(
    marks: Marks, found: Mark | None, expected: tuple[bool, str]
) -> None:
    assert outcome(marks, found) == expected


def rows(positions: Positions) -> dict[str, int]:
    return {row.name: row.position for row in positions.load()}


def test_what_is_prepared_stands_beside_the_positions_until_it_is_adopted(tmp_path: Path) -> None:
    path = tmp_path / "positions.db"
    with closing(Positions(path, durable=True)) as positions:
        positions.save([Saved("a", 1), Saved("b", 1), Saved("gone", 1)])
        positions.prepare(Marks(OURS, NEXT), [Saved("a", 5, "there"), Saved("c", 3)], ["gone"], [Saved("b", 2)])
    with closing(Positions(path)) as positions:
        assert rows(positions) == {"a": 1, "b": 2}
        assert positions.marks() == Marks(OURS, NEXT)
        assert positions.resolve(NEXT, True) == [Saved("a", 5, "there"), Saved("c", 3)]
        assert rows(positions) == {"a": 5, "b": 2, "c": 3}
        assert positions.marks() == Marks(NEXT)
        assert positions.resolve(NEXT, True) == []


def test_what_is_prepared_and_dropped_leaves_the_positions_as_they_were(tmp_path: Path) -> None:
    with closing(Positions(tmp_path / "positions.db")) as positions:
        positions.prepare(Marks(OURS, NEXT), [Saved("a", 5)], [], [Saved("a", 1)])
        assert positions.resolve(OURS, False) == []
        assert rows(positions) == {"a": 1}
        assert positions.marks() == Marks(OURS)


def test_what_is_prepared_replaces_what_was_prepared_before(tmp_path: Path) -> None:
    with closing(Positions(tmp_path / "positions.db")) as positions:
        positions.prepare(Marks(None, OURS), [Saved("a", 5)], [], [])
        positions.prepare(Marks(OURS, NEXT), [Saved("b", 6)], [], [Saved("a", 5)])
        assert positions.resolve(NEXT, True) == [Saved("b", 6)]
        assert rows(positions) == {"a": 5, "b": 6}


def test_a_source_that_goes_is_not_adopted_later(tmp_path: Path) -> None:
    with closing(Positions(tmp_path / "positions.db")) as positions:
        positions.prepare(Marks(None, OURS), [Saved("a", 5)], [], [])
        positions.save([], ["a"])
        assert positions.resolve(OURS, True) == []
        assert not rows(positions)


def test_positions_saved_meanwhile_leave_what_is_prepared_alone_unless_it_is_settled(tmp_path: Path) -> None:
    with closing(Positions(tmp_path / "positions.db")) as positions:
        positions.prepare(Marks(OURS, NEXT), [Saved("a", 5)], [], [])
        positions.save([Saved("b", 1)])
        assert positions.marks() == Marks(OURS, NEXT)
        positions.save([Saved("a", 5)], [], NEXT)
        assert positions.marks() == Marks(NEXT)
        assert positions.resolve(NEXT, True) == []


def test_without_transactions_positions_go_on_and_the_marks_stay(tmp_path: Path) -> None:
    with closing(Positions(tmp_path / "positions.db")) as positions:
        positions.prepare(Marks(OURS, NEXT), [Saved("a", 5)], [], [])
        positions.drop_prepared()
        positions.save([Saved("a", 9)])
        assert positions.marks() == Marks(OURS, NEXT)
        assert positions.resolve(NEXT, True) == []
        assert rows(positions) == {"a": 9}


def test_a_power_cut_can_take_no_mark_back(tmp_path: Path) -> None:
    for durable, level in ((True, 2), (False, 1)):
        with closing(Positions(tmp_path / f"{durable}.db", durable=durable)) as positions:
            assert positions._connection.execute("PRAGMA synchronous").fetchone() == (level,)


# Whom to suspect

LARGE, AWAY = KafkaError(KafkaError.MSG_SIZE_TOO_LARGE), KafkaError(KafkaError._TRANSPORT)
DENIED = KafkaError(KafkaError.TOPIC_AUTHORIZATION_FAILED)
FAILED_BEFORE = KafkaError(KafkaError._STATE)
PURGED = KafkaError(KafkaError._PURGE_QUEUE)


def flight(topic: str, *heard: KafkaError | None) -> Flight:
    made = object.__new__(Flight)
    made.topics = Counter({topic: 1})
    made.heard = {error: cast(Any, Message)(topic=topic) for error in heard}
    made.refused = []
    return made


def test_when_reports_blame_a_batch_its_chunk_and_the_next_of_the_topic_are_suspected() -> None:
    flights = [flight("t", None), flight("t", LARGE), flight("t", PURGED), flight("t", PURGED), flight("u", None)]
    assert suspects(flights, LARGE) == flights[1:3]


def test_a_chunk_of_another_topic_is_not_suspected() -> None:
    flights = [flight("t", LARGE), flight("u", PURGED)]
    assert suspects(flights, LARGE) == flights[:1]


def test_when_no_report_blames_anybody_a_refusal_makes_all_suspect_and_any_other_error_none() -> None:
    flights = [flight("t", PURGED), flight("u", PURGED)]
    assert suspects(flights, LARGE) == suspects(flights, DENIED) == suspects(flights, FAILED_BEFORE) == flights
    assert suspects(flights, AWAY) == []
    assert suspects(flights, None) == []


def test_what_librdkafka_did_not_even_queue_is_suspected() -> None:
    flights = [flight("t"), flight("u")]
    flights[1].refused = [Refused(LARGE, "u", -1, None, b"")]
    assert suspects(flights, LARGE) == flights[1:]


def test_with_nothing_prepared_nothing_is_written_so_that_a_full_disk_does_not_prevent_a_start(tmp_path: Path) -> None:
    path = tmp_path / "positions.db"
    with closing(Positions(path)) as positions, closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")  # nobody else may write
        positions.drop_prepared()
