"""What a wrong configuration is told: every error at once, one line each, with file, key, what was found and what is allowed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from forwarder import config, configload

KAFKA = '[kafka]\nbootstrap_servers = "k:9092"\n'
TOPIC = "letters, digits, . _ - and {app}, {host}, {level} or {field:NAME}, at most 249 characters"
SIZE = 'a size such as "64KiB" or "2GiB", or a number of bytes'
DURATION = 'a duration such as "500ms", "20s", "5m" or "1h"'
KAFKA_KEYS = "bootstrap_servers, topic, key, delivery, compression, in_flight, properties"
PORT = "a port from 1 to 65535"
ENVIRONMENT = {"TOPIC": "my topic", "A_PASSWORD": "hunter 2"}


def kafka(text: str) -> str:
    return KAFKA + text


def properties(text: str) -> str:
    return f"{KAFKA}[kafka.properties]\n{text}"


# What it is, the file, and all that is said of it; {F} stands for the file.
BAD = [
    # Keys
    ("an empty file lacks the broker", "", "{F}: kafka.bootstrap_servers: missing; required: HOST:PORT, several with commas"),
    ("a misspelt key names the nearest one", kafka('topc = "x"'), '{F}: kafka.topc: unknown key; did you mean "topic"?'),
    ("a misspelt table names the nearest one", kafka("[[sockets]]"), '{F}: sockets: unknown key; did you mean "socket"?'),
    ("a misspelt key in the second table has its index", kafka('[[tail]]\npaths = ["/a"]\n[[tail]]\npaths = ["/b"]\nap = "x"'),
     '{F}: tail[1].ap: unknown key; did you mean "app"?'),
    ("a key of another table names that one", kafka('max_bytes = "1GiB"'),
     '{F}: kafka.max_bytes: unknown key; did you mean "spool.max_bytes"?'),
    ("a table below the wrong one names its place", kafka("fields = {}"),
     '{F}: kafka.fields: unknown key; did you mean "[fields]"?'),
    ("a key like no other lists all", kafka("bogus = 1"), f"{{F}}: kafka.bogus: unknown key; allowed: {KAFKA_KEYS}"),
    ("a key with a space is quoted", kafka('"a b" = 1'), f'{{F}}: kafka."a b": unknown key; allowed: {KAFKA_KEYS}'),
    # Planned
    ("limits are said not to be built yet", kafka("[limit]\nrecords_per_second = 5"),
     "{F}: limit: limits are not available in this version; remove it, spool.max_bytes_per_app bounds each app"),
    ("multiline knows one word", kafka('[[tail]]\npaths = ["/x"]\nmultiline = "java"'),
     '{F}: tail[0].multiline: "java"; allowed: "python", or { start = … }'),
    ("multiline has a pattern", kafka('[[tail]]\npaths = ["/x"]\nmultiline = { start = "(" }'),
     '{F}: tail[0].multiline.start: "(": missing ), unterminated subpattern at position 0; '
     "allowed: a regular expression of Python that does not match empty text"),
    ("multiline has no other key", kafka('[[tail]]\npaths = ["/x"]\nmultiline = { stat = "x" }'),
     '{F}: tail[0].multiline.stat: unknown key; did you mean "start"?\n'
     "{F}: tail[0].multiline.start: missing; required: a regular expression of Python that does not match empty text"),
    ("a delivery that nobody offers", kafka('delivery = "exactly once"'),
     '{F}: kafka.delivery: "exactly once"; allowed: "at-least-once", "exactly-once"'),
    ("properties that are wrong only in transactions",
     kafka('delivery = "exactly-once"\nproperties = { "transaction.timeout.ms" = 1000, "socket.timeout.ms" = 60000 }'),
     "{F}: kafka.properties: librdkafka refuses them together: "
     "`socket.timeout.ms` must be set <= `transaction.timeout.ms` + 100"),
    # Types
    ("a number for a table", "kafka = 5", "{F}: kafka: integer 5; allowed: a table"),
    ("one table where several may stand", kafka('[socket]\npath = "/x"'),
     "{F}: socket: a table; allowed: an array of tables, each under [[socket]]"),
    ("a number for a text", kafka("topic = 5"), f"{{F}}: kafka.topic: integer 5; allowed: {TOPIC}"),
    ("a text for an array", kafka('[[tail]]\npaths = "/x"'),
     '{F}: tail[0].paths: "/x"; allowed: an array of absolute paths, at least one'),
    ("a boolean for a size", kafka("in_flight = true"), f"{{F}}: kafka.in_flight: boolean true; allowed: {SIZE}"),
    ("a date for a text", kafka("key = 2026-01-02"),
     "{F}: kafka.key: date or time 2026-01-02; allowed: text with {app}, {host}, {level} or {field:NAME} in it"),
    # Choices
    ("a codec that Kafka has not", kafka('compression = "brotli"'),
     '{F}: kafka.compression: "brotli"; allowed: "none", "gzip", "snappy", "lz4", "zstd"'),
    ("an unknown schema", kafka('[[socket]]\nschema = "gelf"'),
     '{F}: socket[0].schema: "gelf"; allowed: "logstash", "ecs", "otel"'),
    ("an unknown way to be full", kafka('[spool]\nwhen_full = "explode"'),
     '{F}: spool.when_full: "explode"; allowed: "block", "drop-oldest", "drop-newest"'),
    # Sizes and durations
    ("20 parsecs", kafka('in_flight = "20 parsecs"'), f'{{F}}: kafka.in_flight: "20 parsecs"; allowed: {SIZE}'),
    ("an unknown unit", kafka('[[socket]]\nmax_record = "1.5XiB"'), f'{{F}}: socket[0].max_record: "1.5XiB"; allowed: {SIZE}'),
    ("a negative size", kafka("in_flight = -5"), "{F}: kafka.in_flight: integer -5; allowed: a size from 1MiB to 2GiB"),
    ("a size above its bound", kafka('in_flight = "16GiB"'), '{F}: kafka.in_flight: "16GiB"; allowed: a size from 1MiB to 2GiB'),
    ("a size that no machine holds", kafka("[spool]\nmax_bytes = 99999999999999999999"),
     "{F}: spool.max_bytes: integer 99999999999999999999; allowed: a size from 1MiB to 1024TiB"),
    ("an app's share above the whole", kafka('[spool]\nmax_bytes = "1MiB"\nmax_bytes_per_app = "2MiB"'),
     '{F}: spool.max_bytes_per_app: "2MiB"; allowed: at most spool.max_bytes, which is 1MiB'),
    ("a duration without a unit", kafka("[agent]\nshutdown_timeout = 20"),
     f"{{F}}: agent.shutdown_timeout: integer 20; allowed: {DURATION}"),
    ("a negative duration", kafka('[agent]\nshutdown_timeout = "-1s"'),
     f'{{F}}: agent.shutdown_timeout: "-1s"; allowed: {DURATION}'),
    ("a duration above its bound", kafka('[agent]\nshutdown_timeout = "2d"'),
     '{F}: agent.shutdown_timeout: "2d"; allowed: a duration from 0s to 24h'),
    ("a duration that may be a word", kafka('[spool]\nfsync = "sometimes"'),
     '{F}: spool.fsync: "sometimes"; allowed: "always", "never", or a duration from 1ms to 1h'),
    # Addresses
    ("no broker", '[kafka]\nbootstrap_servers = ""', '{F}: kafka.bootstrap_servers: ""; allowed: HOST:PORT, several with commas'),
    ("a broker's port out of range", '[kafka]\nbootstrap_servers = "k:9092,k:99999"',
     f'{{F}}: kafka.bootstrap_servers: "k:9092,k:99999" with port 99999; allowed: {PORT}'),
    ("an HTTP port out of range", kafka('[http]\nlisten = "127.0.0.1:70000"'),
     f'{{F}}: http.listen: "127.0.0.1:70000" with port 70000; allowed: {PORT}'),
    ("a port alone", kafka('[http]\nlisten = "9600"'),
     '{F}: http.listen: "9600"; allowed: HOST:PORT, unix:PATH with an absolute path, or "" for none'),
    # Templates
    ("a topic with a blank", kafka('topic = "a b"'), f'{{F}}: kafka.topic: "a b" with " " in it; allowed: {TOPIC}'),
    ("an unknown part of a template", kafka('topic = "logs.{ap}"'),
     f'{{F}}: kafka.topic: "logs.{{ap}}" with an unknown part in braces; allowed: {TOPIC}'),
    ("a brace that is not closed", kafka('key = "{app"'),
     '{F}: kafka.key: "{app" with an unknown part in braces; allowed: text with {app}, {host}, {level} or {field:NAME} in it'),
    ("an empty topic", kafka('[[socket]]\ntopic = ""'), f'{{F}}: socket[0].topic: ""; allowed: {TOPIC}'),
    ("a topic that Kafka reserves", kafka('topic = ".."'), f'{{F}}: kafka.topic: ".." is no topic of Kafka; allowed: {TOPIC}'),
    ("a topic that is too long", kafka(f'topic = "{"x" * 250}"'),
     f'{{F}}: kafka.topic: "{"x" * 57}..." of 250 characters; allowed: {TOPIC}'),
    ("a line feed cannot break the line", kafka('topic = "a\\nb"'),
     f'{{F}}: kafka.topic: "a\\nb" with "\\n" in it; allowed: {TOPIC}'),
    ("nor can a line separator", kafka('topic = "a\\u2028b"'),
     f'{{F}}: kafka.topic: "a\\u2028b" with "\\u2028" in it; allowed: {TOPIC}'),
    # Sockets
    ("modes of two sockets", kafka('[[socket]]\nmode = "0990"\n[[socket]]\npath = "/b"\nmode = 660'),
     '{F}: socket[0].mode: "0990"; allowed: an octal string such as "0660"\n'
     '{F}: socket[1].mode: integer 660; allowed: an octal string such as "0660"'),
    ("two sockets at one path", kafka('[[socket]]\npath = "/a"\n[[socket]]\npath = "/x/../a"'),
     '{F}: socket[1].path: "/x/../a" is also the path of socket[0]; allowed: a path of its own'),
    ("two sockets at the default path", kafka('[[socket]]\napp = "a"\n[[socket]]\napp = "b"'),
     '{F}: socket[1].path: "/run/forwarder/forwarder.sock" is also the path of socket[0]; allowed: a path of its own'),
    ("HTTP at the path of a socket", kafka('[[socket]]\npath = "/a"\n[http]\nlisten = "unix:/a"'),
     '{F}: http.listen: "/a" is also the path of socket[0]; allowed: a path of its own'),
    ("a relative path", kafka('[[socket]]\npath = "run/x.sock"'),
     '{F}: socket[0].path: "run/x.sock"; allowed: an absolute path of at most 107 bytes'),
    ("a path too long for a socket", kafka(f'[[socket]]\npath = "/{"x" * 107}"'),
     f'{{F}}: socket[0].path: "/{"x" * 56}..." of 108 bytes; allowed: an absolute path of at most 107 bytes'),
    ("an unknown group", kafka('[[socket]]\ngroup = "no-such-group"'),
     '{F}: socket[0].group: "no-such-group"; allowed: the name or number of a group of this machine'),
    ("an empty app", kafka('[[socket]]\napp = ""'),
     '{F}: socket[0].app: ""; allowed: a string that is not empty, of printable characters'),
    ("user ids that are none", kafka('[[socket]]\nallow_uids = [1, -2, "x", 4294967296]'),
     "{F}: socket[0].allow_uids[1]: integer -2; allowed: an integer from 0 to 4294967294\n"
     '{F}: socket[0].allow_uids[2]: "x"; allowed: an integer from 0 to 4294967294\n'
     "{F}: socket[0].allow_uids[3]: integer 4294967296; allowed: an integer from 0 to 4294967294"),
    # Tails
    ("a tail without paths", kafka("[[tail]]"),
     "{F}: tail[0].paths: missing; required: an array of absolute paths, at least one"),
    ("a tail with no path", kafka("[[tail]]\npaths = []"),
     "{F}: tail[0].paths: an empty array; allowed: an array of absolute paths, at least one"),
    ("a tail of a relative path", kafka('[[tail]]\npaths = ["/a", "logs/*.log"]'),
     '{F}: tail[0].paths[1]: "logs/*.log"; allowed: an absolute path'),
    ("an unknown encoding", kafka('[[tail]]\npaths = ["/x"]\nencoding = "utf-9"'),
     '{F}: tail[0].encoding: "utf-9"; allowed: a text encoding of Python, such as "utf-8" or "gb18030"'),
    ("an encoding that is not of text", kafka('[[tail]]\npaths = ["/x"]\nencoding = "hex"'),
     '{F}: tail[0].encoding: "hex"; allowed: a text encoding of Python, such as "utf-8" or "gb18030"'),
    # Redaction and fields
    ("a pattern that does not compile", kafka('[[redact]]\npattern = "("\nreplace = ""'),
     '{F}: redact[0].pattern: "(": missing ), unterminated subpattern at position 0; '
     "allowed: a regular expression of Python that does not match empty text"),
    ("a pattern that matches everywhere", kafka('[[redact]]\npattern = "a*"\nreplace = ""'),
     '{F}: redact[0].pattern: "a*", which matches empty text and so between all bytes; '
     "allowed: a regular expression of Python that does not match empty text"),
    ("a replacement that refers to no group", kafka("[[redact]]\npattern = 'a'\nreplace = '\\1'"),
     '{F}: redact[0].replace: "\\\\1": invalid group reference 1 at position 1; allowed: references to groups of pattern'),
    ("nothing to redact", kafka('[[redact]]\nreplace = "a"'),
     "{F}: redact[0]: neither name nor pattern; allowed: one of them"),
    ("a ready-made redaction and a pattern", kafka('[[redact]]\nname = "jwt"\npattern = "a"'),
     "{F}: redact[0]: both name and pattern; allowed: one of them"),
    ("a redaction that there is not", kafka('[[redact]]\nname = "mail"'),
     '{F}: redact[0].name: "mail"; allowed: "email", "credit-card", "ipv4", "jwt", "bearer-token", "aws-key", "url-password"'),
    ("a pattern that may take for ever", kafka("[[redact]]\npattern = '(a+)+$'"),
     "{F}: redact[0].pattern: \"(a+)+$\": a record of some kilobytes such as 'aaaaaaaaaaaaaaaa…' takes it more than 500 ms; "
     "allowed: a pattern that is fast whatever a record holds: bound what it repeats, as in {1,64}"),
    ("fields that JSON has not", kafka('[fields]\nx = inf\ny = 99999999999999999999\n"a b" = [nan]'),
     "{F}: fields.x: float inf; allowed: a number that JSON has\n"
     "{F}: fields.y: integer 99999999999999999999; allowed: an integer of 64 bits\n"
     '{F}: fields."a b"[0]: float nan; allowed: a number that JSON has'),
    # Properties of librdkafka
    ("a property that nobody knows", properties('"lingr.ms" = 5'),
     '{F}: kafka.properties."lingr.ms": integer 5; librdkafka: No such configuration property: "lingr.ms"'),
    ("a property with underscores", properties("linger_ms = 5"),
     '{F}: kafka.properties.linger_ms: integer 5; '
     'librdkafka: No such configuration property: "linger_ms"; did you mean "linger.ms"?'),
    ("a property with a bad value", properties('"socket.keepalive.enable" = "maybe"'),
     '{F}: kafka.properties."socket.keepalive.enable": "maybe"; '
     'librdkafka: Expected bool value for "socket.keepalive.enable": true or false'),
    ("a property out of range", properties('"batch.num.messages" = 0'),
     '{F}: kafka.properties."batch.num.messages": integer 0; '
     'librdkafka: Configuration property "batch.num.messages" value 0 is outside allowed range 1..1000000'),
    ("a property without quotes", properties('sasl.username = "x"'),
     '{F}: kafka.properties.sasl: a table; allowed: a string, integer, float or boolean; '
     'quote names with dots: "sasl.username" = …'),
    ("a property that is code", properties('error_cb = "x"'),
     '{F}: kafka.properties.error_cb: "x"; a function of a program; allowed: properties that are a string, number or boolean'),
    ("a certificate that is not there", properties('"ssl.ca.location" = "/nonexistent/ca.pem"'),
     '{F}: kafka.properties."ssl.ca.location": "/nonexistent/ca.pem"; cannot be read: No such file or directory; '
     "allowed: a file that the agent's user can read"),
    ("properties that are wrong together",
     properties('"security.protocol" = "sasl_ssl"\n"sasl.mechanism" = "PLAIN"\n"sasl.username" = "x"'),
     "{F}: kafka.properties: librdkafka refuses them together: sasl.username and sasl.password must be set"),
    ("more in flight than keeps the order", properties('"max.in.flight" = 10'),
     "{F}: kafka.properties: librdkafka refuses them together: "
     "`max.in.flight` must be set <= 5 when `enable.idempotence` is true"),
    # References
    ("a variable that is not there", kafka('topic = "${NOPE}"'),
     "{F}: kafka.topic: ${NOPE}: not in the environment; allowed: a variable that is, or ${NOPE:-default}"),
    ("a file that is not there", kafka('topic = "${file:nope}"'),
     "{F}: kafka.topic: ${file:nope}: No such file or directory; allowed: a file that can be read"),
    ("a reference to nothing that can be", kafka('topic = "${A B}"'),
     "{F}: kafka.topic: ${A B}; allowed: ${NAME}, ${NAME:-default}, ${file:PATH}, and $$ for a plain $"),
    ("a reference that is not closed", kafka('topic = "${A"'),
     '{F}: kafka.topic: "${" without "}"; allowed: ${NAME}, ${NAME:-default}, ${file:PATH}, and $$ for a plain $'),
    ("what a reference gave is shown", kafka('topic = "${TOPIC}"'),
     f'{{F}}: kafka.topic: "my topic" with " " in it; allowed: {TOPIC}'),
    ("what a secret reference gave is not", kafka('topic = "${A_PASSWORD}"'), f"{{F}}: kafka.topic: ********; allowed: {TOPIC}"),
    # TOML
    ("a key given twice", kafka('bootstrap_servers = "x"'), "{F}: line 3, column 24: Cannot overwrite a value; allowed: TOML"),
    ("a text without quotes", "[kafka]\nbootstrap_servers = k", "{F}: line 2, column 21: Invalid value; allowed: TOML"),
    ("a file that ends too early", "[kafka",
     "{F}: line 1, column 7: Expected ']' at the end of a table declaration; allowed: TOML"),
]  # fmt: skip


OURS = {
    "acks": "always all: the agent needs it to lose nothing and keep the order",
    "request.required.acks": "always all: the agent needs it to lose nothing and keep the order",
    "bootstrap.servers": "use kafka.bootstrap_servers",
    "metadata.broker.list": "use kafka.bootstrap_servers",
    "compression.codec": "use kafka.compression",
    "compression.type": "use kafka.compression",
    "delivery.report.only.error": "always false: the agent must hear of every batch that arrived",
    "delivery.timeout.ms": "the agent decides when a record is given up, and it never gives up one that may still be taken",
    "enable.gapless.guarantee": "the agent turns it on and off itself, to lose nothing and keep the order",
    "enable.idempotence": "always true: the agent needs it to lose nothing and keep the order",
    "message.send.max.retries": "the agent decides when a record is given up, and it never gives up one that may still be taken",
    "message.timeout.ms": "the agent decides when a record is given up, and it never gives up one that may still be taken",
    "queue.buffering.max.kbytes": "use kafka.in_flight",
    "queue.buffering.max.messages": "use kafka.in_flight",
    "retries": "the agent decides when a record is given up, and it never gives up one that may still be taken",
    "transactional.id": "the agent makes it from agent.name when kafka.delivery asks for transactions",
}


def errors_of(file: Path | None, environ: Mapping[str, str] = ENVIRONMENT) -> list[str]:
    with pytest.raises(config.ConfigError) as caught:
        configload.load(None if file is None else str(file), environ)
    return caught.value.errors


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "forwarder.toml"


@pytest.fixture
def conf_d(tmp_path: Path) -> Path:
    folder = tmp_path / "conf.d"
    folder.mkdir()
    return folder


@pytest.mark.parametrize(("text", "expected"), [case[1:] for case in BAD], ids=[case[0] for case in BAD])
def test_a_wrong_file_is_told(file: Path, text: str, expected: str) -> None:
    file.write_text(text)
    assert errors_of(file) == expected.replace("{F}", str(file)).split("\n")


@pytest.mark.parametrize("name", OURS)
def test_a_property_that_the_promises_rest_on_is_refused_with_the_reason_or_the_key_for_it(file: Path, name: str) -> None:
    file.write_text(properties(f'"{name}" = 1'))
    key = f'"{name}"' if "." in name else name
    assert errors_of(file) == [f"{file}: kafka.properties.{key}: integer 1; not for kafka.properties; {OURS[name]}"]


def test_every_property_that_the_agent_sets_for_its_promises_is_refused() -> None:
    from forwarder import kafka as client

    settings = config.Config(kafka=config.Kafka(bootstrap_servers="k"))
    everything = config.Config(
        kafka=config.Kafka(
            bootstrap_servers="k", properties=dict.fromkeys(client.producer_properties(settings, client.Way.GAPLESS), "mine")
        )
    )
    kept = {name for name, value in client.producer_properties(everything, client.Way.GAPLESS).items() if value != "mine"}
    assert kept <= set(OURS)


def test_all_errors_of_all_files_and_the_environment_come_at_once(file: Path, conf_d: Path) -> None:
    file.write_text('[kafka]\nbootstrap_servers = ""\ntopc = "x"\n[[socket]]\npath = "a"\n')
    (conf_d / "10-more.toml").write_text('[[socket]]\nmode = "rw"\n')
    (conf_d / "20-broken.toml").write_text("[[tail]\n")
    environ = {"FORWARDER__SPOOL__WHEN_FULL": "drop"}
    assert errors_of(file, environ) == [
        f"{conf_d}/20-broken.toml: line 1, column 7: Expected ']]' at the end of an array declaration; allowed: TOML",
        f'{file}: kafka.bootstrap_servers: ""; allowed: HOST:PORT, several with commas',
        f'{file}: kafka.topc: unknown key; did you mean "topic"?',
        f'{file}: socket[0].path: "a"; allowed: an absolute path of at most 107 bytes',
        f'{conf_d}/10-more.toml: socket[1].mode: "rw"; allowed: an octal string such as "0660"',
        'FORWARDER__SPOOL__WHEN_FULL: spool.when_full: "drop"; allowed: "block", "drop-oldest", "drop-newest"',
    ]


def test_a_key_that_may_stand_in_a_file_that_cannot_be_read_is_not_called_missing(file: Path, conf_d: Path) -> None:
    file.write_text('[http]\nlisten = ""\n')
    (conf_d / "kafka.toml").write_text("[kafka\n")
    assert [line.partition(": ")[0] for line in errors_of(file)] == [f"{conf_d}/kafka.toml"]


def test_a_file_that_is_not_there_is_told(file: Path) -> None:
    assert errors_of(file, {"FORWARDER__KAFKA__BOOTSTRAP_SERVERS": "k"}) == [f"{file}: not found"]


def test_a_file_name_cannot_break_the_line(tmp_path: Path) -> None:
    assert errors_of(tmp_path / "a\nb") == [f"{tmp_path}/a\\nb: not found"]


def test_a_folder_in_place_of_the_file_is_told(tmp_path: Path) -> None:
    assert errors_of(tmp_path) == [f"{tmp_path}: a directory; allowed: a file in TOML"]


def test_a_file_that_cannot_be_read_is_told(file: Path, conf_d: Path) -> None:
    file.write_text(KAFKA)
    (conf_d / "loop.toml").symlink_to("loop.toml")
    (conf_d / "folder.toml").mkdir()
    assert errors_of(file) == [
        f"{conf_d}/folder.toml: cannot be read: Is a directory",
        f"{conf_d}/loop.toml: cannot be read: Too many levels of symbolic links",
    ]


def test_a_file_that_is_not_utf_8_is_told_with_the_place(file: Path) -> None:
    file.write_bytes(KAFKA.encode() + b'key = "caf\xe9"\n')
    assert errors_of(file) == [f"{file}: line 3, column 11: byte 0xe9; allowed: UTF-8 text"]


def test_a_file_nested_without_end_is_told(file: Path) -> None:
    file.write_text("x = " + "[" * 100_000)
    assert errors_of(file) == [f"{file}: nested too deeply to be read"]


def test_with_neither_a_file_nor_a_variable_it_says_what_to_do(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("forwarder.configtree.DEFAULT_FILE", str(file))
    assert errors_of(None) == [f"{file}: not found; name a file with -c, or set at least FORWARDER__KAFKA__BOOTSTRAP_SERVERS"]


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("FORWARDER__KAFKA__TOPC", "x", 'FORWARDER__KAFKA__TOPC: kafka.topc: unknown key; did you mean "topic"?'),
        ("FORWARDER__KAFKA__", "x", "FORWARDER__KAFKA__: not the name of a key; allowed: FORWARDER__SECTION__KEY"),
        ("FORWARDER__KAFKA", "x", 'FORWARDER__KAFKA: kafka: "x"; allowed: a table'),
        ("FORWARDER__SOCKET__PATH", "/x", "FORWARDER__SOCKET__PATH: socket: part of an array of tables; "
         "allowed: all of it in one value, FORWARDER__SOCKET='[{…}]'"),
        ("FORWARDER__AGENT__NAME", "caf\udce9", "FORWARDER__AGENT__NAME: not UTF-8; allowed: UTF-8 text"),
        ("FORWARDER__AGENT__NAME", "${BYTES}", "FORWARDER__AGENT__NAME: agent.name: ${BYTES}: not UTF-8; allowed: UTF-8 text"),
    ],
)  # fmt: skip
def test_a_wrong_variable_is_told_by_its_name(file: Path, name: str, value: str, expected: str) -> None:
    file.write_text(KAFKA)
    assert errors_of(file, {name: value, "BYTES": "caf\udce9"}) == [expected]


@pytest.mark.parametrize(
    "text",
    [
        '"sasl.password" = "${file:secret}"\n"sasl.username" = "x"\n"socket.keepalive.enable" = "${A_PASSWORD}"',
        '"ssl.key.pem" = "hunter 2"\n"security.protocol" = "ssl"',
        '"debug" = "${A_PASSWORD}"',
        '"sasl.oauthbearer.method" = "${A_PASSWORD}"',
        '"ssl.ca.location" = "${A_PASSWORD}"',
        '"${A_PASSWORD}" = 1\n"ssl.key.password" = ["hunter 2"]',
    ],
)
def test_no_message_about_properties_shows_a_secret(file: Path, tmp_path: Path, text: str) -> None:
    file.write_text(properties(text))
    (tmp_path / "secret").write_text("hunter 2\n")
    assert "hunter" not in "\n".join(errors_of(file))


@pytest.mark.parametrize(
    "text",
    [
        '[[redact]]\npattern = "(${A_PASSWORD}"\nreplace = ""',
        '[[redact]]\npattern = "x"\nreplace = "\\\\g<${A_PASSWORD}>"',
        '[[socket]]\ngroup = "${A_PASSWORD}"',
        '[[socket]]\npath = "/${A_PASSWORD}"\n[http]\nlisten = "unix:/${A_PASSWORD}"',
        '[http]\nlisten = "k:${A_PASSWORD}"',
    ],
)
def test_no_message_about_other_keys_shows_a_secret(file: Path, text: str) -> None:
    file.write_text(kafka(text))
    assert "hunter" not in "\n".join(errors_of(file))
