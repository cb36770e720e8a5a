"""MemoryHandler: what happened before an error is sent with it, at once."""

import logging
import logging.handlers

import forwarder

log = logging.getLogger("shop.pay")
log.setLevel("DEBUG")
log.addHandler(logging.handlers.MemoryHandler(1000, logging.ERROR, forwarder.SocketHandler()))

log.debug("asked the bank")
log.error("paid %d", 7, extra={"order": 7})
