"""loguru: the handler is a sink; its `extra` becomes fields of the record's `extra`."""

from loguru import logger

import forwarder

logger.remove()
logger.add(forwarder.SocketHandler(), format="{message}", level="INFO")

logger.bind(order=7).warning("paid {}", 7)
