"""Pickled log records to dicts, without ever running the pickle machine.

A record is a dict of None, bool, int, float, str, bytes, tuple, list and dict, as the standard library's SocketHandler sends
it; protocols 0 to 5 are read as CPython writes them. What could import, call, or allocate by a number that the peer chose
is not built in here at all, so there is nothing to switch off. Time and memory are bounded by the length of the input and by
`MAX_OPERATIONS`, and so is what the record grows to when it is written as JSON, where shared parts are written out each time.

Lone surrogates, numbers above 64 bits, NaN and keys that are not str come out as they went in: they are the encoder's business.
"""

from __future__ import annotations

import struct
from itertools import chain, groupby, pairwise, repeat
from typing import Any

import msgspec

MAX_OPERATIONS = 200_000
MAX_DEPTH = 100
"""Containers inside each other, the record itself not counted."""
MAX_OTHER_KEYS = 1_000
"""Keys of inner dicts that are not str or bytes. Their hashes are no secret, so a peer can make all of them collide."""
MAX_KEY = 4_096
MAX_KEY_PARTS = 16
MAX_DIGITS = 2_500
MAX_LONG = 1_024
"""Bytes of an int; as text it has fewer than MAX_DIGITS digits, and those are few enough for int()."""

# A record may grow, when it is written out, to EXPANSION_FREE + EXPANSION * its length as a pickle.
EXPANSION_FREE = 64 * 1024
EXPANSION = 8

MAX_LAYOUTS = 16
MAX_LAYOUT_BYTES = 8 * 1024
MAX_KEPT_BYTES = 256 * 1024
MAX_BACK_REFERENCES = EXPANSION - 1  # each repeats at most the whole input, so that the limit above holds without a look
LEARN_AT_ONCE = 32
LEARN_SELDOM = 64

_REFUSED = {
    ord(code): name
    for name, code in {
        "POP": "0", "POP_MARK": "1", "DUP": "2", "PERSID": "P", "BINPERSID": "Q", "REDUCE": "R", "STRING": "S", "BINSTRING": "T",
        "SHORT_BINSTRING": "U", "BUILD": "b", "GLOBAL": "c", "INST": "i", "OBJ": "o", "NEWOBJ": "\x81", "EXT1": "\x82",
        "EXT2": "\x83", "EXT4": "\x84", "EMPTY_SET": "\x8f", "ADDITEMS": "\x90", "FROZENSET": "\x91", "NEWOBJ_EX": "\x92",
        "STACK_GLOBAL": "\x93", "BYTEARRAY8": "\x96", "NEXT_BUFFER": "\x97", "READONLY_BUFFER": "\x98",
    }.items()
}  # fmt: skip

_STR = {str}
_CONTAINERS = frozenset((dict, list, tuple))
_SMALL = frozenset((bool, float, type(None)))
_SCALARS = frozenset((str, bytes, int, bool, float, type(None)))

_NUMBER_WIDTHS = {75: 2, 77: 3, 74: 5, 136: 1, 137: 1, 76: 0, 73: 0, 138: 0}
"""Opcodes of numbers and bools, with the bytes they take; 0 where that differs."""

_uint2 = struct.Struct("<H").unpack_from
_int4 = struct.Struct("<i").unpack_from
_uint4 = struct.Struct("<I").unpack_from
_uint8 = struct.Struct("<Q").unpack_from
_double = struct.Struct(">d").unpack_from


class PickleError(ValueError):
    """Not a pickled log record; the text says what and where."""


class UnsafePickle(PickleError):
    """An operation that a log record does not need, such as one that imports or calls."""


class MalformedPickle(PickleError):
    """Cut, nonsense, above a limit, or no dict with str keys."""


class _Callable:
    """Stands on the stack for one of the two functions with which protocols 0 to 2 write bytes. It cannot be called."""


_ENCODE = _Callable()
_BYTES = _Callable()


def loads(data: bytes | memoryview) -> dict[str, Any]:
    """The record in `data`; raises UnsafePickle or MalformedPickle.

    - Memo entries are numbered from 0 without a gap, as CPython does it: no entry can be put anywhere but at the end or over
      another, so neither memory nor hash collisions are in the peer's hand.
    - A length is compared with what has arrived before anything is made of it.
    - Every opcode counts, so that a few bytes cannot cost much and a full frame of them ends at MAX_OPERATIONS.

    Measured: 12 µs for a stock record of 20 fields (`timeit`, Python 3.11, best of 20), where `pickle.loads` takes 3.
    """
    if type(data) is not bytes:
        data = bytes(data)
    size = len(data)
    position = 0
    stack: list[Any] = []
    outer: list[list[Any]] = []  # the stacks below each open MARK
    memo: list[Any] = []
    push, remember = stack.append, memo.append
    look_inside = False  # whether there may be anything that needs `_measure`
    shared = False
    other_keys = 0
    encoded = 0
    try:
        # Hot path: the order is that of their frequency in what SocketHandler sends.
        for _ in repeat(None, MAX_OPERATIONS):
            code = data[position]
            position += 1
            if code == 88 or code == 140:  # noqa: PLR1714  BINUNICODE, SHORT_BINUNICODE; a set or tuple takes longer
                if code == 88:
                    start = position + 4
                    end = start + _uint4(data, position)[0]
                else:
                    start = position + 1
                    end = start + data[position]
                if end > size:
                    raise MalformedPickle(f"a string at offset {position - 1} ends {end - size} bytes after the end of the data")
                try:
                    text = data[start:end].decode()
                except UnicodeDecodeError:
                    text = data[start:end].decode("utf-8", "surrogatepass")
                push(text)
                position = end
                code = data[end]
                if code == 113:
                    if data[end + 1] == len(memo):
                        remember(text)
                        position = end + 2
                elif code == 148:
                    remember(text)
                    position = end + 1
            elif code == 75:  # BININT1
                push(data[position])
                position += 1
            elif code == 78:  # NONE
                push(None)
            elif code == 71:  # BINFLOAT
                push(_double(data, position)[0])
                position += 8
            elif code == 77:  # BININT2
                push(_uint2(data, position)[0])
                position += 2
            elif code == 74:  # BININT
                push(_int4(data, position)[0])
                position += 4
            elif code in (76, 73, 138, 139):  # LONG, INT, LONG1, LONG4
                number, position = _integer(data, position - 1)
                push(number)
            elif code == 136:  # NEWTRUE
                push(True)
            elif code == 137:  # NEWFALSE
                push(False)
            elif code == 113:  # BINPUT
                _put(memo, data[position], stack[-1], position)
                position += 1
            elif code == 148:  # MEMOIZE
                remember(stack[-1])
            elif code == 104:  # BINGET
                push(memo[data[position]])
                position += 1
                look_inside = shared = True
            elif code == 114:  # LONG_BINPUT
                _put(memo, _uint4(data, position)[0], stack[-1], position)
                position += 4
            elif code == 106:  # LONG_BINGET
                push(memo[_uint4(data, position)[0]])
                position += 4
                look_inside = shared = True
            elif code == 40:  # MARK
                outer.append(stack)
                stack = []
                push = stack.append
            elif code in (117, 100):  # SETITEMS, DICT
                items = stack
                stack = outer.pop()
                push = stack.append
                if code == 100:
                    look_inside = look_inside or bool(stack or outer)
                    push({})
                target = stack[-1]
                if type(target) is not dict or len(items) & 1:
                    raise MalformedPickle(f"items without a dict, or without a value, at offset {position - 1}")
                keys = items[::2]
                if shared or set(map(type, keys)) != _STR:
                    other_keys = _check_keys(keys, other_keys)
                target.update(zip(keys, items[1::2], strict=True))
            elif code == 115:  # SETITEM
                value = stack.pop()
                key = stack.pop()
                target = stack[-1]
                if type(target) is not dict:
                    raise MalformedPickle(f"an item without a dict at offset {position - 1}")
                if shared or type(key) is not str:
                    other_keys = _check_keys([key], other_keys)
                target[key] = value
            elif code == 125:  # EMPTY_DICT
                look_inside = look_inside or bool(stack or outer)
                push({})
            elif code == 46:  # STOP
                break
            elif code == 93:  # EMPTY_LIST
                look_inside = True
                push([])
            elif code in (101, 108, 116):  # APPENDS, LIST, TUPLE
                items = stack
                stack = outer.pop()
                push = stack.append
                look_inside = True
                if code == 101:
                    if type(stack[-1]) is not list:
                        raise MalformedPickle(f"items without a list at offset {position - 1}")
                    stack[-1].extend(items)
                else:
                    push(items if code == 108 else tuple(items))
            elif code == 97:  # APPEND
                value = stack.pop()
                if type(stack[-1]) is not list:
                    raise MalformedPickle(f"an item without a list at offset {position - 1}")
                stack[-1].append(value)
            elif code == 41:  # EMPTY_TUPLE
                push(())
            elif 133 <= code <= 135:  # TUPLE1, TUPLE2, TUPLE3
                look_inside = True
                parts = [stack.pop() for _ in range(code - 132)]
                push(tuple(reversed(parts)))
            elif code in (67, 66, 142, 141):  # SHORT_BINBYTES, BINBYTES, BINBYTES8, BINUNICODE8
                if code == 67:
                    start = position + 1
                    end = start + data[position]
                elif code == 66:
                    start = position + 4
                    end = start + _uint4(data, position)[0]
                else:
                    start = position + 8
                    end = start + _uint8(data, position)[0]
                if end > size:
                    raise MalformedPickle(f"a string at offset {position - 1} ends {end - size} bytes after the end of the data")
                push(data[start:end].decode("utf-8", "surrogatepass") if code == 141 else data[start:end])
                position = end
            elif code == 128:  # PROTO
                if position != 1 or data[1] > 5:
                    raise MalformedPickle(f"PROTO {data[position]} at offset {position - 1}; known are 0 to 5, at the beginning")
                position = 2
            elif code == 149:  # FRAME: only announces, so all there is to do is to see that it tells the truth
                length = _uint8(data, position)[0]
                position += 8
                if length > size - position:
                    raise MalformedPickle(f"FRAME at offset {position - 9} announces {length} bytes; {size - position} follow")
            elif code in (86, 70, 112, 103):  # UNICODE, FLOAT, PUT, GET: protocol 0
                start = position
                position = _line_end(data, start, size if code == 86 else MAX_DIGITS) + 1
                line = data[start : position - 1]
                if code == 86:
                    push(line.decode("raw-unicode-escape"))
                elif code == 70:
                    push(float(line))
                elif not line.isdigit() or len(line) > 10:
                    raise MalformedPickle(f"no memo number at offset {start}")
                elif code == 112:
                    _put(memo, int(line), stack[-1], start)
                else:
                    push(memo[int(line)])
                    look_inside = shared = True
            elif code == 99 and data.startswith(b"_codecs\nencode\n", position):  # GLOBAL, compared and not imported
                position += 15
                look_inside = True
                push(_ENCODE)
            elif code == 99 and data.startswith(b"__builtin__\nbytes\n", position):
                position += 18
                look_inside = True
                push(_BYTES)
            elif code == 82 and type(stack[-2]) is _Callable:  # REDUCE of one of those two
                arguments = stack.pop()
                made = _bytes_from(stack.pop(), arguments, position)
                encoded += len(made)
                if encoded > size:  # a string of protocol 2 encoded again and again
                    raise MalformedPickle(f"more bytes than there are in the data at offset {position - 1}")
                push(made)
            else:
                raise _refusal(data, position - 1)
        else:
            raise MalformedPickle(f"more than {MAX_OPERATIONS} operations")
    except struct.error:
        raise MalformedPickle(f"cut off after {size} bytes") from None
    except IndexError:
        if position >= size:
            raise MalformedPickle(f"cut off after {size} bytes") from None
        raise MalformedPickle(f"takes what is not there at offset {position - 1}") from None
    except (UnicodeError, OverflowError) as error:
        raise MalformedPickle(f"no text at offset {position}: {error.__class__.__name__}") from None
    except PickleError:
        raise
    except ValueError:
        raise MalformedPickle(f"no number at offset {position}") from None
    if position != size:
        raise MalformedPickle(f"{size - position} bytes follow the end at offset {position}")
    if len(stack) != 1 or outer:
        raise MalformedPickle("does not end with exactly one value")
    record: object = stack[0]
    if type(record) is not dict:
        raise MalformedPickle(f"the record is a {type(record).__name__.strip('_').lower()} and not a dict")
    if not set(map(type, record)) <= _STR:
        raise MalformedPickle("the record has a key that is not a str")
    if look_inside:
        _measure(record, 0, {}, EXPANSION_FREE + EXPANSION * size)
    return record


def _integer(data: bytes, position: int) -> tuple[int, int]:
    """The number, or bool, of one of the less frequent opcodes, and where it ends."""
    code = data[position]
    start = position + 1
    if code == 138 or code == 139:  # noqa: PLR1714
        length, start = (data[start], start + 1) if code == 138 else (_int4(data, start)[0], start + 4)
        end = start + length
        if not 0 <= length <= MAX_LONG or end > len(data):
            raise MalformedPickle(f"an int of {length} bytes at offset {position}")
        return int.from_bytes(data[start:end], "little", signed=True), end
    end = _line_end(data, start, MAX_DIGITS)
    line = data[start:end]
    if code == 73:
        if line == b"01":
            return True, end + 1
        if line == b"00":
            return False, end + 1
    elif line[-1:] == b"L":
        line = line[:-1]
    digits = line[1:] if line[:1] == b"-" else line
    if not digits.isdigit() or (digits[:1] == b"0" and digits.strip(b"0")):
        raise MalformedPickle(f"no number at offset {start}")
    return int(line), end + 1


def _line_end(data: bytes, start: int, longest: int) -> int:
    end = data.find(b"\n", start, start + longest + 1)
    if end < 0:
        raise MalformedPickle(f"the line at offset {start} has no end, or is longer than {longest} bytes")
    return end


def _put(memo: list[Any], index: int, value: object, position: int) -> None:
    if index == len(memo):
        memo.append(value)
    elif index < len(memo):
        memo[index] = value
    else:
        raise MalformedPickle(f"memo entry {index} after {len(memo)} entries at offset {position}")


def _check_keys(keys: list[Any], others: int) -> int:
    """`others` and how many of `keys` are not str or bytes; raises MalformedPickle for one that costs too much to look up.

    A key that comes from the memo is compared again and again, so its length is bounded. The hash of a tuple is worked out
    anew each time and recurses in C without a limit, so tuples are short and flat.
    """
    for key in keys:
        kind = type(key)
        if kind is str or kind is bytes:
            if len(key) > MAX_KEY:
                raise MalformedPickle(f"a key of {len(key)} characters")
            continue
        others += 1
        if kind is tuple:
            if len(key) > MAX_KEY_PARTS or not set(map(type, key)) <= _SCALARS:
                raise MalformedPickle("a key that is a long or nested tuple")
            _check_keys([part for part in key if isinstance(part, str | bytes)], 0)
        elif kind not in _SCALARS:
            raise MalformedPickle(f"a key that is a {kind.__name__.strip('_').lower()}")
    if others > MAX_OTHER_KEYS:
        raise MalformedPickle(f"more than {MAX_OTHER_KEYS} keys that are not str")
    return others


def _bytes_from(function: object, arguments: object, position: int) -> bytes:
    """What `_codecs.encode(text, "latin1")` or `bytes()` would give."""
    if function is _BYTES and arguments == ():
        return b""
    if function is _ENCODE and type(arguments) is tuple and len(arguments) == 2:
        text, codec = arguments
        if type(text) is str and codec == "latin1":
            return text.encode("latin-1")
    raise UnsafePickle(f"REDUCE at offset {position - 1} is a call that a log record does not need")


def _refusal(data: bytes, position: int) -> PickleError:
    code = data[position]
    name = _REFUSED.get(code)
    if name is None:
        return MalformedPickle(f"0x{code:02x} at offset {position} is no opcode")
    if name in ("GLOBAL", "INST"):
        name += " " + ascii(b".".join(data[position + 1 : position + 81].split(b"\n", 2)[:2]))[2:-1]
    return UnsafePickle(f"{name} at offset {position} is not what a log record needs")


def _measure(container: Any, depth: int, known: dict[int, tuple[int, int]], limit: int) -> tuple[int, int]:
    """About how large `container` is when written out, and how deep; raises if that is too large, too deep, or has no end.

    Every container is looked at once, however often it is shared, so this costs what the pickle cost.
    """
    if depth > MAX_DEPTH:
        raise MalformedPickle(f"more than {MAX_DEPTH} containers inside each other")
    found = known.get(id(container))
    if found is not None:
        if depth + found[1] > MAX_DEPTH:
            raise MalformedPickle(f"a container that contains itself, or more than {MAX_DEPTH} inside each other")
        return found
    known[id(container)] = (0, MAX_DEPTH + 1)  # until it is done; whoever comes across it now is inside it
    size, height = 2, 0
    for part in chain(container, container.values()) if type(container) is dict else container:
        kind = type(part)
        if kind is str or kind is bytes:
            size += len(part) + 1
        elif kind is int:
            size += part.bit_length() // 3 + 2
        elif kind in _SMALL:
            size += 1
        elif kind in _CONTAINERS:
            more, below = _measure(part, depth + 1, known, limit)
            size += more
            height = max(height, below + 1)
        else:
            raise UnsafePickle("GLOBAL stands where a value belongs")
    if size > limit:
        raise MalformedPickle(f"grows to more than {limit} bytes when it is written out")
    known[id(container)] = (size, height)
    return size, height


_TEXT, _NUMBER, _FLOAT = range(3)

_CALL_SITE = frozenset(("levelname", "levelno", "pathname", "filename", "module", "lineno", "funcName"))
_THREAD = frozenset(("thread", "threadName", "processName", "process"))
_STEADY = _CALL_SITE | _THREAD | {"name"}
"""Fields that follow from the call site or the thread: the same few combinations come again and again."""

_Slot = tuple[Any, int, bytes, int, str]
"""A field whose value differs: (unpack, its width, the bytes up to the value, kind, name).

One unpack gives the bytes up to the value, to be compared with those of the record that the layout was learned from, and the
beginning of the value.
"""


class _Stretch(msgspec.Struct):
    """Neighbouring slots. If they are steady, what they say is kept by the bytes from the first to the last of them."""

    slots: tuple[_Slot, ...]
    anchor: bytes = b""
    """The bytes that follow up to the next value, by which the end of the stretch is guessed; a wrong guess does no harm."""
    kept: dict[bytes, dict[str, Any]] | None = None


class _Layout(msgspec.Struct):
    """What the records of an app have in common, but for the values of their slots."""

    mark: bytes
    """Bytes that all of them have, and few of another layout: those before the last value."""
    stretches: tuple[_Stretch, ...]
    end: bytes
    template: dict[str, Any]
    """All keys in their order, with the values that are part of the layout."""
    copies: tuple[tuple[str, str], ...]
    """(to, from): values that stand in the pickle as references to another value."""


class Decoder:
    """`loads` for one connection: it learns how this app's records look, and reads such records in a fraction of the time.

    Records of an app differ in their values only, so whatever stands between two values is compared in one piece. A record
    that fits no layout goes to `loads`, and its layout is learned; what it gives or raises is always what `loads` does.

    Measured with 5,000 records of 21 attributes, Python 3.11: 4 to 5 microseconds a record, `loads` 20.
    """

    def __init__(self) -> None:
        self._layouts: list[_Layout] = []
        self._misses = 0
        self._room = MAX_KEPT_BYTES

    def loads(self, data: bytes | memoryview) -> dict[str, Any]:
        """The record in `data`; raises UnsafePickle or MalformedPickle."""
        if type(data) is not bytes:
            data = bytes(data)
        layouts = self._layouts
        for layout in layouts:
            if layout.mark not in data:
                continue
            record = self._read(layout, data)
            if record is not None:
                if layout is not layouts[0]:
                    layouts.remove(layout)
                    layouts.insert(0, layout)
                if self._misses:
                    self._misses -= 1
                return record
        record = loads(data)
        # Where every record looks different there is nothing to learn, and trying costs as much as decoding.
        self._misses += 1
        if self._misses <= LEARN_AT_ONCE or self._misses % LEARN_SELDOM == 0:
            learned = _learn(data, record)
            if learned is not None:
                layouts.insert(0, learned)
                del layouts[MAX_LAYOUTS:]
        return record

    def _read(self, layout: _Layout, data: bytes) -> dict[str, Any] | None:
        """The record in `data` if it has this layout."""
        position = begin = end = 0
        record = layout.template.copy()
        try:
            for stretch in layout.stretches:
                kept = stretch.kept
                if kept is not None:
                    begin = position
                    end = data.find(stretch.anchor, position)
                    if end < 0:
                        return None
                    known = kept.get(data[position:end])
                    if known is not None:
                        record.update(known)
                        position = end
                        continue
                for unpack, width, segment, kind, name in stretch.slots:
                    # Hot path: a third of a microsecond a field.
                    if kind == _TEXT:
                        found, length = unpack(data, position)
                        if found != segment:
                            return None
                        start = position + width
                        position = start + length
                        record[name] = data[start:position].decode()
                    elif kind == _FLOAT:
                        found, record[name] = unpack(data, position)
                        if found != segment:
                            return None
                        position += width
                    else:
                        found, code, low = unpack(data, position)
                        if found != segment:
                            return None
                        position += width
                        if code == 75:
                            record[name] = low
                        elif code == 77:
                            record[name] = low | data[position] << 8
                            position += 1
                        elif code == 74:
                            record[name] = _int4(data, position - 1)[0]
                            position += 3
                        elif code == 136 or code == 137:  # noqa: PLR1714
                            record[name] = code == 136
                            position -= 1
                        elif code in (76, 73, 138):
                            record[name], position = _integer(data, position - 2)
                        else:
                            return None
                if kept is not None and position == end:
                    self._keep(kept, data[begin:end], {slot[-1]: record[slot[-1]] for slot in stretch.slots})
        except (struct.error, IndexError, ValueError):  # also UnicodeError and PickleError: `loads` will say what is wrong
            return None
        if data[position:] != layout.end:
            return None
        for name, source in layout.copies:
            record[name] = record[source]
        return record

    def _keep(self, kept: dict[bytes, dict[str, Any]], key: bytes, values: dict[str, Any]) -> None:
        """Keep what the steady bytes `key` say; when there is no room, all that was kept so far is forgotten."""
        needed = 2 * len(key) + 1024
        if needed > MAX_KEPT_BYTES:
            return
        if needed > self._room:
            for layout in self._layouts:
                for stretch in layout.stretches:
                    if stretch.kept is not None:
                        stretch.kept.clear()
            self._room = MAX_KEPT_BYTES
        self._room -= needed
        kept[key] = values


def _learn(data: bytes, record: dict[str, Any]) -> _Layout | None:
    """The layout of `data`, from which `loads` has made `record`; None for one with containers, or in protocols 0, 4 and 5.

    What may differ between records of a layout is the content of strings and floats, and numbers and bools in all their forms:
    none of these has a say in what any other byte means.
    """
    start = 2 if data[0] == 128 else 0
    if data[start : start + 4] != b"}q\x00(" or len(record) < 2:
        return None
    slots: list[_Slot] = []
    template = record.copy()
    copies: list[tuple[str, str]] = []
    memo: list[str | None] = [None]  # for each entry the name of the field whose value it is, or None for that of a key
    begin, position = 0, start + 4  # of the segment, of what is looked at
    for name in record:
        if data[position] != 88:
            return None
        position = _skip_put(data, position + 5 + _uint4(data, position + 1)[0], memo, None)
        code = data[position]
        if code == 88:
            segment = data[begin : position + 1]
            slots.append((struct.Struct(f"<{len(segment)}sI").unpack_from, len(segment) + 4, segment, _TEXT, name))
            begin = position + 5 + _uint4(data, position + 1)[0]
            position = _skip_put(data, begin, memo, name)
        elif code == 71:
            segment = data[begin : position + 1]
            slots.append((struct.Struct(f">{len(segment)}sd").unpack_from, len(segment) + 8, segment, _FLOAT, name))
            begin = position = position + 9
        elif code in _NUMBER_WIDTHS:
            segment = data[begin:position]
            slots.append((struct.Struct(f"<{len(segment)}sBB").unpack_from, len(segment) + 2, segment, _NUMBER, name))
            begin = position = position + _NUMBER_WIDTHS[code] if _NUMBER_WIDTHS[code] else _integer(data, position)[1]
        elif code == 78:
            position += 1
        elif code == 104:
            source = memo[data[position + 1]]
            position += 2
            if source is not None:
                copies.append((name, source))
        else:
            return None
    if data[position:] != b"u." or len(copies) > MAX_BACK_REFERENCES or not slots:
        return None
    if begin + sum(len(slot[2]) for slot in slots) > MAX_LAYOUT_BYTES:
        return None
    for slot in slots:
        template[slot[-1]] = None
    return _Layout(slots[-1][2], _stretches(slots, data[begin:]), data[begin:], template, tuple(copies))


def _stretches(slots: list[_Slot], end: bytes) -> tuple[_Stretch, ...]:
    stretches: list[_Stretch] = []
    for steady, group in groupby(slots, lambda slot: slot[-1] in _STEADY):
        stretches.append(_Stretch(tuple(group), end, {} if steady else None))
    for stretch, following in pairwise(stretches):
        stretch.anchor = following.slots[0][2]
    return tuple(stretches)


def _skip_put(data: bytes, position: int, memo: list[str | None], name: str | None) -> int:
    """Where the memo operation behind a string ends, if there is one that makes the next entry."""
    if data[position] == 113 and data[position + 1] == len(memo):
        position += 2
    elif data[position] == 114 and _uint4(data, position + 1)[0] == len(memo):
        position += 5
    else:
        return position
    memo.append(name)
    return position
