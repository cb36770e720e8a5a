"""The decoder of pickled records against pickle itself, and against what pickle must never be given."""

from __future__ import annotations

import logging
import logging.handlers
import math
import pickle
import pickletools
import struct
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forwarder import pickles
from forwarder.pickles import Decoder, MalformedPickle, PickleError, UnsafePickle, loads

PROTOCOLS = range(6)
OPCODES = [op.code.encode("latin-1") for op in pickletools.opcodes]


def same(left: object, right: object) -> bool:
    """Equal in value and in type, all the way down and in the same order; NaN is NaN."""
    if type(left) is not type(right):
        return False
    if isinstance(left, dict) and isinstance(right, dict):
        return same(list(left.items()), list(right.items()))
    if isinstance(left, list | tuple) and isinstance(right, list | tuple):
        return len(left) == len(right) and all(map(same, left, right))
    if isinstance(left, float) and isinstance(right, float):
        return struct.pack("d", left) == struct.pack("d", right) or (math.isnan(left) and math.isnan(right))
    return left == right


def outcome(decode: Callable[[bytes], dict[str, Any]], data: bytes) -> object:
    try:
        return decode(data)
    except PickleError as error:
        return type(error), str(error)


# What SocketHandler sends


def frame(message: str, *args: object, level: int = 20, **extra: object) -> bytes:
    """The payload that the standard library's handler would send."""
    record = logging.getLogger("shop").makeRecord(
        "shop.pay", level, "/srv/shop/pay.py", 100 + level, message, args, None, "pay", extra or None
    )
    return logging.handlers.SocketHandler("unused", None).makePickle(record)[4:]


def frame_with_exception() -> bytes:
    try:
        raise ValueError("né")
    except ValueError:
        record = logging.getLogger("shop").makeRecord("shop", 40, "p.py", 1, "bad", (), sys.exc_info(), "f", None, "a stack")
    return logging.handlers.SocketHandler("unused", None).makePickle(record)[4:]


def test_what_the_standard_librarys_handler_sends_is_decoded() -> None:
    for data in (
        frame("plain"),
        frame("order %s of %d", "ü€😀", 7),
        frame("long " + "x" * 100_000),
        frame("extra", user="anna", count=2**40, ratio=0.1, ok=True, none=None, raw=b"\xff\0", tags=["a", ("b", {"c": -1})]),
        frame("the same object twice", one="text", two="text", raw=b"", more=[b"a", b"a", b""]),
        frame_with_exception(),
    ):
        assert same(loads(data), pickle.loads(data))
        assert same(Decoder().loads(data), pickle.loads(data))


def test_a_memoryview_is_as_good_as_bytes() -> None:
    data = frame("x")
    assert loads(memoryview(data)) == Decoder().loads(memoryview(data)) == pickle.loads(data)


def test_records_of_one_app_are_decoded_by_their_layout() -> None:
    """Not only rightly but without the plain decoder, after the first of each kind."""
    decoder = Decoder()

    def app(number: int) -> bytes:
        if number % 3:
            return frame(f"request {number}", user=f"u{number}", order=number**4, ok=number % 2 == 0, took=number / 7)
        return frame(f"{number} done" * number, level=10 * (1 + number % 5))

    for number in range(4):
        decoder.loads(app(number))
    plain, pickles.loads = pickles.loads, _must_not_be_called
    try:
        found = [decoder.loads(app(number)) for number in range(4, 400)]
    finally:
        pickles.loads = plain
    created = [record.pop("created") for record in found]
    assert created == sorted(created)
    for number, record in enumerate(found, 4):
        wanted = pickle.loads(app(number))
        for changing in ("msecs", "relativeCreated"):
            wanted[changing] = record[changing]
        del wanted["created"]
        assert same(record, wanted)


def _must_not_be_called(data: bytes | memoryview) -> dict[str, Any]:
    raise AssertionError(f"the plain decoder was asked for {data!r}")


def test_an_app_that_logs_from_many_places_and_threads_is_decoded_rightly() -> None:
    decoder = Decoder()
    names = ["a", "bb", "MainThread", "worker-\u00fc", "x" * 300]

    def log(thread: int) -> None:
        for number in range(300):
            data = frame(
                "m" * (number % 5), level=number % 60, **{f"field{number % 7}": [None, True, "s", 1.5, number][number % 5]}
            )
            assert same(decoder.loads(data), pickle.loads(data)), (thread, data)

    for thread, name in enumerate(names):
        running = threading.Thread(target=log, args=(thread,), name=name)
        running.start()
        running.join()


# Any record, any protocol

TEXT = (
    st.text(max_size=12) | st.text(st.characters(), max_size=5) | st.sampled_from(["", "a", "x" * 255, "y" * 256, "name\n\\\0"])
)
SURROGATES = st.text(st.characters(min_codepoint=0xD7F0, max_codepoint=0xE010), max_size=3)
NUMBERS = (
    st.integers(-3, 300)
    | st.integers()
    | st.sampled_from(
        [0, 255, 256, 65535, 65536, -1, 2**31 - 1, 2**31, -(2**31), -(2**31) - 1, 2**63, -(2**63), 2**2040, 7**2900]
    )
)
SCALARS = st.none() | st.booleans() | NUMBERS | st.floats() | TEXT | SURROGATES | st.binary(max_size=8)
KEYS = TEXT | NUMBERS | st.binary(max_size=4) | st.none() | st.booleans() | st.floats() | st.tuples(TEXT, NUMBERS)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.lists(inner, max_size=5).map(tuple) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=12,
)
NAMES = st.sampled_from(["name", "msg", "levelno", "lineno", "exc_text", "created", "thread", "process", "user", "ok"]) | TEXT
RECORDS = st.dictionaries(NAMES, SCALARS, max_size=12) | st.dictionaries(NAMES, VALUES, max_size=6)


@settings(max_examples=300)
@given(RECORDS, st.sampled_from(PROTOCOLS))
def test_every_record_in_every_protocol_comes_out_as_pickle_would_give_it(record: dict[str, Any], protocol: int) -> None:
    data = pickle.dumps(record, protocol)
    assert same(loads(data), pickle.loads(data))
    assert same(loads(pickletools.optimize(data)), record)


@settings(max_examples=300)
@given(st.lists(st.tuples(RECORDS, st.sampled_from([1, 1, 1, 2, 3, 4])), max_size=8), st.lists(st.integers(0, 7), max_size=30))
def test_a_decoder_gives_the_same_for_any_records_in_any_order(kinds: list[tuple[dict[str, Any], int]], order: list[int]) -> None:
    decoder = Decoder()
    for index in order:
        if index < len(kinds):
            data = pickle.dumps(*kinds[index])
            assert same(decoder.loads(data), pickle.loads(data))


@st.composite
def one_app(draw: st.DrawFn) -> list[bytes]:
    """Records with the same keys, each value of one kind or of any."""
    names = draw(st.lists(NAMES, min_size=1, max_size=10, unique=True))
    kinds = [draw(st.sampled_from([TEXT, NUMBERS, NUMBERS | st.booleans(), st.floats(), SURROGATES, SCALARS])) for _ in names]
    count = draw(st.integers(2, 10))
    protocol = draw(st.sampled_from([1, 2, 3]))
    return [pickle.dumps({n: draw(k) for n, k in zip(names, kinds, strict=True)}, protocol) for _ in range(count)]


@settings(max_examples=300)
@given(one_app())
def test_a_decoder_gives_the_same_for_the_records_of_one_app(stream: list[bytes]) -> None:
    decoder = Decoder()
    for data in stream * 2:
        assert same(decoder.loads(data), pickle.loads(data))


@st.composite
def damaged(draw: st.DrawFn) -> tuple[list[bytes], list[bytes]]:
    """Records of an app, and what becomes of them when somebody tampers with them."""
    stream = draw(
        one_app() | st.just([frame("one", a="a", b=1), frame("two", a="b", b=300), frame("three", level=40, a="a", b=2)])
    )
    spoilt = []
    for data in stream:
        changed = bytearray(data)
        for _ in range(draw(st.integers(1, 3))):
            start = draw(st.integers(0, len(changed)))
            end = min(len(changed), start + draw(st.integers(0, 3)))
            piece = draw(st.binary(max_size=3) | st.sampled_from(OPCODES))
            if draw(st.booleans()):
                other = draw(st.sampled_from(stream))
                cut = draw(st.integers(0, len(other)))
                piece = other[cut : cut + draw(st.integers(0, 40))]
            changed[start:end] = piece
        spoilt.append(bytes(changed))
    return stream, spoilt


@settings(max_examples=500)
@given(damaged())
def test_tampered_records_fare_the_same_with_and_without_a_layout(streams: tuple[list[bytes], list[bytes]]) -> None:
    decoder = Decoder()
    good, spoilt = streams
    for data in (*good, *spoilt, *good, *spoilt):
        plain, learned = outcome(loads, data), outcome(decoder.loads, data)
        assert same(plain, learned), (plain, learned)


@settings(max_examples=500)
@given(damaged())
def test_what_is_accepted_is_what_pickle_would_have_given(streams: tuple[list[bytes], list[bytes]]) -> None:
    for data in streams[1]:
        found = outcome(loads, data)
        if isinstance(found, dict) and pickle_would_import_nothing(data):
            assert same(found, pickle.loads(data))


def pickle_would_import_nothing(data: bytes) -> bool:
    return not any(op.name in ("GLOBAL", "INST", "STACK_GLOBAL", "EXT1", "EXT2", "EXT4") for op, _, _ in pickletools.genops(data))


@given(st.binary(max_size=60) | st.lists(st.sampled_from(OPCODES)).map(b"".join))
def test_no_bytes_raise_anything_but_a_pickle_error(data: bytes) -> None:
    for decode in (loads, Decoder().loads):
        assert isinstance(outcome(decode, data), dict | tuple)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_record_cut_anywhere_is_malformed(protocol: int) -> None:
    record = {"msg": "text", "n": 1, "m": 70000, "l": 2**80, "f": 1.5, "d": {"k": [True, None, ("x",)]}, "t": ()}
    data = pickle.dumps(record, protocol)
    assert loads(data) == record
    for length in range(len(data)):
        with pytest.raises(MalformedPickle):
            loads(data[:length])
    with pytest.raises(MalformedPickle, match="bytes follow the end"):
        loads(data + b".")


# What is refused

INT = b"K\x01"
A = b"X\x01\x00\x00\x00a"


class Exploit:
    def __reduce__(self) -> tuple[Any, ...]:
        return (print, ("imported and called",))


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize(
    "value", [Exploit(), {1, 2}, frozenset((1,)), bytearray(b"x"), 1j, len, logging.Logger, Exception("x"), range(3)]
)
def test_whatever_needs_an_import_is_unsafe(value: object, protocol: int, capsys: pytest.CaptureFixture[str]) -> None:
    for data in (pickle.dumps({"msg": value}, protocol), pickle.dumps({"msg": [value]}, protocol)):
        with pytest.raises(UnsafePickle, match=r"at offset \d+ is not what a log record needs"):
            loads(data)
        with pytest.raises(UnsafePickle):
            Decoder().loads(data)
    assert capsys.readouterr().out == ""


def test_the_message_names_what_it_refuses_and_where() -> None:
    with pytest.raises(UnsafePickle, match=r"^GLOBAL os\.system at offset 9 is not what a log record needs$"):
        loads(b"}X\x03\0\0\0abccos\nsystem\nX\x02\0\0\0id\x85Rs.")
    with pytest.raises(UnsafePickle, match=r"^INST os\.system at "):
        loads(b"}(" + A + b"ios\nsystem\ns.")
    with pytest.raises(MalformedPickle, match=r"^0xff at offset 1 is no opcode$"):
        loads(b"}\xff")


def test_every_opcode_is_either_understood_or_refused_by_its_own_name() -> None:
    names = {op.code: op.name for op in pickletools.opcodes}
    for code in range(256):
        name = names.get(chr(code))
        found = outcome(loads, bytes([code]) + b"\n" * 20)
        assert isinstance(found, tuple)
        kind, text = found
        if code in pickles._REFUSED:
            assert name == pickles._REFUSED[code]
            assert kind is (MalformedPickle if name == "REDUCE" else UnsafePickle), text
        elif name is None:
            assert text == f"0x{code:02x} at offset 0 is no opcode"
        else:
            assert kind is MalformedPickle
            assert "offset 0 is no opcode" not in text


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        # the two functions that are recognised, used for anything else
        (b"}" + A + b"c_codecs\nencode\ns.", UnsafePickle),
        (b"}" + A + b"c__builtin__\nbytes\ns.", UnsafePickle),
        (b"}" + A + b"c__builtin__\nbytes\nK\x7f\x85Rs.", UnsafePickle),
        (b"}" + A + b"c_codecs\nencode\n" + A + b"X\x03\0\0\0rot\x86Rs.", UnsafePickle),
        (b"}" + A + b"c_codecs\nencode\nC\x01aX\x06\0\0\0latin1\x86Rs.", UnsafePickle),
        (b"}" + A + b"c_codecs\nencode\n" + A + b"\x85Rs.", UnsafePickle),
        (b"}" + A + b"c_codecs\nencodeX\n" + A + b"\x85Rs.", UnsafePickle),
        (b"}" + A + b"c_codecs\nencode\nX\x03\0\0\0\xe2\x82\xacX\x06\0\0\0latin1\x86Rs.", MalformedPickle),
        (b"}c_codecs\nencode\n" + INT + b"s.", MalformedPickle),
        (b"c_codecs\nencode\n.", MalformedPickle),
        (b"}" + A + b"]c_codecs\nencode\nas.", UnsafePickle),
        (b"R.", MalformedPickle),
        (b"}" + A + INT + b"R.", UnsafePickle),
        (b"}" + A + b"Pid\ns.", UnsafePickle),
        (b"}" + A + A + b"Qs.", UnsafePickle),
        (b"}" + A + b"\x82\x01s.", UnsafePickle),
        (b"}b.", UnsafePickle),
        (b"}2.", UnsafePickle),
        (b"}" + A + b"S'a'\ns.", UnsafePickle),
        # not a record
        (b"", MalformedPickle),
        (b".", MalformedPickle),
        (b"N.", MalformedPickle),
        (b"].", MalformedPickle),
        (b"}(.", MalformedPickle),
        (b"}}.", MalformedPickle),
        (b"}" + INT + INT + b"s.", MalformedPickle),
        (b"}(" + A + INT + INT + INT + b"u.", MalformedPickle),
        (b"}C\x01a" + INT + b"s.", MalformedPickle),
        (b"}.}", MalformedPickle),
        # containers used wrongly
        (b"](" + A + INT + b"u.", MalformedPickle),
        (b"](" + A + b"u.", MalformedPickle),
        (b"}(" + A + b"u.", MalformedPickle),
        (b"}" + INT + b"a.", MalformedPickle),
        (b"}(" + INT + b"e.", MalformedPickle),
        (b"(" + A + b"d.", MalformedPickle),
        (b"u.", MalformedPickle),
        (b"t.", MalformedPickle),
        (b"\x87.", MalformedPickle),
        (b"}(\x85s.", MalformedPickle),
        (b"}" + A + b"}](" + INT + b"tss.", MalformedPickle),
        # keys
        (b"}" + A + b"}]Nss.", MalformedPickle),
        (b"}" + A + b"}}Nss.", MalformedPickle),
        (b"}" + A + b"}]\x85Nss.", MalformedPickle),
        (b"}" + A + b"}N\x85\x85Nss.", MalformedPickle),
        (b"}" + A + b"}c__builtin__\nbytes\nNss.", MalformedPickle),
        (b"}" + A + b"}(" + INT * 17 + b"tNss.", MalformedPickle),
        # numbers and texts
        (b"}" + A + b"I\ns.", MalformedPickle),
        (b"}" + A + b"I-\ns.", MalformedPickle),
        (b"}" + A + b"I1_0\ns.", MalformedPickle),
        (b"}" + A + b"I 1\ns.", MalformedPickle),
        (b"}" + A + b"L1x\ns.", MalformedPickle),
        (b"}" + A + b"L" + b"9" * 2501 + b"L\ns.", MalformedPickle),
        (b"}" + A + b"L" + b"9" * 1_000_000 + b"L\ns.", MalformedPickle),
        (b"}" + A + b"Fx\ns.", MalformedPickle),
        (b"}" + A + b"\x8b\x01\x04\0\0" + b"\x01" * 1025 + b"s.", MalformedPickle),
        (b"}" + A + b"\x8b\xff\xff\xff\xffs.", MalformedPickle),
        (b"}" + A + b"X\x01\0\0\0\xffs.", MalformedPickle),
        (b"}" + A + b"V\\ud8\ns.", MalformedPickle),
        (b"}" + A + b"V\\U00110000\ns.", MalformedPickle),
        # memo
        (b"}q\x01.", MalformedPickle),
        (b"}q\x00r\x02\0\0\0.", MalformedPickle),
        (b"}r\xff\xff\xff\xff.", MalformedPickle),
        (b"}p-1\n.", MalformedPickle),
        (b"}p99999999999999999999\n.", MalformedPickle),
        (b"}q\x00" + A + b"g-1\ns.", MalformedPickle),
        (b"}q\x00" + A + b"h\x01s.", MalformedPickle),
        (b"q\x00.", MalformedPickle),
        (b"\x94.", MalformedPickle),
        # protocol and frames
        (b"\x80\x06}.", MalformedPickle),
        (b"}\x80\x02.", MalformedPickle),
        (b"\x80\x04\x95\x03\0\0\0\0\0\0\0}.", MalformedPickle),
        (b"\x80\x04\x95\xff\xff\xff\xff\xff\xff\xff\xff}.", MalformedPickle),
    ],
)
def test_hostile_bytes_are_refused(data: bytes, kind: type[PickleError]) -> None:
    for decode in (loads, Decoder().loads):
        with pytest.raises(PickleError) as caught:
            decode(data)
        assert type(caught.value) is kind, caught.value
        assert len(str(caught.value)) < 250


@pytest.mark.parametrize(
    "data",
    [
        b"}q\x00" + A + b"h\x00s.",
        b"}" + A + b"]q\x00h\x00as.",
        b"}" + A + b"}q\x00" + A + b"h\x00ss.",
        b"}" + A + b"]q\x00h\x00\x85as.",
        b"}" + A + b"](q\x00.",
        b"}" + A + b"]q\x00]q\x01h\x00ah\x01as.",
    ],
)
def test_a_container_that_contains_itself_is_malformed(data: bytes) -> None:
    with pytest.raises(MalformedPickle):
        loads(data)


def test_a_record_may_be_as_deep_as_a_hundred_containers_and_no_deeper() -> None:
    def nested(depth: int) -> Any:
        value: Any = 1
        for number in range(depth):
            value = ([value], (value,), {"k": value})[number % 3]
        return {"a": value}

    assert loads(pickle.dumps(nested(100))) == nested(100)
    for protocol in PROTOCOLS:
        with pytest.raises(MalformedPickle, match="inside each other"):
            loads(pickle.dumps(nested(101), protocol))


def test_depth_is_counted_through_the_memo_too() -> None:
    """A list of 60, seen first on the top and then again 60 deep."""
    deep: Any = []
    for _ in range(59):
        deep = [deep]
    for outer_depth, good in ((40, True), (41, False)):
        wrapped: Any = deep
        for _ in range(outer_depth):
            wrapped = [wrapped]
        data = pickle.dumps({"a": deep, "b": wrapped})
        assert isinstance(outcome(loads, data), dict) is good


def laughs(levels: int) -> Any:
    value: Any = ["ha"] * 10
    for _ in range(levels):
        value = [value] * 10
    return value


def test_what_grows_beyond_measure_when_it_is_written_out_is_malformed() -> None:
    assert loads(pickle.dumps({"a": laughs(2)})) == {"a": laughs(2)}
    for record in (
        {"a": laughs(12)},
        {"a": ["x" * 10_000] * 30},
        dict.fromkeys(map(str, range(30)), "x" * 10_000),
        {"a": [{"k" * 4000: 1}] * 60},
        {"a": (7**2900,) * 200},
    ):
        for protocol in PROTOCOLS:
            data = pickle.dumps(record, protocol)
            assert isinstance(outcome(loads, data), dict) is (len(data) > 200_000), protocol
            assert same(outcome(Decoder().loads, data), outcome(loads, data))


def test_sharing_as_records_do_it_is_no_offence() -> None:
    row = {"status": "delivered", "warehouse": "north", "count": 3}
    rows = [dict(row) for _ in range(2000)]
    assert loads(pickle.dumps({"rows": rows}, 1)) == {"rows": rows}


def test_keys_that_could_collide_are_few() -> None:
    def colliding(count: int) -> dict[str, Any]:
        return {"a": {number * (2**61 - 1): None for number in range(count)}}

    assert loads(pickle.dumps(colliding(1000))) == colliding(1000)
    with pytest.raises(MalformedPickle, match="more than 1000 keys that are not str"):
        loads(pickle.dumps(colliding(1001)))
    many = {"a": {str(number): number for number in range(20_000)}}
    assert loads(pickle.dumps(many)) == many


def test_a_long_key_from_the_memo_is_refused() -> None:
    key = "k" * 4097
    assert loads(pickle.dumps({"a": {key: 1}})) == {"a": {key: 1}}
    with pytest.raises(MalformedPickle, match="a key of 4097 characters"):
        loads(pickle.dumps({"a": [{key: 1}, {key: 2}]}))


def test_bytes_are_not_made_from_one_text_again_and_again() -> None:
    text = b"X" + struct.pack("<I", 1000) + b"x" * 1000
    data = b"}" + A + b"](c_codecs\nencode\nq\x00" + text + b"X\x06\0\0\0latin1\x86q\x01R" + b"h\x00h\x01R" * 20 + b"es."
    with pytest.raises(MalformedPickle, match="more bytes than there are in the data"):
        loads(data)


def test_a_layout_is_not_learned_from_a_memo_that_is_written_over() -> None:
    """Entry 1, the key, becomes the value; the reference then means another text than it seems to."""

    def record(value: bytes) -> bytes:
        return b"}q\0(X\1\0\0\0aq\1X\1\0\0\0" + value + b"q\1X\1\0\0\0bq\2h\1u."

    decoder = Decoder()
    for value in (b"x", b"y", b"z"):
        assert decoder.loads(record(value)) == loads(record(value)) == {"a": value.decode(), "b": value.decode()}


def test_what_a_layout_keeps_is_bounded() -> None:
    decoder = Decoder()
    for number in range(3000):
        data = pickle.dumps({"name": "n" * (number % 700) + str(number), "msg": "m", "thread": 2**40 + number}, 1)
        assert decoder.loads(data) == pickle.loads(data)
    kept = [stretch.kept for layout in decoder._layouts for stretch in layout.stretches if stretch.kept]
    assert kept
    assert sum(2 * len(key) + 1024 for values in kept for key in values) <= pickles.MAX_KEPT_BYTES


def test_the_number_of_layouts_is_bounded() -> None:
    decoder = Decoder()
    for number in range(300):
        data = pickle.dumps({f"field{number}": "x", "msg": "m"}, 1)
        assert decoder.loads(data) == pickle.loads(data)
    assert len(decoder._layouts) == pickles.MAX_LAYOUTS


# A process of its own, so that the peak is that of the decoding alone.
PEAK = """
import resource, struct, sys
from forwarder.pickles import Decoder, PickleError, loads
A = b"X\\x01\\x00\\x00\\x00a"
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
data = {data}
before = peak()
for decode in (loads, Decoder().loads):
    try:
        decode(data)
    except PickleError as error:
        assert type(error).__name__ == "MalformedPickle", error
    else:
        raise AssertionError("accepted")
print(peak() - before)
"""
MIB = 1 << 20


@pytest.mark.parametrize(
    ("data", "mib"),
    [
        ("b'}r' + struct.pack('<I', 2**31) + b'.'", 1),
        ("b'}' + A + b'Nj' + struct.pack('<I', 2**32 - 1) + b's.'", 1),
        ("b'}' + A + b'X' + struct.pack('<I', 2**32 - 1) + b's.'", 1),
        ("b'}' + A + b'\\x8d' + struct.pack('<Q', 2**62) + b's.'", 1),
        ("b'}' + A + b'\\x8e' + struct.pack('<Q', 2**62) + b's.'", 1),
        ("b'}' + A + b'B' + struct.pack('<I', 2**32 - 1) + b's.'", 1),
        ("b'}' + A + b'\\x8b' + struct.pack('<i', 2**31 - 1) + b's.'", 1),
        ("b'\\x80\\x04\\x95' + struct.pack('<Q', 2**40) + b'}.'", 1),
        ("b'(' * 4_000_000", 40),
        ("b'}' + A + b']' * 1_000_000 + b'a' * 1_000_000 + b's.'", 40),
        ("b'}' + A + b']' * 90_000 + b'a' * 89_999 + b's.'", 24),
        ("b'}' + A + b'N' + b'\\x85' * 180_000 + b's.'", 40),
        ("b'}' + A + b'}' + b'N' + b'\\x85' * 180_000 + b'Nss.'", 40),
        ("b'}' + A + b'(' + b'}NNs' * 1_000_000 + b'ts.'", 40),
        ("b'}' + A + b'(' + b'\\x8c\\x02ab' * 1_000_000 + b'ts.'", 40),
        ("b'}\\x94' + b'\\x94' * 4_000_000 + b'.'", 40),
        (
            "b'}' + A + b']\\x94' + b''.join(b'](' + 2 * (b'j' + struct.pack('<I', n)) + b'e\\x94' for n in range(9000)) + b's.'",
            24,
        ),
    ],
)
def test_no_input_takes_more_memory_than_its_operations_are_worth(data: str, mib: int) -> None:
    run = subprocess.run([sys.executable, "-c", PEAK.format(data=data)], capture_output=True, text=True, check=False, timeout=60)
    assert run.returncode == 0, run.stderr
    assert int(run.stdout) <= mib * 1024


@pytest.mark.parametrize("piece", [b"N", b"]", b"}", b"(", b"I0\n", b"V\n", b"K\x00", b")", b"\x8c\x00", b"F0\n"])
def test_a_full_frame_of_operations_ends_at_the_limit(piece: bytes) -> None:
    with pytest.raises(MalformedPickle, match="more than 200000 operations"):
        loads(b"}" + A + b"(" + piece * (4 * MIB // len(piece)))
