"""structlog, rendering through `logging`: the event's fields become fields of the record."""

import logging

import structlog

import forwarder

logging.basicConfig(level="INFO", handlers=[forwarder.SocketHandler()])
structlog.configure(
    processors=[structlog.contextvars.merge_contextvars, structlog.stdlib.render_to_log_kwargs],
    logger_factory=structlog.stdlib.LoggerFactory(),
    wrapper_class=structlog.stdlib.BoundLogger,
)

structlog.contextvars.bind_contextvars(request="r-1")
structlog.get_logger("shop.pay").warning("paid 7", order=7)
