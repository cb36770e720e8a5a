"""The three lines of the README, and a record."""

import logging

import forwarder

logging.getLogger().addHandler(forwarder.SocketHandler(app="three_lines"))
logging.warning("paid %d", 7, extra={"order": 7})
