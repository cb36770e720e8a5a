"""dictConfig with factories `"()"` and references `ext://` and `cfg://`."""

import logging
import logging.config

CONFIG = {
    "version": 1,
    "disable_existing_loggers": False,
    "service": {"name": "shop", "environment": "test"},
    "drops": "newest",
    "formatters": {"ecs": {"()": "forwarder.JSONFormatter", "schema": "ecs", "extra": {"service": "cfg://service"}}},
    "filters": {"orders": {"()": "logging.Filter", "name": "shop"}},
    "handlers": {
        "forwarder": {
            "()": "ext://forwarder.SocketHandler",
            "backlog": "16MiB",
            "drop": "cfg://drops",
            "keep_level": "ERROR",
            "formatter": "ecs",
            "filters": ["orders"],
        }
    },
    "root": {"level": "INFO", "handlers": ["forwarder"]},
}
logging.config.dictConfig(CONFIG)

logging.getLogger("shop.pay").warning("paid %d", 7, extra={"order": 7})
logging.getLogger("other").warning("is filtered out")
