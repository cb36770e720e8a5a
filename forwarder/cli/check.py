"""`forwarder check`: is the configuration right, what does it come to, and does Kafka take it.

What it prints is TOML: fed back in, it loads to the same configuration, but for the masks of secrets. What is not set is a
comment that says what holds instead. With --connect it reads topics without making them, as a producer's question would on
brokers that create topics when asked. Brokers that tell a client's rights (2.3 and later) also say which cannot be written.
"""

from __future__ import annotations

import argparse
import datetime
import re
import socket
import sys
import time
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from forwarder.cli.common import WRONG_CONFIGURATION, add_config_option, load_with_origin
from forwarder.config import MASK, Config, Socket, Tail
from forwarder.configtree import join, quote

if TYPE_CHECKING:
    import msgspec
    from confluent_kafka import KafkaError
    from confluent_kafka.admin import AdminClient
    from confluent_kafka.admin._acl import AclOperation
    from confluent_kafka.admin._metadata import ClusterMetadata

    from forwarder.configload import Loaded

ANSWER_WITHIN, RIGHTS_WITHIN = 10.0, 3.0


def add(commands: argparse._SubParsersAction[Any]) -> None:
    parser = commands.add_parser(
        "check",
        help="validate the configuration and print it with defaults filled in",
        description="Validates the configuration and prints it with defaults filled in and secrets masked.",
        epilog="example: forwarder check --connect -c /etc/forwarder/forwarder.toml",
    )
    add_config_option(parser)
    parser.add_argument("--connect", action="store_true", help="also reach Kafka and look at the topics")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    loaded = load_with_origin(args)
    print("\n".join(as_toml(loaded)), flush=True)
    if not args.connect:
        return 0
    found, errors = connect(loaded.config)
    for line in found:
        print(f"# {line}")
    for line in errors:
        print(line, file=sys.stderr)
    return WRONG_CONFIGURATION if errors else 0


# The configuration as TOML


def as_toml(loaded: Loaded) -> Iterator[str]:
    """The whole configuration, line by line."""
    from forwarder import config, configcheck

    yield f"# from {', '.join(loaded.files) or 'the environment'}"
    for one in configcheck.keys(config.Config):
        value = getattr(loaded.config, one.attribute)
        if one.shape.kind == "array":
            for index, table in enumerate(value):
                yield ""
                yield f"[[{one.name}]]"
                yield from _table(table, f"{one.name}[{index}]", loaded.secrets)
        else:
            yield ""
            yield f"[{one.name}]"
            if one.shape.kind == "table":
                yield from _table(value, one.name, loaded.secrets)
            else:
                yield from _pairs(value, one.name, loaded.secrets)


def _table(table: msgspec.Struct, key: str, secrets: frozenset[str]) -> Iterator[str]:
    from forwarder import configcheck, configvalues

    for one in configcheck.keys(type(table)):
        value = configvalues.written(getattr(table, one.attribute), one.shape)
        if value is None:
            yield f"# {one.name}: not set, {one.shape.unset}"
        else:
            yield f"{one.name} = {_inline(value, f'{key}.{one.name}', secrets)}"


def _pairs(table: dict[str, Any], key: str, secrets: frozenset[str]) -> Iterator[str]:
    for name, value in table.items():
        yield f"{join('', name)} = {_inline(value, join(key, name), secrets)}"


def _inline(value: Any, key: str, secrets: frozenset[str]) -> str:
    if key in secrets:
        return quote(MASK)
    if isinstance(value, dict):
        pairs = list(_pairs(value, key, secrets))
        return f"{{ {', '.join(pairs)} }}" if pairs else "{}"
    if isinstance(value, list):
        return f"[{', '.join(_inline(item, f'{key}[{index}]', secrets) for index, item in enumerate(value))}]"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        # Read again, it must not be taken for a reference.
        return quote(value.replace("$", "$$") if re.search(r"\$[${]", value) else value)
    if isinstance(value, (datetime.date, datetime.time)):
        return value.isoformat()
    return repr(value)


# Kafka


def connect(settings: Config) -> tuple[list[str], list[str]]:
    """What there is to say of Kafka and the topics, and what is wrong with them, a line each."""
    from confluent_kafka.admin import AdminClient

    from forwarder import kafka, kafkaproperties

    troubles: list[KafkaError] = []
    properties = kafka.client_properties(settings)
    properties.update(error_cb=troubles.append, logger=kafkaproperties.quiet)
    admin = AdminClient(properties)
    servers = settings.kafka.bootstrap_servers
    cluster = _cluster(admin, troubles)
    if isinstance(cluster, str):
        advice = "start the broker or correct the address; with TLS or SASL, look at kafka.properties too"
        return [], [f"kafka.bootstrap_servers: no broker answers at {quote(servers)}: {cluster}; {advice}"]
    fixed, open_ended = topics(settings)
    exactly_once = settings.kafka.delivery == "exactly-once"
    wrong = _wrong_topics(admin, cluster, list(fixed), read=exactly_once)
    count = len(cluster.brokers)
    found = [f"Kafka answers at {servers}: {count} broker{'s' if count > 1 else ''}"]
    found += [f"topic {quote(topic)} of {key}: there" for topic, key in fixed.items() if topic not in wrong]
    found += [f"topics {quote(template)} of {key}: not looked at, apps or records decide" for template, key in open_ended.items()]
    errors = [f"{key}: topic {quote(topic)} {wrong[topic]}" for topic, key in fixed.items() if topic in wrong]
    if exactly_once:
        lacking = [f"kafka.delivery: {problem}" for problem in _wrong_for_transactions(admin, settings)]
        found += [] if lacking else ["exactly-once: transactional ids and group may be used"]
        errors += lacking
    return found, errors


def topics(settings: Config) -> tuple[dict[str, str], dict[str, str]]:
    """Topics that records may go to, and templates whose topics nobody can know yet, each with the key it is from."""
    from forwarder.route import make_route

    fixed: dict[str, str] = {}
    open_ended: dict[str, str] = {}
    sources: dict[str, tuple[Socket | Tail, ...]] = {"socket": settings.sockets, "tail": settings.tails}
    for name, group in sources.items():
        for index, source in enumerate(group):
            template, key = (source.topic, f"{name}[{index}].topic") if source.topic else (settings.kafka.topic, "kafka.topic")
            topic = make_route(template, None, app=source.app, host=socket.gethostname()).topic
            # Apps on a socket name themselves.
            if isinstance(topic, str) and not (name == "socket" and "{app}" in template):
                fixed.setdefault(topic, key)
            else:
                open_ended.setdefault(template, key)
    for index, one in enumerate(settings.sockets):
        for place, pattern in enumerate(one.allow_topics):
            key = f"socket[{index}].allow_topics[{place}]"
            (open_ended if re.search(r"[*?[]", pattern) else fixed).setdefault(pattern, key)
    return fixed, open_ended


def _cluster(admin: AdminClient, troubles: list[KafkaError]) -> ClusterMetadata | str:
    """What the cluster says of itself, or why it says nothing."""
    from confluent_kafka import KafkaError, KafkaException

    final = {KafkaError._ALL_BROKERS_DOWN, KafkaError._AUTHENTICATION, KafkaError._SSL}
    until = time.monotonic() + ANSWER_WITHIN
    while True:
        try:
            return admin.list_topics(timeout=1)
        except KafkaException as error:
            admin.poll(0)
            if time.monotonic() > until or any(trouble.code() in final for trouble in troubles):
                causes = [trouble for trouble in troubles if trouble.code() != KafkaError._ALL_BROKERS_DOWN]
                return str((causes or [error.args[0]])[0].str())


def _wrong_for_transactions(admin: AdminClient, settings: Config) -> Iterator[str]:
    """What exactly-once needs beside topics, and cannot use."""
    from confluent_kafka import KafkaError, KafkaException

    from forwarder import kafka

    for name in (kafka.transactional_id(settings), kafka.probe_id(settings)):
        problem = kafka.transactional_problem(settings, name)
        if problem is not None and problem.code() == KafkaError.TRANSACTIONAL_ID_AUTHORIZATION_FAILED:
            yield f"transactional id {quote(name)} may not be used; give this user WRITE and DESCRIBE on it"
        elif problem is not None:
            yield f"transactional id {quote(name)} cannot be used: {problem.str()}"
    group = kafka.transactional_id(settings)
    lacking = f"group {quote(group)} may not be read; give this user READ on it"
    (described,) = admin.describe_consumer_groups(
        [group], include_authorized_operations=True, request_timeout=RIGHTS_WITHIN
    ).values()
    try:
        allowed = described.result().authorized_operations
    except KafkaException as error:
        # Other errors are those of a group, or of the topic that keeps all groups, that is not there yet.
        if error.args[0].code() == KafkaError.GROUP_AUTHORIZATION_FAILED:
            yield lacking
    else:
        if _lacks(allowed, "READ"):
            yield lacking


def _lacks(allowed: Iterable[AclOperation] | None, right: str) -> bool:
    """Whether the broker has said what is allowed, and `right` is not."""
    names = {operation.name for operation in allowed or ()}
    return bool(names) and not names & {right, "ALL"}


def _wrong_topics(admin: AdminClient, cluster: ClusterMetadata, names: list[str], *, read: bool) -> dict[str, str]:
    """Which of the topics cannot be written, or `read` if that is needed too, and why."""
    from confluent_kafka import KafkaError, KafkaException, TopicCollection

    if not names:
        return {}
    missing = "does not exist; create it, or name one that does"
    wrong = {}
    described = admin.describe_topics(TopicCollection(names), include_authorized_operations=True, request_timeout=RIGHTS_WITHIN)
    for name, future in described.items():
        try:
            allowed = future.result().authorized_operations
        except KafkaException as error:
            code = error.args[0].code()
            if code in (KafkaError._TIMED_OUT, KafkaError._UNSUPPORTED_FEATURE):
                # No answer to a question about rights, from an old broker or a mock cluster: the list of topics must do.
                if name not in cluster.topics:
                    wrong[name] = missing
                continue
            refusals = {
                KafkaError.UNKNOWN_TOPIC_OR_PART: missing,
                KafkaError.TOPIC_AUTHORIZATION_FAILED: "may not be looked at; give this user DESCRIBE and WRITE on it",
            }
            wrong[name] = refusals.get(code, f"cannot be looked at: {error.args[0].str()}")
        else:
            if _lacks(allowed, "WRITE"):
                wrong[name] = "may not be written; give this user WRITE on it"
            elif read and _lacks(allowed, "READ"):
                wrong[name] = "may not be read, as exactly-once needs; give this user READ on it"
    return wrong
