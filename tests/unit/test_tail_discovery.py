"""Globs to files, and names to the logs that they were rotated from."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from forwarder.tail.discovery import matches, may_be_renamed, rotation_bases, walk

TREE = ["app.log", "app.log.1", "b.log", ".hidden.log", "sub/c.log", "sub/deep/d.log", "sub/.git/e.log", "sub/app.log.gz"]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name in TREE:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("app.log", ["app.log"]),
        ("*.log", ["app.log", "b.log"]),
        ("[ab]*.log", ["app.log", "b.log"]),
        ("app.log*", ["app.log", "app.log.1"]),
        ("*/*.log", ["sub/c.log"]),
        ("**/*.log", ["app.log", "b.log", "sub/c.log", "sub/deep/d.log"]),
        ("sub/**", ["sub/app.log.gz", "sub/c.log", "sub/deep/d.log"]),
        (".*.log", [".hidden.log"]),
        ("nothing/*.log", []),
    ],
)
def test_a_glob_finds_what_a_shell_would_find(tree: Path, pattern: str, expected: list[str]) -> None:
    found = walk([f"{tree}/{pattern}"], [])
    files = [str(Path(path).relative_to(tree)) for path in found.files if Path(path).is_file()]
    assert files == expected
    assert all(matches(path, f"{tree}/{pattern}") for path in found.files)
    others = {str(tree / name) for name in TREE} - found.files.keys()
    assert not any(matches(path, f"{tree}/{pattern}") for path in others)


def test_excluded_files_are_left_out_by_name_or_by_path(tree: Path) -> None:
    found = walk([f"{tree}/**/*"], ["*.gz", f"{tree}/sub/deep/*", "b*"])
    assert [Path(path).name for path in found.files if Path(path).is_file()] == ["app.log", "app.log.1", "c.log"]


def test_every_directory_is_named_in_which_something_new_could_appear(tree: Path) -> None:
    assert walk([f"{tree}/*/*.log"], []).directories == {str(tree), str(tree / "sub")}
    assert str(tree) in walk([f"{tree}/later/*.log"], []).directories


@pytest.mark.parametrize(
    ("name", "base"),
    [
        ("app.log.1", "app.log"),
        ("app.log.12", "app.log"),
        ("app.log-20261123", "app.log"),
        ("app.log.2026-11-23_10-00", "app.log"),
        ("app-20261123.log", "app.log"),
        ("app.2026-11-23.log", "app.log"),
    ],
)
def test_a_rotated_name_leads_back_to_its_log(name: str, base: str) -> None:
    assert base in rotation_bases(name)


@pytest.mark.parametrize("name", ["app.log", "app.log.bak", "app.log.1.gz", "app-2.log", "app2.log", "worker-1.log", "app.log1"])
def test_a_name_that_no_rotation_gives_is_a_log_of_its_own(name: str) -> None:
    assert not {"app.log", "worker.log"} & set(rotation_bases(name))


def test_a_directory_that_may_not_be_entered_is_named_and_the_others_are_searched(tree: Path) -> None:
    for directory in (tree, *tree.parents):
        if directory.stat().st_uid == os.geteuid():
            directory.chmod(directory.stat().st_mode | 0o755)
    (tree / "sub").chmod(0)
    user = os.geteuid()
    try:
        if user == 0:
            os.seteuid(65534)  # nobody; root may enter anything
        found = walk([f"{tree}/*.log", f"{tree}/sub/deep/*.log"], [])
    finally:
        os.seteuid(user)
        (tree / "sub").chmod(0o755)
    assert [Path(path).name for path in found.files] == ["app.log", "b.log"]
    assert found.unreadable == {f"{tree}/sub/deep": "Permission denied"}


@pytest.mark.parametrize(
    ("before", "name", "position", "may"),
    [
        ("app.log", "app.log", 0, True),
        ("app.log", "app.log.1", 0, True),
        ("app.log.1", "app.log.2", 0, False),
        ("app.log.1", "app.log.2", 5, True),
        ("app.log.1", "app.log-20261124", 5, True),
        ("app.log.1", "web.log.2", 5, False),
        ("app.log", "web.log", 5, False),
    ],
)
def test_the_name_tells_what_a_file_hardly_read_may_have_been_renamed_to(
    before: str, name: str, position: int, may: bool
) -> None:
    assert may_be_renamed(before, name, position) == may
