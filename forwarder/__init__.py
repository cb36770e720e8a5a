"""The app's side of forwarder: handlers and formatters for `logging`.

This package's own names need nothing but the standard library, from Python 3.8 on, so that any app can import them. They are
loaded when they are asked for: the agent, which lives in modules of its own that nothing here imports, asks for none of them.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any, List

from forwarder.version import __version__

if TYPE_CHECKING:
    from forwarder.formatter import JSONFormatter, LogstashFormatter, LogstashFormatterV1
    from forwarder.handler import SocketHandler
    from forwarder.shims import KafkaLoggerHandler, KafkaLoggingHandler

__all__ = [
    "JSONFormatter",
    "KafkaLoggerHandler",
    "KafkaLoggingHandler",
    "LogstashFormatter",
    "LogstashFormatterV1",
    "SocketHandler",
    "__version__",
]

_HOMES = {
    "JSONFormatter": "formatter",
    "KafkaLoggerHandler": "shims",
    "KafkaLoggingHandler": "shims",
    "LogstashFormatter": "formatter",
    "LogstashFormatterV1": "formatter",
    "SocketHandler": "handler",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES.values():
        return import_module(f"{__name__}.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> List[str]:
    return sorted({*globals(), *__all__})
