"""Stories that the model of tests/unit/test_tail_model.py has come upon: the shortest of each, told to a real agent."""

from __future__ import annotations

import os
import shutil

from tests.harness.kafka import Kafka
from tests.harness.wait import eventually
from tests.integration.tail.story import Story, Writer


def test_a_file_named_like_a_rotated_one_is_not_read_again_after_a_restart(story: Story) -> None:
    story.writer.write(1)
    story.start("*.log")
    story.await_delivered(1)
    Writer(story.logs / "app-20261123.log", first=1).write(50)
    story.await_delivered(51)
    assert story.agent.terminate() == 0
    story.agent.start()
    story.writer.sent = 51
    story.writer.write(1)
    story.assert_exact()


def test_copies_that_were_read_are_not_read_again_after_a_restart(story: Story) -> None:
    story.start("*.log")
    story.writer.write(100)
    story.await_delivered(100)
    story.agent.freeze()
    story.writer.write(50)
    shutil.copyfile(story.writer.path, story.logs / "app-20261123.log")
    story.writer.file.truncate(0)
    story.writer.write(10)
    story.agent.thaw()
    story.await_delivered(160)
    story.writer.copy_truncate()
    story.writer.write(20)
    story.await_delivered(180)
    assert story.agent.terminate() == 0
    story.agent.start()
    story.writer.write(1)
    story.assert_exact()


def test_what_arrives_of_a_deleted_file_during_the_stop_is_not_kept_for_the_next_start(story: Story) -> None:
    story.start()
    story.writer.write(10)
    story.await_delivered(10)
    story.writer.write(1000)
    story.writer.path.unlink()
    assert story.agent.terminate() == 0
    story.agent.start()
    story.writer.reopen()
    story.writer.write(1)
    story.assert_exact()


def test_a_file_of_which_nothing_was_read_is_read_in_its_copy_while_the_agent_runs(story: Story) -> None:
    story.start()
    eventually(lambda: story.agent.status()["tail"]["files"] == 1, what="the empty file to be known")
    story.agent.freeze()
    story.writer.write(100)
    story.writer.copy_truncate()
    story.writer.write(200)
    story.agent.thaw()
    story.assert_exact()


def test_what_came_and_went_is_read_even_if_the_path_stays_empty(story: Story) -> None:
    story.start()
    story.writer.write(100)
    story.await_delivered(100)
    story.writer.path.rename(f"{story.writer.path}.1")
    eventually(lambda: story.agent.status()["tail"]["rotated_or_deleted"] == 1, what="the agent to see that the path is empty")
    story.agent.freeze()
    story.writer.reopen()
    story.writer.write(100)
    story.writer.path.rename(f"{story.writer.path}.2")
    story.agent.thaw()
    story.assert_exact()


def test_what_a_failed_producer_had_of_a_file_is_read_again_in_its_copy(story: Story, own_kafka: Kafka) -> None:
    story.kafka = own_kafka
    own_kafka.create_topic(story.topic, partitions=1)
    story.start("app.log", "poison.log", max_record="4MiB")
    story.writer.write(100)
    story.await_delivered(100)
    own_kafka.stop()
    (story.logs / "poison.log").write_text(os.urandom(1_000_000).hex() + "\n")
    eventually(lambda: story.agent.status()["kafka"]["in_flight_bytes"] > 1_900_000, what="the poison to be on its way")
    before = story.agent.status()["kafka"]["in_flight_bytes"]
    story.writer.write(100)
    eventually(lambda: story.agent.status()["kafka"]["in_flight_bytes"] > before, what="lines to be on their way")
    story.writer.copy_truncate()
    before = story.agent.status()["kafka"]["in_flight_bytes"]
    story.writer.write(10)
    eventually(lambda: story.agent.status()["kafka"]["in_flight_bytes"] > before, what="the truncation to be seen")
    own_kafka.start()
    story.assert_exact()
