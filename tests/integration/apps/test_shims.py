"""Configurations for other Kafka handlers work with only class paths changed; their topics are the agent's to allow."""

from __future__ import annotations

import json
import logging
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import AgentFactory, AppFactory
from tests.harness.agent import Agent
from tests.harness.apps import finish
from tests.harness.kafka import Kafka
from tests.harness.wait import eventually

# example/logging.conf of taykey/python-kafka-logging, as it stands there.
LOGGING_CONF = """\
[loggers]
keys=root

[handlers]
keys=consoleHandler,fileHandler,kafkaHandler

[formatters]
keys=simpleFormatter,logstashFormatter

[logger_root]
level=DEBUG
handlers=consoleHandler,fileHandler,kafkaHandler
formatter=simpleFormatter

[handler_fileHandler]
class=logging.handlers.WatchedFileHandler
level=DEBUG
formatter=simpleFormatter
args=('logs/app.log', 'a')

[handler_kafkaHandler]
class=KafkaHandler.KafkaLoggingHandler
level=DEBUG
formatter=logstashFormatter
args=("kafka-srv1:port, kafka-srv2:port, kafka-srv3:port", "topic_name")

[handler_consoleHandler]
class=StreamHandler
level=DEBUG
formatter=simpleFormatter
args=(sys.stdout,)

[formatter_simpleFormatter]
format=%(asctime)s - %(levelname)s - %(name)s - %(message)s

[formatter_logstashFormatter]
class=logstash_formatter.LogstashFormatter
format={"extra": {"appName": "myPythonApp", "environment":  "AWS-Test"}}"""

FROM_FILE = """
import logging, logging.config
logging.config.fileConfig("logging.conf")
log = logging.getLogger("shop.pay")
for number in range(100):
    log.info("paid %d", number, extra={"order": number})
logging.getLogger("kafka").warning("of a Kafka client")
try:
    1 / 0
except ZeroDivisionError:
    log.exception("failed")
"""


@pytest.fixture
def asked_for(kafka: Kafka) -> Iterator[str]:
    """The topic that the file names."""
    kafka.create_topic("topic_name")
    yield "topic_name"
    kafka.delete_topic("topic_name")


@pytest.fixture
def allowing(kafka: Kafka, topic: str, agent: AgentFactory, directory: Path) -> Agent:
    """An agent whose socket allows the topic `topic_name` and those that begin with `t-`."""
    socket = {"path": str(directory / "s.sock"), "allow_topics": ["topic_name", "t-*"]}
    one = agent({"kafka": {"bootstrap_servers": kafka.bootstrap, "topic": topic}, "socket": [socket]})
    one.start()
    return one


@pytest.mark.parametrize("formatter", ["forwarder.LogstashFormatter", "logstash_formatter.LogstashFormatter"])
def test_the_logging_conf_of_python_kafka_logging_loads_and_all_three_outputs_hold_the_records(
    formatter: str, kafka: Kafka, asked_for: str, allowing: Agent, app: AppFactory, directory: Path
) -> None:
    conf = LOGGING_CONF.replace("KafkaHandler.KafkaLoggingHandler", "forwarder.KafkaLoggingHandler")
    (directory / "logging.conf").write_text(conf.replace("logstash_formatter.LogstashFormatter", formatter))
    (directory / "logs").mkdir()
    env = {"FORWARDER_SOCKET": str(allowing.socket), "PYTHONWARNINGS": "ignore::DeprecationWarning"}
    printed = finish(app(FROM_FILE, env=env, directory=directory))
    in_file = (directory / "logs" / "app.log").read_text()
    for text in (printed, in_file):
        assert [line.split(" - ", 1)[1] for line in text.splitlines()[:100]] == [
            f"INFO - shop.pay - paid {number}" for number in range(100)
        ]
        assert "WARNING - kafka - of a Kafka client" in text
        assert "ZeroDivisionError" in text
    records = [json.loads(value) for value in kafka.values(asked_for, expected=101)]
    paid = [record for record in records if record["@message"] != "failed"]
    assert sorted(record["@fields"]["order"] for record in paid) == list(range(100))
    assert {record["@message"] for record in paid} == {f"paid {number}" for number in range(100)}
    assert {(record["appName"], record["environment"]) for record in records} == {("myPythonApp", "AWS-Test")}
    failed = next(record for record in records if record["@message"] == "failed")
    assert failed["@fields"]["exception"][-1] == "ZeroDivisionError: division by zero\n"


KEYED = """
import logging, sys
import forwarder
for key in sys.argv[2:]:
    log = logging.getLogger(key)
    log.addHandler(forwarder.KafkaLoggingHandler("kafka-srv1:9092", sys.argv[1], key=key))
    for number in range(20):
        log.error("%d", number)
"""


def test_keyed_records_have_their_key_and_keep_their_order(kafka: Kafka, topic: str, allowing: Agent, app: AppFactory) -> None:
    kafka.create_topic(f"{topic}-keyed")
    finish(app(KEYED, f"{topic}-keyed", "ann", "bob", env={"FORWARDER_SOCKET": str(allowing.socket)}))
    records = kafka.records(f"{topic}-keyed", expected=40)
    for key in (b"ann", b"bob"):
        mine = [record for record in records if record.key == key]
        assert len({record.partition for record in mine}) == 1
        assert [json.loads(record.value)["message"] for record in mine] == [str(number) for number in range(20)]


def test_a_topic_the_agent_does_not_allow_is_not_written_to_and_the_records_are_in_its_own(
    kafka: Kafka, topic: str, running: Agent, env: dict[str, str], app: AppFactory
) -> None:
    kafka.create_topic(f"{topic}-secret")
    finish(app(KEYED, f"{topic}-secret", "ann", env=env))
    assert len(kafka.values(topic, expected=20)) == 20
    assert sum(kafka.end_offsets(f"{topic}-secret").values()) == 0
    eventually(lambda: f"{topic}-secret" in running.log(), what="a warning")


RED_HAT = """
import logging, sys
import forwarder

def preprocess(record):
    record["seen"] = True
    return record

log = logging.getLogger("shop")
log.setLevel("DEBUG")
handler = forwarder.KafkaLoggerHandler(
    "kafka-srv1:9092", sys.argv[1], "SSL", ssl_cafile="/etc/ca.pem", kafka_producer_args={"api_version_auto_timeout_ms": 1000},
    additional_fields={"service": "shop"}, flush_buffer_size=3, flush_interval=3.0, unhandled_exception_logger=log,
    log_preprocess=[preprocess],
)
log.addHandler(handler)
log.info("paid %d of %s", 3, float("inf"), extra={"order": None})
log.debug({"a": 1})
logging.getLogger("kafka.client").addHandler(handler)
logging.getLogger("kafka.client").error("of the Kafka client")
1 / 0
"""


def test_the_handler_of_redhat_aqe_has_a_stand_in(kafka: Kafka, topic: str, allowing: Agent, app: AppFactory) -> None:
    kafka.create_topic(f"{topic}-redhat")
    running = app(RED_HAT, f"{topic}-redhat", env={"FORWARDER_SOCKET": str(allowing.socket)})
    said, _ = running.communicate(timeout=60)
    assert running.returncode == 1
    assert said.count("ZeroDivisionError: division by zero") == 1
    records: dict[Any, dict[str, Any]] = {}
    for value in kafka.values(f"{topic}-redhat", expected=3):
        one = json.loads(value)
        records[one["msg"]] = one
    paid = records["paid %d of %s"]
    assert (paid["args"], paid["message"], paid["order"]) == (["3", "inf"], "paid 3 of inf", "")
    assert (paid["service"], paid["seen"], paid["name"], paid["levelname"]) == ("shop", True, "shop", "INFO")
    assert {"host", "host_ip", "timestamp", "exc_info", "pathname", "process", "threadName"} <= paid.keys()
    assert not {"msecs", "relativeCreated", "levelno", "created"} & paid.keys()
    unhandled = records["'Unhandled top-level exception'"]
    assert "ZeroDivisionError" in unhandled["exc_text"]
    assert unhandled["exc_info"].startswith("(<class 'ZeroDivisionError'>")
    assert "{'a': 1}" in records


def test_the_stand_in_for_redhat_aqe_does_not_touch_a_record() -> None:
    from forwarder import KafkaLoggerHandler

    handler = KafkaLoggerHandler("h", "orders", additional_fields=None, address="/given", app="shop")
    assert (handler.topic, handler.address, handler.app) == ("orders", "/given", "shop")
    record = logging.LogRecord("a", 40, "p", 1, ["msg"], (), (ValueError, ValueError("x"), None))
    line = json.loads(handler.makePickle(record))
    assert (line["msg"], line["exc_info"]) == (repr(["msg"]), repr(record.exc_info))
    assert str(record.msg) == "['msg']"
    assert textwrap.dedent(record.exc_text or "") == "ValueError: x"
