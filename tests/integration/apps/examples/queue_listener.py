"""QueueHandler and QueueListener: with this handler there is no need for them, and where they are they go on working."""

import logging
import logging.handlers
import queue

import forwarder

records: "queue.SimpleQueue[logging.LogRecord]" = queue.SimpleQueue()
listener = logging.handlers.QueueListener(records, forwarder.SocketHandler(), respect_handler_level=True)
log = logging.getLogger("shop.pay")
log.addHandler(logging.handlers.QueueHandler(records))

listener.start()
log.warning("paid %d", 7, extra={"order": 7})
listener.stop()  # the records have reached the handler; logging.shutdown, at exit, sees to the rest
