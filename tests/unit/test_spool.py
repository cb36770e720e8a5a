"""The spool of one app: what was appended is read again, whatever happened to the disk in between."""

from __future__ import annotations

import errno
import os
import random
import zlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forwarder.route import make_route
from forwarder.source import Source
from forwarder.spool import Segment, Shared, Spool, app_name, blocks, directory_name, list_segments
from forwarder.spool.repair import repair

SESSION = b"s" * 16
ROUTE = make_route("logs", None, app="shop", host="web-1")


class Woken:
    def __init__(self) -> None:
        self.count = 0

    def __call__(self, source: Source) -> None:
        self.count += 1


def open_spool(directory: Path, position: int = 0, *, segment_bytes: int = 2000, shared: Shared | None = None) -> Spool:
    return Spool(
        directory,
        "shop",
        position,
        routes=lambda app, route: ROUTE,
        wake=Woken(),
        shared=shared or Shared(),
        segment_bytes=segment_bytes,
    )


def open_spool_of(segment: Segment, directory: Path) -> Spool:
    """A spool of nothing but a copy of `segment`."""
    directory.mkdir()
    (directory / segment.path.name).write_bytes(segment.path.read_bytes())
    return open_spool(directory)


def fill(spool: Spool, numbers: range, *, session: bytes = blocks.NO_SESSION) -> None:
    for number in numbers:
        spool.append(b"record %d\n" % number, 1, 1.0, session=session, first=number)


def drain(spool: Spool, max_bytes: int = 1000) -> list[bytes]:
    records = []
    while (chunk := spool.read(max_bytes)) is not None:
        records += chunk.records
    return records


def numbers(records: list[bytes]) -> list[int]:
    return [int(record.split()[1]) for record in records]


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "shop"


def test_what_is_appended_is_read_in_order_over_many_segments(directory: Path) -> None:
    spool = open_spool(directory)
    fill(spool, range(200))
    assert len(list_segments(directory)) > 5
    assert numbers(drain(spool)) == list(range(200))
    assert spool.lag() == 0


def test_a_reader_that_keeps_up_and_one_that_lags_read_the_same(directory: Path) -> None:
    spool = open_spool(directory)
    kept_up = []
    for number in range(100):
        fill(spool, range(number, number + 1))
        kept_up += drain(spool)
    spool.seek(0)
    assert drain(spool) == kept_up


def test_chunks_follow_each_other_without_a_gap_and_a_seek_goes_back_to_any_of_them(directory: Path) -> None:
    spool = open_spool(directory)
    fill(spool, range(100))
    chunks = []
    while (chunk := spool.read(300)) is not None:
        chunks.append(chunk)
    for chunk in chunks:
        spool.seek(chunk.start)
        again = spool.read(300)
        assert again is not None
        assert again.records == chunk.records
        assert again.end == chunk.end


def test_a_reopened_spool_goes_on_at_the_saved_position(directory: Path) -> None:
    spool = open_spool(directory)
    fill(spool, range(50))
    chunk = spool.read(500)
    assert chunk is not None
    spool.close()
    again = open_spool(directory, chunk.end)
    fill(again, range(50, 60))
    assert numbers(drain(again)) == list(range(len(chunk.records), 60))


def test_committed_segments_go_and_the_rest_stays(directory: Path) -> None:
    shared = Shared()
    spool = open_spool(directory, shared=shared)
    fill(spool, range(200))
    chunks = []
    while (chunk := spool.read(300)) is not None:
        chunks.append(chunk)
    spool.commit(chunks[len(chunks) // 2].end)
    assert spool.bytes == shared.disk_bytes == sum(segment.size for segment in list_segments(directory))
    spool.seek(chunks[len(chunks) // 2].end)
    assert len(drain(spool)) == sum(len(chunk.records) for chunk in chunks[len(chunks) // 2 + 1 :])
    spool.commit(spool.end)
    assert spool.bytes == shared.disk_bytes == 0
    assert not list_segments(directory)


def test_addresses_go_on_when_everything_on_disk_is_gone(directory: Path) -> None:
    spool = open_spool(directory)
    fill(spool, range(200))
    drain(spool)
    spool.commit(spool.end)
    end = spool.end
    spool.close()
    again = open_spool(directory, end)
    fill(again, range(200, 210))
    assert numbers(drain(again)) == list(range(200, 210))
    assert again.end > end


def test_a_lost_position_means_everything_on_disk_again(directory: Path) -> None:
    spool = open_spool(directory)
    fill(spool, range(200))
    drain(spool)
    spool.commit(spool.end - 3000)
    spool.close()
    left = numbers(drain(open_spool(directory, 0)))
    assert left == list(range(left[0], 200))


def test_blocks_of_different_routes_are_never_in_one_chunk(directory: Path) -> None:
    routes = {b"": ROUTE, b"a": make_route("a", None, app="shop", host="h"), b"b": make_route("b", None, app="shop", host="h")}
    spool = Spool(directory, "shop", 0, routes=lambda app, route: routes[route], wake=Woken(), shared=Shared())
    for number in range(30):
        spool.append(b"record %d\n" % number, 1, 1.0, route=(b"", b"a", b"b")[number // 3 % 3])
    for _ in range(2):
        seen = []
        while (chunk := spool.read(10_000)) is not None:
            seen += [(chunk.route.topic, number) for number in numbers(chunk.records)]
        assert seen == [(("logs", "a", "b")[number // 3 % 3], number) for number in range(30)]
        spool.seek(0)


def test_sessions_are_known_after_a_restart_even_when_their_blocks_are_gone(directory: Path) -> None:
    spool = open_spool(directory)
    fill(spool, range(10), session=SESSION)
    fill(spool, range(1000, 1300))
    drain(spool)
    spool.commit(spool.end - 500)
    spool.close()
    assert open_spool(directory).sessions == {SESSION: 10}


def test_a_torn_tail_is_set_aside_and_what_is_before_it_is_read(directory: Path) -> None:
    spool = open_spool(directory, segment_bytes=100_000)
    fill(spool, range(20))
    spool.close()
    segment = list_segments(directory)[-1]
    os.truncate(segment.path, segment.size - 3)
    again = open_spool(directory, segment_bytes=100_000)
    fill(again, range(19, 22))
    assert numbers(drain(again)) == list(range(22))
    assert again.damaged_bytes == blocks.HEADER + len(b"record 19\n") - 3
    assert sum(path.stat().st_size for path in (directory / "quarantine").iterdir()) == again.damaged_bytes


def test_a_segment_cut_at_any_byte_gives_every_whole_block_and_never_fails(tmp_path: Path) -> None:
    spool = open_spool(tmp_path / "whole", segment_bytes=100_000)
    fill(spool, range(6))
    spool.close()
    data = list_segments(tmp_path / "whole")[0].path.read_bytes()
    ends = [part.end for part in blocks.scan(data) if isinstance(part, blocks.Block) and part.kind == blocks.RECORDS]
    for size in range(len(data) + 1):
        directory = tmp_path / str(size)
        directory.mkdir()
        (directory / f"{0:020d}.seg").write_bytes(data[:size])
        again = open_spool(directory, segment_bytes=100_000)
        whole = sum(end <= size for end in ends)
        assert sum(part.count for part in blocks.scan(data[:size]) if isinstance(part, blocks.Block)) == whole
        assert numbers(drain(again)) == list(range(whole))
        fill(again, range(whole, 8))
        assert numbers(drain(again)) == list(range(whole, 8))
        again.close()


def test_a_flipped_byte_anywhere_costs_one_block_and_check_and_repair_agree_with_the_reader(tmp_path: Path) -> None:
    spool = open_spool(tmp_path / "whole", segment_bytes=100_000)
    fill(spool, range(6))
    spool.close()
    data = list_segments(tmp_path / "whole")[0].path.read_bytes()
    generator = random.Random(1)
    for offset in range(len(data)):
        flipped = bytearray(data)
        flipped[offset] ^= 1 << generator.randrange(8)
        for name in ("read", "repaired"):
            directory = tmp_path / f"{name}-{offset}"
            directory.mkdir()
            (directory / f"{0:020d}.seg").write_bytes(flipped)
        read = open_spool(tmp_path / f"read-{offset}", segment_bytes=100_000)
        found = numbers(drain(read))
        assert len(found) >= 5
        parts = list(blocks.scan(bytes(flipped)))
        assert sum(part.count for part in parts if isinstance(part, blocks.Block)) == len(found)
        assert sum(part.end - part.start for part in parts if isinstance(part, blocks.Damage)) == read.damaged_bytes
        assert sum(path.stat().st_size for path in (tmp_path / f"read-{offset}" / "quarantine").iterdir()) == read.damaged_bytes
        assert read.damaged_bytes > 0
        read.close()
        assert repair(tmp_path / f"repaired-{offset}") == read.damaged_bytes
        mended = open_spool(tmp_path / f"repaired-{offset}", segment_bytes=100_000)
        assert numbers(drain(mended)) == found
        assert mended.damaged_bytes == 0
        mended.close()


def test_a_missing_segment_is_stepped_over_and_counted(directory: Path) -> None:
    spool = open_spool(directory)
    fill(spool, range(200))
    spool.close()
    segments = list_segments(directory)
    segments[2].path.unlink()
    again = open_spool(directory)
    found = numbers(drain(again))
    assert again.missing_bytes == segments[2].size
    assert found[0] == 0
    assert found[-1] == 199
    assert found == sorted(set(found))


def test_a_segment_that_goes_while_it_is_read_is_read_to_its_end_and_one_that_went_before_is_stepped_over(
    directory: Path,
) -> None:
    spool = open_spool(directory)
    fill(spool, range(200))
    spool.seek(0)  # nothing is kept in memory
    segments = list_segments(directory)
    chunk = spool.read(100)
    assert chunk is not None
    for segment in (segments[0], segments[3], segments[-1]):
        segment.path.unlink()
    found = numbers(chunk.records + drain(spool))
    assert found == sorted(set(found))
    assert found[: found.index(40)] == list(range(40))
    assert spool.missing_bytes == segments[3].size + segments[-1].size
    assert spool.lag() == 0
    fill(spool, range(200, 210))
    assert numbers(drain(spool)) == list(range(200, 210))
    spool.commit(spool.end)
    spool.close()
    again = open_spool(directory, spool.end)
    fill(again, range(210, 220))
    assert numbers(drain(again)) == list(range(210, 220))


def test_going_back_behind_a_segment_that_is_gone_is_no_end(directory: Path) -> None:
    spool = open_spool(directory)
    fill(spool, range(100))
    spool.seek(0)
    segments = list_segments(directory)
    for segment in segments[-2:]:
        segment.path.unlink()
    before = numbers(drain(spool))
    spool.seek(segments[-2].first + 10)
    assert drain(spool) == []
    spool.seek(0)
    assert numbers(drain(spool)) == before
    fill(spool, range(100, 110))
    assert numbers(drain(spool)) == list(range(100, 110))


@pytest.mark.parametrize("left", [0, 1, 500, 1999])
def test_a_segment_that_is_cut_while_it_is_read_ends_there(directory: Path, left: int) -> None:
    spool = open_spool(directory)
    fill(spool, range(100))
    spool.seek(0)
    segments = list_segments(directory)
    chunk = spool.read(1000)
    assert chunk is not None
    os.truncate(segments[0].path, min(left, segments[0].size))
    os.truncate(segments[-1].path, min(left, segments[-1].size))
    found = numbers(chunk.records + drain(spool))
    assert found == sorted(set(found))
    assert spool.lag() == 0
    assert spool.damaged_bytes >= 0
    fill(spool, range(100, 110))
    assert numbers(drain(spool))[-10:] == list(range(100, 110))


def test_an_empty_segment_does_not_take_a_new_one_of_its_name_with_it(directory: Path) -> None:
    spool = open_spool(directory)
    fill(spool, range(10))
    end = spool.end
    spool.close()
    for address in (end, end + 1000):
        (directory / f"{address:020d}.seg").touch()
    again = open_spool(directory)
    fill(again, range(10, 100))
    chunk = again.read(100_000)
    assert chunk is not None
    again.commit(end)
    again.close()
    assert numbers(drain(open_spool(directory, end)))[-1] == 99
    assert list_segments(directory)[0].first <= end


def test_a_repair_that_was_killed_costs_nothing_that_comes_later(directory: Path) -> None:
    spool = open_spool(directory, segment_bytes=100_000)
    fill(spool, range(6))
    spool.close()
    (segment,) = list_segments(directory)
    data = bytearray(segment.path.read_bytes())
    blocks_of = [part for part in blocks.scan(bytes(data)) if isinstance(part, blocks.Block)]
    data[blocks_of[3].start] ^= 1
    data[-2] ^= 1
    segment.path.write_bytes(data)
    # The last piece is written first: from behind the damage in the middle to that at the end.
    piece = bytes(data[blocks_of[4].start : blocks_of[6].start])
    (directory / f"{blocks_of[4].start:020d}.seg").write_bytes(piece)
    again = open_spool(directory, segment_bytes=100_000)
    fill(again, range(10, 20))
    assert numbers(drain(again)) == [0, 1, 3, 4, *range(10, 20)]
    again.close()
    assert repair(directory) > 0
    mended = open_spool(directory, segment_bytes=100_000)
    assert numbers(drain(mended)) == [0, 1, 3, 4, *range(10, 20)]


def test_segments_that_overlap_are_read_once_and_what_comes_later_is_not_lost(directory: Path) -> None:
    spool = open_spool(directory)
    fill(spool, range(100))
    spool.close()
    segments = list_segments(directory)
    third = segments[2]
    (directory / f"{third.first + third.size // 2:020d}.seg").write_bytes(third.path.read_bytes()[third.size // 2 :])
    again = open_spool(directory)
    fill(again, range(100, 120))
    assert numbers(drain(again)) == list(range(120))


@pytest.mark.parametrize("digit", range(20))
def test_a_segment_under_a_wrong_name_hides_no_more_than_what_it_lies_over(directory: Path, digit: int) -> None:
    spool = open_spool(directory)
    fill(spool, range(100))
    spool.close()
    segments = list_segments(directory)
    moved = segments[1]
    inside = numbers(drain(open_spool_of(moved, directory.parent / "alone")))
    name = moved.path.stem
    moved.path.rename(directory / f"{name[:digit]}{(int(name[digit]) + 1) % 10}{name[digit + 1 :]}.seg")
    again = open_spool(directory)
    fill(again, range(100, 120))
    found = numbers(drain(again))
    assert found[-20:] == list(range(100, 120))
    hidden = set(range(100)) - set(found) - set(inside)
    assert len(hidden) <= len(inside), "no more than what it lies over"
    assert len(found) == len(set(found))


def test_what_is_no_segment_is_left_alone_and_told(directory: Path, caplog: pytest.LogCaptureFixture) -> None:
    spool = open_spool(directory)
    fill(spool, range(50))
    end = spool.end
    spool.close()
    precious = directory.parent / "precious"
    precious.write_text("data")
    (directory / f"{end + 5:020d}.seg").symlink_to(precious)
    (directory / f"{end + 6:020d}.seg").symlink_to("nowhere")
    (directory / f"{end + 7:020d}.seg").mkdir()
    (directory / "00000000000000000001.seg.new").write_text("left by a repair")
    (directory / "garbage.seg").write_bytes(os.urandom(100))
    (directory / f"{end:020d}.seg").touch()
    (directory / f"{end + 100_000:020d}.seg").touch()
    (directory / f"{'9' * 20}.seg").write_text("no address that a position could have")
    again = open_spool(directory)
    fill(again, range(50, 100))
    assert numbers(drain(again)) == list(range(100))
    again.commit(again.end)
    again.close()
    assert precious.read_text() == "data"
    assert sum("is no segment, left as it is" in record.message for record in caplog.records) == 5


def test_a_name_that_is_taken_by_something_else_refuses_records_until_it_is_free(directory: Path) -> None:
    spool = open_spool(directory)
    fill(spool, range(3))
    spool.close()
    again = open_spool(directory, segment_bytes=1)
    blocking = directory / f"{again.end:020d}.seg"
    blocking.mkdir()
    with pytest.raises(OSError):
        fill(again, range(3, 4))
    blocking.rmdir()
    fill(again, range(3, 5))
    assert numbers(drain(again)) == list(range(5))


def test_a_block_of_an_unknown_version_is_refused_with_what_to_do(directory: Path) -> None:
    spool = open_spool(directory)
    fill(spool, range(3))
    spool.close()
    path = list_segments(directory)[0].path
    data = bytearray(path.read_bytes())
    data[4] = 9
    fields = blocks._FIELDS.size
    end = blocks.size_at(bytes(data), 0)
    data[fields : fields + 4] = blocks._CRC.pack(zlib.crc32(data[fields + 4 : end], zlib.crc32(data[:fields])))
    path.write_bytes(data)
    with pytest.raises(blocks.UnknownVersion, match=r"format version 9, this release reads version 1: start the release"):
        open_spool(directory)


def test_a_full_disk_leaves_the_log_as_it_was_and_the_next_try_succeeds(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spool = open_spool(directory, segment_bytes=100_000)
    fill(spool, range(3))
    real = os.writev

    def half(fd: int, parts: list[bytes]) -> int:
        return real(fd, [b"".join(parts)[:10]])

    monkeypatch.setattr(os, "writev", half)
    with pytest.raises(OSError) as caught:
        fill(spool, range(3, 4))
    assert caught.value.errno == errno.ENOSPC
    monkeypatch.setattr(os, "writev", real)
    fill(spool, range(3, 5))
    assert numbers(drain(spool)) == list(range(5))
    spool.close()
    assert numbers(drain(open_spool(directory))) == list(range(5))


def test_dropping_the_oldest_counts_what_was_not_read(directory: Path) -> None:
    spool = open_spool(directory)
    fill(spool, range(100))
    chunk = spool.read(200)
    assert chunk is not None
    dropped = spool.drop_oldest() + spool.drop_oldest()
    left = numbers(drain(spool))
    assert len(chunk.records) + dropped + len(left) == 100
    assert left == list(range(100 - len(left), 100))


@given(st.text(max_size=40))
def test_no_app_name_leaves_the_spool_directory_or_meets_another(app: str) -> None:
    name = directory_name(app)
    assert "/" not in name
    assert not name.startswith(".")
    assert app_name(name) == app


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("append"), st.integers(1, 5)),
            st.tuples(st.just("read"), st.integers(1, 800)),
            st.tuples(st.just("commit"), st.integers(0, 3)),
            st.just(("reopen", 0)),
            st.just(("seek", 0)),
        ),
        max_size=60,
    )
)
def test_any_run_of_operations_gives_every_record_after_the_commit_in_order(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, int]]
) -> None:
    directory = tmp_path_factory.mktemp("spool")
    spool = open_spool(directory)
    issued = 0
    flying: list[tuple[int, int, int]] = []
    committed, position = 0, 0
    for what, amount in steps:
        if what == "append":
            fill(spool, range(issued, issued + amount))
            issued += amount
        elif what == "read":
            chunk = spool.read(amount)
            if chunk is not None:
                expected = flying[-1][1] if flying else committed
                assert numbers(chunk.records) == list(range(expected, expected + len(chunk.records)))
                flying.append((chunk.start, expected + len(chunk.records), chunk.end))
        elif what == "commit":
            for _, upto, end in flying[:amount]:
                committed, position = upto, end
            del flying[:amount]
            spool.commit(position)
        else:
            if what == "reopen":
                spool.close()
                spool = open_spool(directory, position)
            else:
                spool.seek(position)
            flying.clear()
    spool.seek(position)
    assert numbers(drain(spool)) == list(range(committed, issued))
    spool.close()


def test_what_is_written_while_the_disk_syncs_is_synced_the_next_time(directory: Path) -> None:
    spool = open_spool(directory)
    fill(spool, range(1))
    before = dict(spool.unsynced)
    spool.sync(before)
    fill(spool, range(1, 2))
    spool.synced(before)
    assert spool.unsynced
    spool.sync(spool.unsynced)
    spool.synced(dict(spool.unsynced))
    assert not spool.unsynced
