"""The configuration: one frozen tree of structs, which `configload` builds from files and environment.

Each key stands here once, with its type, default and description; reading, checking, `forwarder check` and the JSON Schema all
go by these structs. In them durations are seconds, sizes are bytes and a mode is a number, however they were written;
`configvalues` reads and writes them. Whoever holds a Config need not check anything again: `load` has reported all that is
wrong, every error at once, by file and key.
"""

from __future__ import annotations

import socket
from typing import Annotated, Any, Literal

from msgspec import Meta, Struct, field

DEFAULT_FILE = "/etc/forwarder/forwarder.toml"
DEFAULT_SOCKET = "/run/forwarder/forwarder.sock"
KIB, MIB, GIB, PIB = 1 << 10, 1 << 20, 1 << 30, 1 << 50
COMPRESSED_FILES = ("*.gz", "*.bz2", "*.xz", "*.zst", "*.zip", "*.lz4", "*.Z")


class ConfigError(Exception):
    """The configuration cannot be used; `errors` holds one line for each thing wrong with it."""

    def __init__(self, errors: list[str]) -> None:
        super().__init__("\n".join(errors))
        self.errors = errors


MASK = "********"


def about(description: str, *, kind: str = "", unset: str = "", least: float | None = None, most: float | None = None) -> Meta:
    """What is said of a key: its meaning; the kind that `configvalues` reads it as, where that is more than its type; what
    holds when it is not given and has no default; the smallest and largest value allowed."""
    extra: dict[str, Any] = {}
    for name, value in {"kind": kind, "unset": unset, "least": least, "most": most}.items():
        if value not in ("", None):
            extra[name] = value
    return Meta(description=description, extra=extra or None)


Duration = Annotated[float, Meta(extra={"kind": "duration"})]
"""Seconds; written as "20s"."""

Size = Annotated[int, Meta(extra={"kind": "size"})]
"""Bytes; written as "64KiB" or as an integer."""

Mode = Annotated[int, Meta(extra={"kind": "mode"})]
"""Permission bits; written as "0660"."""

Json = dict[str, Any]
Scalar = str | int | float | bool


class _Table(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A table of the configuration."""


class Agent(_Table, frozen=True, kw_only=True):
    """The agent itself."""

    name: Annotated[
        str,
        about(
            "Identity in metrics, and with exactly-once in transactional id and consumer group: each agent needs its own.",
            kind="name",
            unset="the host name",
        ),
    ] = field(default_factory=socket.gethostname)
    state_dir: Annotated[str, about("Directory of positions, spool and dead letters.", kind="absolute path")] = (
        "/var/lib/forwarder"
    )
    shutdown_timeout: Annotated[
        Duration, about("How long TERM may drain towards Kafka; what is left stays on disk.", least=0, most=86400)
    ] = 20.0


class Kafka(_Table, frozen=True, kw_only=True):
    """Where the records go."""

    bootstrap_servers: Annotated[str, about("Brokers to ask for all others: HOST:PORT, several with commas.", kind="brokers")]
    topic: Annotated[
        str, about("Topic of records; a template of {app}, {host}, {level} and {field:NAME}.", kind="topic template")
    ] = "logs"
    key: Annotated[
        str | None,
        about("Template of the key; records with a key keep their order per key.", kind="template", unset="records have no key"),
    ] = None
    delivery: Annotated[
        Literal["at-least-once", "exactly-once"],
        about("What is promised of records that were acknowledged; exactly-once needs an agent.name that no other agent has."),
    ] = "at-least-once"
    compression: Annotated[Literal["none", "gzip", "snappy", "lz4", "zstd"], about("Codec of the batches sent.")] = "lz4"
    in_flight: Annotated[
        Size, about("Bytes sent and not yet acknowledged; the only place where memory grows with load.", least=MIB, most=2 * GIB)
    ] = 32 * MIB
    properties: Annotated[
        dict[str, Scalar],
        about("Any property of librdkafka, passed on: TLS, SASL, linger.ms and so on.", kind="kafka properties"),
    ] = {}


class Socket(_Table, frozen=True, kw_only=True):
    """A Unix socket that apps log to."""

    path: Annotated[str, about("Where the socket is.", kind="socket path")] = DEFAULT_SOCKET
    mode: Annotated[Mode, about("Permissions of the socket: who may write.")] = 0o660
    group: Annotated[str | None, about("Group of the socket.", kind="group", unset="the agent's own group")] = None
    app: Annotated[str, about("Name of records from connections that do not name themselves.", kind="name")] = "default"
    topic: Annotated[
        str | None, about("Topic of records from this socket; a template.", kind="topic template", unset="as kafka.topic")
    ] = None
    key: Annotated[str | None, about("Key of records from this socket; a template.", kind="template", unset="as kafka.key")] = (
        None
    )
    fields: Annotated[Json, about("Put into every JSON record from this socket, beside those of [fields].", kind="fields")] = {}
    allow_topics: Annotated[
        tuple[str, ...],
        about("Patterns of topics that a greeting may ask for; other greetings get the socket's own topic."),
    ] = ()
    allow_uids: Annotated[
        tuple[Annotated[int, about("A user id.", least=0, most=2**32 - 2)], ...] | None,
        about("User ids that may connect.", unset="whoever may write to the socket"),
    ] = None
    allow_groups: Annotated[
        tuple[Annotated[str, about("A group.", kind="name")], ...] | None,
        about("Groups whose members may connect.", unset="whoever may write to the socket"),
    ] = None
    max_record: Annotated[Size, about("Larger records are cut, marked and counted.", least=KIB, most=16 * MIB)] = MIB
    schema: Annotated[Literal["logstash", "ecs", "otel"], about("JSON layout of records that came pickled.")] = "logstash"


class Multiline(_Table, frozen=True, kw_only=True):
    """How to tell the first line of a record from those that follow."""

    start: Annotated[
        str, about("Regular expression, found in the first line of every record; ^ is the line's start.", kind="pattern")
    ]


class Tail(_Table, frozen=True, kw_only=True):
    """Files that are followed as they grow and rotate."""

    paths: Annotated[
        tuple[Annotated[str, about("A glob.", kind="absolute path")], ...],
        about("Globs of the files, ** included; absolute.", kind="not empty"),
    ]
    exclude: Annotated[tuple[str, ...], about("Globs of files to leave out.")] = COMPRESSED_FILES
    app: Annotated[str, about("Name of the app whose files these are.", kind="name")] = "default"
    topic: Annotated[
        str | None, about("Topic of records from these files; a template.", kind="topic template", unset="as kafka.topic")
    ] = None
    key: Annotated[str | None, about("Key of records from these files; a template.", kind="template", unset="as kafka.key")] = (
        None
    )
    fields: Annotated[Json, about("Put into every JSON record from these files, beside those of [fields].", kind="fields")] = {}
    start: Annotated[
        Literal["beginning", "end"], about("Where to begin in files seen for the first time when the agent first starts.")
    ] = "beginning"
    format: Annotated[
        Literal["auto", "raw"],
        about("auto: a JSON line gets fields spliced in, any other line becomes a JSON record; raw: bytes as they are."),
    ] = "auto"
    multiline: Annotated[
        Literal["python"] | Multiline | None,
        about("Lines that are one record. python: a traceback belongs to its record.", unset="each line is a record"),
    ] = None
    encoding: Annotated[
        str,
        about("Encoding of the files, any text codec of Python; undecodable bytes become U+FFFD and are counted.", kind="codec"),
    ] = "utf-8"
    ignore_older: Annotated[
        Duration | None,
        about("Files not changed for this long are left alone.", least=0, most=3650 * 86400, unset="files of any age"),
    ] = None
    max_record: Annotated[Size, about("Longer lines are cut, marked and counted.", least=KIB, most=16 * MIB)] = MIB


class Spool(_Table, frozen=True, kw_only=True):
    """What came in over sockets and is not in Kafka yet, and what Kafka refused, on disk."""

    max_bytes: Annotated[Size, about("Bytes on disk, all apps together.", least=MIB, most=PIB)] = 2 * GIB
    max_bytes_per_app: Annotated[
        Size, about("Bytes on disk of one app, so that it cannot take the others' room.", least=MIB, most=PIB)
    ] = 512 * MIB
    max_bytes_dead: Annotated[
        Size, about("Bytes of dead letters on disk, all apps together; what is refused beyond is dropped and counted.", most=PIB)
    ] = 256 * MIB
    fsync: Annotated[
        Duration | Literal["always", "never"],
        about("How often the spool is synced; always: an acknowledgement means on the platter.", least=0.001, most=3600),
    ] = 1.0
    when_full: Annotated[
        Literal["block", "drop-oldest", "drop-newest"],
        about("At a full spool; block: apps keep records in their own rings, which then count what they drop."),
    ] = "block"


class Redact(_Table, frozen=True, kw_only=True):
    """Something to be taken out of every record: a ready-made `name`, or a `pattern`."""

    name: Annotated[
        Literal["email", "credit-card", "ipv4", "jwt", "bearer-token", "aws-key", "url-password"] | None,
        about(
            "What is to be taken out; of a bearer token and a password in a URL what stands before it stays.",
            unset="pattern says it",
        ),
    ] = None
    pattern: Annotated[
        str | None,
        about(
            "Regular expression, matched against the record's bytes; refused when it can take long.",
            kind="pattern",
            unset="name says it",
        ),
    ] = None
    replace: Annotated[str, about(r"What stands in its place; of a pattern \1 and \g<name> refer to groups.")] = "[redacted]"


class Http(_Table, frozen=True, kw_only=True):
    """Metrics, health and status over HTTP."""

    listen: Annotated[str, about('HOST:PORT, unix:PATH, or "" for none.', kind="listen address")] = "127.0.0.1:9600"


class Config(_Table, frozen=True, kw_only=True):
    """Everything there is to configure."""

    agent: Agent = field(default_factory=Agent)
    kafka: Kafka
    sockets: Annotated[tuple[Socket, ...], about("Sockets that apps log to.")] = field(default=(), name="socket")
    tails: Annotated[tuple[Tail, ...], about("Files that are followed.")] = field(default=(), name="tail")
    spool: Spool = Spool()
    fields: Annotated[Json, about("Put into every JSON record.", kind="fields")] = {}
    redact: Annotated[tuple[Redact, ...], about("Patterns replaced in every record, in this order.")] = ()
    http: Http = Http()
