"""What a configuration may say in `kafka.properties`, found out before anything runs.

librdkafka is the judge: each property is set on a client that is then not made, and the whole producer is made once, without
an address to connect to, since some values are wrong only together. What librdkafka would take, but the agent's promises
rest on, is refused here, with the key that is meant for it. librdkafka is loaded only when there are properties to look at.
"""

from __future__ import annotations

import logging
import os
import re
from typing import Any

from forwarder.config import Config

_NEVER_GIVE_UP = "the agent decides when a record is given up, and it never gives up one that may still be taken"
_IN_ORDER = "the agent needs it to lose nothing and keep the order"
_OURS = {
    "bootstrap.servers": "use kafka.bootstrap_servers",
    "metadata.broker.list": "use kafka.bootstrap_servers",
    "acks": f"always all: {_IN_ORDER}",
    "request.required.acks": f"always all: {_IN_ORDER}",
    "enable.idempotence": f"always true: {_IN_ORDER}",
    "enable.gapless.guarantee": "the agent turns it on and off itself, to lose nothing and keep the order",
    "message.timeout.ms": _NEVER_GIVE_UP,
    "delivery.timeout.ms": _NEVER_GIVE_UP,
    "message.send.max.retries": _NEVER_GIVE_UP,
    "retries": _NEVER_GIVE_UP,
    "delivery.report.only.error": "always false: the agent must hear of every batch that arrived",
    "compression.codec": "use kafka.compression",
    "compression.type": "use kafka.compression",
    "queue.buffering.max.kbytes": "use kafka.in_flight",
    "queue.buffering.max.messages": "use kafka.in_flight",
    "transactional.id": "the agent makes it from agent.name when kafka.delivery asks for transactions",
}
_TOKENS = "sasl.oauthbearer.token.endpoint.url"
_CALLBACK = re.compile(r"logger|on_\w+|\w+_cb")
_SECRET = re.compile(r"passw|passphrase|secret|credential|token$|key\.pem|oauthbearer\.config")
_FILE = re.compile(r".*\.location")

quiet = logging.getLogger("forwarder.kafka.check")
quiet.addHandler(logging.NullHandler())
quiet.propagate = False


def is_secret(name: str) -> bool:
    """Whether the value of the property is not to be shown."""
    return _SECRET.search(name) is not None


def trouble(name: str, value: Any) -> str:
    """What is wrong with one property, or an empty text."""
    if name in _OURS:
        return f"not for kafka.properties; {_OURS[name]}"
    if _CALLBACK.fullmatch(name):
        return "a function of a program; allowed: properties that are a string, number or boolean"
    if message := _refusal(name, value):
        dotted = name.replace("_", ".")
        if dotted != name and not _refusal(dotted, value):
            return f'librdkafka: {message}; did you mean "{dotted}"?'
        return f"librdkafka: {message}"
    if _FILE.fullmatch(name) and value != "probe":
        return _unreadable(str(value))
    return ""


def trouble_together(config: Config) -> str:
    """Why librdkafka will not make the agent's producer, or an empty text."""
    from confluent_kafka import KafkaException, Producer

    from forwarder import kafka

    exactly_once = config.kafka.delivery == "exactly-once"
    properties = kafka.producer_properties(config, kafka.Way.TRANSACTION if exactly_once else kafka.Way.GAPLESS)
    del properties["bootstrap.servers"]
    if _TOKENS in properties:
        # A client that is given up waits for a token that is on its way: at this address it is refused at once.
        properties[_TOKENS] = "http://127.0.0.1:1/"
    try:
        Producer({**properties, "logger": quiet})
    except KafkaException as error:
        return _words(error).removeprefix("Failed to create producer: ")
    return ""


def _refusal(name: str, value: Any) -> str:
    from confluent_kafka import KafkaException, Producer

    # Properties are set in this order; the second, which nobody knows, keeps the client from being made.
    stop = "forwarder.stop"
    try:
        Producer({name: value, stop: ""})
    except KafkaException as error:
        message = _words(error)
        return "" if f'"{stop}"' in message else message
    except TypeError as error:
        return str(error)
    raise AssertionError(f"librdkafka knows a property {stop}")


def _words(error: Any) -> str:
    return str(error.args[0].str()).strip()


def _unreadable(path: str) -> str:
    try:
        os.close(os.open(path, os.O_RDONLY))
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        return f"cannot be read: {reason}; allowed: a file that the agent's user can read"
    return ""
