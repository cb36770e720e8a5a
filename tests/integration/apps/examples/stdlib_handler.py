"""The standard library's own handler, in an app that cannot carry ours: no acknowledgements."""

import logging
import logging.handlers
import os

logging.getLogger("shop.pay").addHandler(logging.handlers.SocketHandler(os.environ["FORWARDER_SOCKET"], None))

logging.getLogger("shop.pay").warning("paid %d", 7, extra={"order": 7})
