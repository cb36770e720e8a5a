"""Python's own handlers as writers, in processes of their own."""

from __future__ import annotations

import subprocess

import pytest

from tests.conftest import AppFactory
from tests.harness.apps import finish
from tests.integration.tail.story import Story

APP = """
    import json, logging, logging.handlers, os, sys, time

    path, writer, count, make = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4]
    handler = eval(make)
    log = logging.getLogger("app")
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False
    for seq in range(count):
        log.info(json.dumps({"writer": writer, "seq": seq, "text": "x" * 80}))
        if seq % 100 == 0:
            print(seq, flush=True)
            time.sleep(0.005)
    logging.shutdown()
"""


def run(story: Story, app: AppFactory, name: str, count: int, handler: str, wait: bool = True) -> subprocess.Popen[str]:
    """Have a process log `count` lines to app.log with a handler made by the expression `handler`."""
    process = app(APP, story.writer.path, name, count, handler)
    story.open("app.log", name).sent = count
    if wait:
        finish(process)
    return process


@pytest.mark.parametrize("glob", ["app.log", "app.log*"])
def test_a_rotating_file_handler_loses_and_repeats_nothing(story: Story, app: AppFactory, glob: str) -> None:
    story.start(glob)
    run(story, app, "a", 5000, "logging.handlers.RotatingFileHandler(path, maxBytes=50_000, backupCount=20)")
    story.assert_exact()


def test_a_rotating_file_handler_that_deletes_its_oldest_files_loses_nothing(story: Story, app: AppFactory) -> None:
    story.start()
    run(story, app, "a", 12_000, "logging.handlers.RotatingFileHandler(path, maxBytes=400_000, backupCount=2)")
    story.assert_exact()


def test_a_rotating_file_handler_goes_on_while_the_agent_is_killed_and_started(story: Story, app: AppFactory) -> None:
    story.start()
    handler = "logging.handlers.RotatingFileHandler(path, maxBytes=50_000, backupCount=50)"
    for turn in range(4):
        process = run(story, app, f"a{turn}", 1500, handler, wait=False)
        story.agent.kill()
        story.agent.start()
        finish(process)
    story.assert_none_lost()


def test_a_timed_rotating_file_handler_loses_and_repeats_nothing(story: Story, app: AppFactory) -> None:
    story.start("app.log*")
    handler = "logging.handlers.TimedRotatingFileHandler(path, when='S', backupCount=50)"
    run(story, app, "a", 30_000, handler)
    assert len(list(story.logs.iterdir())) > 1
    story.assert_exact()


def test_a_timed_rotating_file_handler_that_keeps_two_files_loses_nothing(story: Story, app: AppFactory) -> None:
    story.start()
    run(story, app, "a", 30_000, "logging.handlers.TimedRotatingFileHandler(path, when='S', backupCount=2)")
    story.assert_exact()


def test_a_watched_file_handler_follows_a_rotation_from_outside(story: Story, app: AppFactory) -> None:
    story.start()
    process = app(APP, story.writer.path, "a", 20_000, "logging.handlers.WatchedFileHandler(path)")
    story.open("app.log", "a").sent = 20_000
    assert process.stdout is not None
    for _ in range(8):
        for _ in range(10):
            process.stdout.readline()
        story.writer.rotate()
    finish(process)
    story.assert_exact()


def test_two_processes_with_watched_file_handlers_are_both_heard_through_rotations(story: Story, app: AppFactory) -> None:
    story.start("app.log*")
    processes = [app(APP, story.writer.path, name, 10_000, "logging.handlers.WatchedFileHandler(path)") for name in "ab"]
    for name, process in zip("ab", processes, strict=True):
        story.open("app.log", name).sent = 10_000
        assert process.stdout is not None
    for _ in range(6):
        for process in processes:
            process.stdout.readline()  # type: ignore[union-attr]
        story.writer.rotate()
    for process in processes:
        finish(process)
    story.assert_exact()


def test_two_processes_appending_with_plain_file_handlers_are_both_heard(story: Story, app: AppFactory) -> None:
    story.start()
    run(story, app, "a", 3000, "logging.FileHandler(path)", wait=False)
    run(story, app, "b", 3000, "logging.FileHandler(path)")
    story.assert_exact()


def test_one_process_with_a_file_of_its_own_each_is_heard_with_others(story: Story, app: AppFactory) -> None:
    story.start("*.log")
    for number in range(3):
        path = story.logs / f"{number}.log"
        app(APP, path, f"a{number}", 2000, "logging.handlers.RotatingFileHandler(path, maxBytes=40_000, backupCount=9)")
        story.open(f"{number}.log", f"a{number}").sent = 2000
    story.assert_exact()


def test_a_handler_that_writes_utf_16_is_read_as_such(story: Story, app: AppFactory) -> None:
    story.start(encoding="utf-16-le")
    run(story, app, "a", 1000, "logging.FileHandler(path, encoding='utf-16-le')")
    story.assert_exact()


def test_a_process_killed_while_it_writes_leaves_whole_lines(story: Story, app: AppFactory) -> None:
    story.start()
    process = app(APP, story.writer.path, "a", 1_000_000, "logging.FileHandler(path)")
    assert process.stdout is not None
    for _ in range(20):
        process.stdout.readline()
    process.kill()
    process.wait()
    story.open("app.log", "a").sent = story.writer.path.read_bytes().count(b"\n")
    story.assert_exact()
