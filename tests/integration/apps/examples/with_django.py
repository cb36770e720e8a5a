"""Django's LOGGING: also what the framework itself logs."""

import logging

import django
from django.conf import settings

settings.configure(
    LOGGING_CONFIG="logging.config.dictConfig",
    LOGGING={
        "version": 1,
        "disable_existing_loggers": False,
        "handlers": {"forwarder": {"class": "forwarder.SocketHandler", "keep_level": "ERROR"}},
        "root": {"handlers": ["forwarder"], "level": "INFO"},
    },
)
django.setup()

logging.getLogger("shop.pay").warning("paid %d", 7, extra={"order": 7})
logging.getLogger("django.request").error("Internal Server Error: /pay", extra={"status_code": 500})
