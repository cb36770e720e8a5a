"""Globs to files, and the directories to watch so that nothing new is missed."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from fnmatch import fnmatchcase
from pathlib import Path, PurePath

_MAGIC = re.compile(r"[*?\[]")
_NUMBERED = re.compile(r"(?P<base>.+?)[.\-_]\d[\d.\-_:T]*")
_DATED = re.compile(r"(?P<stem>.+?)(?P<date>[.\-_]\d[\d\-_:T]*)(?P<extension>\.[^.\d][^.]*)")
_DATE_DIGITS = 6
_MOST_LINKS = 40


class Found:
    """What a walk over globs came upon: `files` in name order, and every directory where one could appear."""

    def __init__(self) -> None:
        self.files: dict[str, None] = {}
        self.directories: set[str] = set()
        self.unreadable: dict[str, str] = {}
        """Directories that cannot be listed, with the reason."""


def walk(patterns: Iterable[str], exclude: Iterable[str]) -> Found:
    """All paths that match one of `patterns`, absolute globs with `**`, and none of `exclude`."""
    found = Found()
    excluded = tuple(exclude)
    for pattern in patterns:
        parts = PurePath(pattern).parts
        _descend(parts[0], parts[1:], found)
    for path in [path for path in found.files if is_excluded(path, excluded)]:
        del found.files[path]
    found.files = dict.fromkeys(sorted(found.files))
    return found


def _descend(directory: str, parts: tuple[str, ...], found: Found) -> None:
    part, rest = parts[0], parts[1:]
    if part == "**":
        if rest:
            _descend(directory, rest, found)
        for entry in _entries(directory, found):
            if entry.name.startswith("."):
                continue
            if _is_directory(entry, follow_symlinks=False):
                _descend(entry.path, parts, found)
            elif not rest:
                found.files[entry.path] = None
                if entry.is_symlink():
                    _watch_targets(entry.path, found)
    elif not _MAGIC.search(part):
        path = directory.rstrip("/") + "/" + part
        try:
            if rest and Path(path).is_dir():
                _descend(path, rest, found)
                return
        except OSError as error:
            found.unreadable[path] = error.strerror or str(error)
        found.directories.add(directory)
        if not rest and os.path.lexists(path):
            found.files[path] = None
            _watch_targets(path, found)
    else:
        for entry in _entries(directory, found):
            if not _name_matches(entry.name, part):
                continue
            if not rest:
                found.files[entry.path] = None
                if entry.is_symlink():
                    _watch_targets(entry.path, found)
            elif _is_directory(entry, follow_symlinks=True):
                _descend(entry.path, rest, found)


def _watch_targets(path: str, found: Found) -> None:
    """What a link leads to may be renamed too."""
    for _ in range(_MOST_LINKS):
        try:
            path = os.path.join(os.path.dirname(path), os.readlink(path))
        except OSError:
            return  # no link, or not any more
        found.directories.add(os.path.dirname(path))


def _entries(directory: str, found: Found) -> list[os.DirEntry[str]]:
    found.directories.add(directory)
    try:
        with os.scandir(directory) as entries:
            return list(entries)
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        found.unreadable[directory] = error.strerror or str(error)
        return []


def _is_directory(entry: os.DirEntry[str], *, follow_symlinks: bool) -> bool:
    try:
        return entry.is_dir(follow_symlinks=follow_symlinks)
    except OSError:
        return False  # a link that leads in circles, or nowhere one may go


def is_excluded(path: str, exclude: tuple[str, ...]) -> bool:
    """Whether one of `exclude` matches: a glob without a slash the file's name, any other the whole path."""
    name = path.rpartition("/")[2]
    return any(fnmatchcase(path if "/" in pattern else name, pattern) for pattern in exclude)


def matches(path: str, pattern: str) -> bool:
    """Whether `walk` would find `path` by `pattern`, were it there."""
    return _match(PurePath(path).parts, PurePath(pattern).parts)


def _match(names: tuple[str, ...], parts: tuple[str, ...]) -> bool:
    if not parts or not names:
        return not parts and not names
    if parts[0] == "**":
        below = not names[0].startswith(".") and (len(names) == 1 == len(parts) or _match(names[1:], parts))
        return below or _match(names, parts[1:])
    return _name_matches(names[0], parts[0]) and _match(names[1:], parts[1:])


def _name_matches(name: str, part: str) -> bool:
    """As in a shell, a wildcard does not stand for a leading dot."""
    return fnmatchcase(name, part) and (part.startswith(".") or not name.startswith("."))


def rotation_bases(name: str) -> list[str]:
    """Names that a rotation may have made `name` from: `app.log` for `app.log.1`, `app.log-20261123`, `app-20261123.log`."""
    bases = []
    numbered = _NUMBERED.fullmatch(name)
    if numbered:
        bases.append(numbered["base"])
    dated = _DATED.fullmatch(name)
    # `app-2.log` may well be a log of its own; a date may not.
    if dated and sum(map(str.isdigit, dated["date"])) >= _DATE_DIGITS:
        bases.append(dated["stem"] + dated["extension"])
    return bases


def may_be_renamed(before: str, name: str, position: int) -> bool:
    """Whether a rotation may have renamed a file `before` to `name`, of which no more than up to `position` can tell.

    Of a file that was not read at all nothing but the name can; of others a number may have been raised, as in `app.log.2`.
    """
    bases = {name, *rotation_bases(name)}
    return before in bases or (position > 0 and not bases.isdisjoint(rotation_bases(before)))
