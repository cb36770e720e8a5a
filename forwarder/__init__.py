"""The app's side of forwarder: handlers and formatters for `logging`.

This package's own names need nothing but the standard library, from Python 3.8 on, so that any app can import them. The agent
lives in modules of its own that nothing here imports.
"""

from forwarder.formatter import JSONFormatter, LogstashFormatter, LogstashFormatterV1
from forwarder.handler import SocketHandler
from forwarder.shims import KafkaLoggerHandler, KafkaLoggingHandler
from forwarder.version import __version__

__all__ = [
    "JSONFormatter",
    "KafkaLoggerHandler",
    "KafkaLoggingHandler",
    "LogstashFormatter",
    "LogstashFormatterV1",
    "SocketHandler",
    "__version__",
]
