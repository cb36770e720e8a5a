"""Handlers that take the place of others' in an existing configuration, with only the class path changed: records travel through
the agent.

Their options for a Kafka client are accepted and have no effect, since the agent knows the brokers: no Kafka client runs in the
app. The topic is asked of the agent, which allows what its socket's `allow_topics` has; other records go to the socket's own
topic. The options of `SocketHandler` may be given by name. Standard library only, Python 3.8 and later.
"""

from __future__ import annotations

import logging
import socket
import sys
from collections.abc import Callable, Iterable, Mapping
from types import TracebackType
from typing import Any

from forwarder.formatter import dumps, repr_of, text_of, timestamp
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


class KafkaLoggerHandler(SocketHandler):
    """Stands in for `kafka_logger.handlers.KafkaLoggingHandler` of redhat-aqe/kafka-logging-handler.

    Records look as they do there: the record's attributes but for times and the number of the level, `timestamp`, `host`,
    `host_ip`, `additional_fields`; then they go through the functions in `log_preprocess`, one after another. Records of the
    logger `kafka.client` are left out. What nobody has caught is logged to `unhandled_exception_logger`, and shown as before.
    """

    LEFT_OUT = frozenset({"msecs", "relativeCreated", "levelno", "created"})

    def __init__(
        self,
        hosts_list: Any,
        topic: str,
        security_protocol: str = "SSL",
        ssl_cafile: str | None = None,
        kafka_producer_args: Mapping[str, Any] | None = None,
        additional_fields: Mapping[str, Any] | None = None,
        flush_buffer_size: int | None = None,
        flush_interval: float = 5.0,
        unhandled_exception_logger: logging.Logger | None = None,
        log_preprocess: Iterable[Callable[[Any], Any]] | None = None,
        **options: Any,
    ) -> None:
        ours = {name: options[name] for name in OURS if name in options}
        super().__init__(ours.pop("address", None), ours.pop("app", None), topic=topic, **ours)
        self.formatter = None  # as there: its text goes nowhere, but a formatter sets `message`, `asctime`, `exc_text`
        host = socket.gethostname()
        self.additional_fields = {**(additional_fields or {}), "host": host, "host_ip": _ip_of(host)}
        self.log_preprocess = list(log_preprocess or ())
        if unhandled_exception_logger is not None:
            _log_unhandled(unhandled_exception_logger)

    def emit(self, record: logging.LogRecord) -> None:
        if record.name != "kafka.client":
            super().emit(record)

    def makePickle(self, record: logging.LogRecord) -> bytes:
        self.format(record)
        fields: Any = {**self.additional_fields, "timestamp": timestamp(record.created)}
        for name, value in record.__dict__.items():
            if name not in self.LEFT_OUT:
                fields[name] = "" if value is None else value
        fields["args"] = [repr_of(value) for value in record.args or ()]  # of a dict the names, as there
        fields["msg"] = repr_of(record.msg) if record.exc_info else text_of(record.msg)
        if record.exc_info:
            fields["exc_info"] = repr_of(record.exc_info)
        for change in self.log_preprocess:
            fields = change(fields)
        return f"{dumps(fields)}\n".encode("utf-8", "replace")


def _ip_of(host: str) -> str:
    try:
        return socket.gethostbyname(host)
    except OSError:
        return ""


def _log_unhandled(logger: logging.Logger) -> None:
    shown_by = sys.excepthook

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        logger.error("Unhandled top-level exception", exc_info=(kind, error, trace))
        shown_by(kind, error, trace)

    sys.excepthook = hook
