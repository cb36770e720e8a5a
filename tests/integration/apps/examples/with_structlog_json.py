"""structlog, rendering JSON itself: its line is sent as it is."""

import logging

import structlog

import forwarder

handler = forwarder.SocketHandler()
handler.setFormatter(logging.Formatter("%(message)s"))
logging.basicConfig(level="INFO", handlers=[handler])
structlog.configure(
    processors=[
        structlog.processors.TimeStamper("iso", key="@timestamp"),
        structlog.processors.EventRenamer("message"),
        structlog.processors.JSONRenderer(),
    ],
    logger_factory=structlog.stdlib.LoggerFactory(),
)

structlog.get_logger("shop.pay").warning("paid 7", order=7)
