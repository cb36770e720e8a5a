"""The file of records that Kafka refused for good: one JSON object a line, whole lines only."""

from __future__ import annotations

import base64
import fcntl
import json
import os
import resource
import signal
from pathlib import Path
from typing import Any

import msgspec
import pytest

from forwarder.dead import DeadLetter, InUse, _line, advance, files, letters, take, write

NOON = 1_767_268_800.5


def lines(directory: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (directory / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]


def letter(value: bytes, key: bytes | None = None, partition: int = 2) -> DeadLetter:
    return DeadLetter("logs", partition, "Broker: Message size too large", key, value)


def test_a_line_says_when_where_why_and_what(tmp_path: Path) -> None:
    write(tmp_path / "dead", "shop", [letter('{"m":"grüße\n"}'.encode(), b"key")], NOON)
    assert lines(tmp_path / "dead", "shop") == [
        {
            "time": "2026-01-01T12:00:00.500Z",
            "topic": "logs",
            "partition": 2,
            "reason": "Broker: Message size too large",
            "key": "key",
            "value": '{"m":"grüße\n"}',
        }
    ]


def test_bytes_that_are_no_text_stand_as_base64(tmp_path: Path) -> None:
    write(tmp_path, "shop", [letter(b"\xff\x00value", b"\xfekey")], NOON)
    (line,) = lines(tmp_path, "shop")
    assert base64.b64decode(line["value_base64"]) == b"\xff\x00value"
    assert base64.b64decode(line["key_base64"]) == b"\xfekey"
    assert "value" not in line
    assert "key" not in line


def test_a_record_without_a_key_has_none(tmp_path: Path) -> None:
    write(tmp_path, "shop", [letter(b"")], NOON)
    (line,) = lines(tmp_path, "shop")
    assert (line["key"], line["value"]) == (None, "")


def test_later_letters_stand_behind_earlier_ones_and_each_app_has_its_own_file(tmp_path: Path) -> None:
    write(tmp_path, "shop", [letter(b"1"), letter(b"2")], NOON)
    write(tmp_path, "other", [letter(b"x")], NOON)
    write(tmp_path, "shop", [letter(b"3")], NOON)
    assert [line["value"] for line in lines(tmp_path, "shop")] == ["1", "2", "3"]
    assert [line["value"] for line in lines(tmp_path, "other")] == ["x"]


@pytest.mark.parametrize("app", ["../../etc/passwd", "a/b", ".hidden", "..", "日志", "a b"])
def test_no_app_s_name_leaves_the_directory(tmp_path: Path, app: str) -> None:
    directory = tmp_path / "dead"
    write(directory, app, [letter(b"x")], NOON)
    (found,) = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert found.parent == directory


def test_only_the_agent_may_read_them(tmp_path: Path) -> None:
    write(tmp_path / "dead", "shop", [letter(b"x")], NOON)
    assert (tmp_path / "dead").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "dead" / "shop.jsonl").stat().st_mode & 0o777 == 0o600


def test_the_name_of_a_new_file_is_synced_and_so_is_that_of_its_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    real = os.fsync

    def fsync(fd: int) -> None:
        synced.append(str(Path(f"/proc/self/fd/{fd}").readlink()))
        real(fd)

    monkeypatch.setattr(os, "fsync", fsync)
    directory = tmp_path / "dead"
    write(directory, "shop", [letter(b"1")], NOON)
    assert synced == [str(directory / "shop.jsonl"), str(directory), str(tmp_path)]
    synced.clear()
    write(directory, "shop", [letter(b"2")], NOON)
    assert synced == [str(directory / "shop.jsonl")]


def test_a_disk_that_takes_only_a_part_leaves_no_torn_line(tmp_path: Path) -> None:
    write(tmp_path, "shop", [letter(b"before")], NOON)
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        try:
            write(tmp_path, "shop", [letter(b"x" * 5000)], NOON)
        except OSError:
            os._exit(0)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0, "the shortage of room is an OSError"
    assert [line["value"] for line in lines(tmp_path, "shop")] == ["before"]
    write(tmp_path, "shop", [letter(b"after")], NOON)
    assert [line["value"] for line in lines(tmp_path, "shop")] == ["before", "after"]


@pytest.mark.parametrize("size", [1, 65_535, 65_536, 65_537, 200_000])
def test_a_line_that_a_crash_cut_off_goes(tmp_path: Path, size: int) -> None:
    write(tmp_path, "shop", [letter(b"before")], NOON)
    file = tmp_path / "shop.jsonl"
    file.write_bytes(file.read_bytes() + b"x" * size)
    write(tmp_path, "shop", [letter(b"after")], NOON)
    assert [line["value"] for line in lines(tmp_path, "shop")] == ["before", "after"]


def test_a_file_with_nothing_but_a_line_cut_off_begins_anew(tmp_path: Path) -> None:
    (tmp_path / "shop.jsonl").write_bytes(b"{" * 100_000)
    write(tmp_path, "shop", [letter(b"after")], NOON)
    assert [line["value"] for line in lines(tmp_path, "shop")] == ["after"]


def test_what_is_read_is_what_was_written(tmp_path: Path) -> None:
    written = [letter(b"1", b"key"), letter(b"\xff", b"\xfe", -1), letter("grüße\n".encode()), letter(b"", b"")]
    write(tmp_path, "a/b", written, NOON)
    (file,) = files(tmp_path)
    found = [each for _, _, each in letters(file)]
    assert file.app == "a/b"
    assert found == [msgspec.structs.replace(each, time="2026-01-01T12:00:00.500Z") for each in written]


def test_each_app_is_given_half_of_what_the_others_leave(tmp_path: Path) -> None:
    size = len(_line(letter(b"x"), NOON))
    kept = [write(tmp_path, app, [letter(b"x")] * 100, NOON, max_bytes=100 * size) for app in ("a", "b", "c", "a")]
    assert kept == [50, 25, 12, 0]


def test_a_file_that_somebody_takes_gets_no_letter_and_the_next_one_does(tmp_path: Path) -> None:
    write(tmp_path, "shop", [letter(b"1")], NOON)
    (file,) = files(tmp_path)
    with file.path.open("rb") as taking:
        fcntl.flock(taking, fcntl.LOCK_EX)
        with pytest.raises(InUse):
            write(tmp_path, "shop", [letter(b"2")], NOON)
    taken = take(file)
    write(tmp_path, "shop", [letter(b"3")], NOON)
    assert [[each.value for _, _, each in letters(one) if each] for one in files(tmp_path)] == [[b"1"], [b"3"]]
    first = next(letters(taken))[0]
    assert advance(taken, first).start == first
    assert [file.taken for file in files(tmp_path)] == [False]


def test_a_taken_file_begins_where_the_last_replay_came_to(tmp_path: Path) -> None:
    write(tmp_path, "shop", [letter(b"1"), letter(b"2"), letter(b"3")], NOON)
    (file,) = files(tmp_path)
    taken = take(file)
    advance(taken, next(letters(taken))[0])
    (again,) = files(tmp_path)
    assert [each.value for _, _, each in letters(again) if each] == [b"2", b"3"]
