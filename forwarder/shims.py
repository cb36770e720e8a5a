"""Handlers that take the place of others' in an existing configuration, with only the class path changed: records travel through
the agent.

Their options for a Kafka client are accepted and have no effect, since the agent knows the brokers: no Kafka client runs in the
app. The topic is asked of the agent, which allows what its socket's `allow_topics` has; other records go to the socket's own
topic. The options of `SocketHandler` may be given by name. Standard library only, Python 3.8 and later.
"""

from __future__ import annotations

import logging
from typing import Any

from forwarder.handler import SocketHandler

OURS = ("address", "app", "schema", "backlog", "close_timeout", "drop", "keep_level")


class KafkaLoggingHandler(SocketHandler):
    """Stands in for `python_kafka_logging.KafkaHandler.KafkaLoggingHandler` of taykey/python-kafka-logging.

    `topic` and `key` are asked of the agent. Records of the logger `kafka` are left out, as there.
    """

    def __init__(self, hosts_list: Any, topic: str, key: Any = None, timeout_secs: Any = None, **options: Any) -> None:
        self.hosts_list = hosts_list
        self.timeout_secs = timeout_secs
        if isinstance(key, (int, float)):  # the older signature: (hosts_list, topic, timeout_secs)
            key, self.timeout_secs = None, key
        if isinstance(key, bytes):
            key = key.decode("utf-8", "replace")
        ours = {name: options[name] for name in OURS if name in options}
        super().__init__(ours.pop("address", None), ours.pop("app", None), topic=topic, key=key or None, **ours)

    def emit(self, record: logging.LogRecord) -> None:
        if record.name != "kafka":
            super().emit(record)
