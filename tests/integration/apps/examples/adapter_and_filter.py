"""LoggerAdapter and filters: fields for all records of a logger, and records that are left out or changed."""

import logging

import forwarder


class Secrets(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        record.region = "eu"
        return "password" not in record.getMessage()


handler = forwarder.SocketHandler()
handler.addFilter(Secrets())
logging.getLogger("shop.pay").addHandler(handler)
log = logging.LoggerAdapter(logging.getLogger("shop.pay"), {"order": 7})

log.warning("password is 1234")
log.warning("paid %d", 7)
