"""What a right configuration becomes: defaults, merged files, environment, references, sizes and durations."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forwarder import config, configload, configvalues
from forwarder.config import GIB, KIB, MIB, Config
from forwarder.configvalues import Shape

KAFKA = '[kafka]\nbootstrap_servers = "k:9092"\n'
BROKER = {"FORWARDER__KAFKA__BOOTSTRAP_SERVERS": "k:9092"}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "forwarder.toml"


@pytest.fixture
def conf_d(tmp_path: Path) -> Path:
    folder = tmp_path / "conf.d"
    folder.mkdir()
    return folder


def loaded(file: Path, text: str = "", **environ: str) -> Config:
    """The configuration of KAFKA and `text`."""
    file.write_text(KAFKA + text)
    return configload.load(str(file), environ).config


# Defaults


def test_every_key_has_the_default_that_is_documented(file: Path) -> None:
    found = loaded(file, '[[socket]]\n[[tail]]\npaths = ["/var/log/x"]\n')
    assert found == Config(
        agent=config.Agent(name=socket.gethostname(), state_dir="/var/lib/forwarder", shutdown_timeout=20.0),
        kafka=config.Kafka(
            bootstrap_servers="k:9092",
            topic="logs",
            key=None,
            delivery="at-least-once",
            compression="lz4",
            in_flight=32 * MIB,
            properties={},
        ),
        sockets=(
            config.Socket(
                path="/run/forwarder/forwarder.sock",
                mode=0o660,
                group=None,
                app="default",
                topic=None,
                key=None,
                fields={},
                allow_topics=(),
                allow_uids=None,
                allow_groups=None,
                max_record=MIB,
                schema="logstash",
            ),
        ),
        tails=(
            config.Tail(
                paths=("/var/log/x",),
                exclude=("*.gz", "*.bz2", "*.xz", "*.zst", "*.zip", "*.lz4", "*.Z"),
                app="default",
                topic=None,
                key=None,
                fields={},
                start="beginning",
                format="auto",
                encoding="utf-8",
                ignore_older=None,
                max_record=MIB,
            ),
        ),
        spool=config.Spool(max_bytes=2 * GIB, max_bytes_per_app=512 * MIB, fsync=1.0, when_full="block"),
        fields={},
        redact=(),
        http=config.Http(listen="127.0.0.1:9600"),
    )


def test_with_neither_a_socket_nor_a_tail_there_is_one_socket_at_the_default_path(file: Path) -> None:
    assert loaded(file).sockets == (config.Socket(),)
    assert loaded(file, '[[tail]]\npaths = ["/a"]\n').sockets == ()


def test_a_spool_smaller_than_the_default_share_of_an_app_may_be_filled_by_one(file: Path) -> None:
    assert loaded(file, '[spool]\nmax_bytes = "5MiB"\n').spool.max_bytes_per_app == 5 * MIB


# Files


def test_conf_d_is_merged_in_name_order_behind_the_file(file: Path, conf_d: Path) -> None:
    (conf_d / "20-b.toml").write_text('[kafka]\ntopic = "b"\n[[socket]]\npath = "/b"\n[fields]\nx = { b = 1 }\n')
    (conf_d / "10-a.toml").write_text('[kafka]\ntopic = "a"\nkey = "a"\n[[socket]]\npath = "/a"\n[fields]\nx = { a = 1 }\n')
    found = loaded(file, 'topic = "main"\ncompression = "gzip"\n[[socket]]\npath = "/main"\n')
    assert (found.kafka.topic, found.kafka.key, found.kafka.compression) == ("b", "a", "gzip")
    assert [one.path for one in found.sockets] == ["/main", "/a", "/b"]
    assert found.fields == {"x": {"a": 1, "b": 1}}


def test_arrays_that_are_values_are_replaced_not_joined(file: Path, conf_d: Path) -> None:
    (conf_d / "a.toml").write_text("[fields]\nx = [2]\n")
    assert loaded(file, "[fields]\nx = [1]\n").fields == {"x": [2]}


def test_hidden_files_and_others_than_toml_in_conf_d_are_left_alone(file: Path, conf_d: Path) -> None:
    for name in (".a.toml", ".#b.toml", "c.toml~", "d.toml.bak", "README"):
        (conf_d / name).write_text("not TOML")
    (conf_d / ".#lock.toml").symlink_to("user@host.1234")
    assert loaded(file) == loaded(file)
    assert configload.load(str(file), {}).files == (str(file),)


def test_conf_d_beside_the_default_file_is_enough_without_that_file(
    file: Path, conf_d: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("forwarder.configtree.DEFAULT_FILE", str(file))
    (conf_d / "a.toml").write_text(KAFKA)
    assert configload.load(None, {}).config.kafka.bootstrap_servers == "k:9092"


# Environment


def test_the_environment_is_enough_without_a_file(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("forwarder.configtree.DEFAULT_FILE", str(file))
    assert configload.load(None, BROKER).config.kafka.bootstrap_servers == "k:9092"


def test_the_environment_overrides_the_file_and_conf_d(file: Path, conf_d: Path) -> None:
    (conf_d / "a.toml").write_text('[kafka]\ntopic = "conf-d"\n')
    found = loaded(
        file,
        'topic = "file"\nkey = "file"\n[[socket]]\npath = "/a"\n[fields]\na = 1\n',
        FORWARDER__KAFKA__TOPIC="environment",
        FORWARDER__AGENT__SHUTDOWN_TIMEOUT="5s",
        FORWARDER__SPOOL__MAX_BYTES="1073741824",
        FORWARDER__HTTP__LISTEN="",
        FORWARDER__FIELDS__TEAM="payments",
        FORWARDER__FIELDS__NUMBER="5",
        FORWARDER__SOCKET='[{ path = "/b", allow_uids = [1000] }]',
        UNRELATED="x",
        FORWARDER_SOCKET="/not/ours",
    )
    assert (found.kafka.topic, found.kafka.key) == ("environment", "file")
    assert (found.agent.shutdown_timeout, found.spool.max_bytes, found.http.listen) == (5.0, GIB, "")
    assert found.fields == {"a": 1, "team": "payments", "number": 5}
    assert [(one.path, one.allow_uids) for one in found.sockets] == [("/b", (1000,))]


def test_properties_of_librdkafka_come_from_the_environment_with_underscores_for_dots(file: Path) -> None:
    found = loaded(
        file,
        'properties = { "linger.ms" = 1, "client.id" = "x" }\n',
        FORWARDER__KAFKA__PROPERTIES__LINGER_MS="20",
        FORWARDER__KAFKA__PROPERTIES__LOG_LEVEL="3",
        FORWARDER__KAFKA__PROPERTIES__SASL_PASSWORD='pa"$$word',
    )
    assert found.kafka.properties == {"linger.ms": "20", "client.id": "x", "log_level": "3", "sasl.password": 'pa"$$word'}


def test_a_whole_table_may_come_from_one_variable_and_single_keys_still_win(file: Path) -> None:
    found = loaded(file, FORWARDER__KAFKA='{ topic = "table", key = "table" }', FORWARDER__KAFKA__TOPIC="key")
    assert (found.kafka.topic, found.kafka.key, found.kafka.bootstrap_servers) == ("key", "table", "k:9092")


# References


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("${NAME}", "value"),
        ("a.${NAME}.${OTHER}", "a.value.other"),
        ("${NOPE:-default}", "default"),
        ("${EMPTY:-default}", "default"),
        ("${NAME:-default}", "value"),
        ("${NOPE:-}x", "x"),
        ("${file:key}", "from-file"),
        ("x-${file:key}-${file:sub/key}", "x-from-file-sub"),
        ("$${NAME}", "${NAME}"),
        ("$$$${NAME}", "$${NAME}"),
        ("$5 and $", "$5 and $"),
        ("${TWICE}", "${NAME}"),
    ],
)
def test_a_reference_becomes_what_it_refers_to(file: Path, text: str, expected: str) -> None:
    (file.parent / "key").write_text("from-file\n")
    (file.parent / "sub").mkdir()
    (file.parent / "sub" / "key").write_bytes(b"sub\r\n")
    environ = {"NAME": "value", "OTHER": "other", "EMPTY": "", "TWICE": "${NAME}"}
    assert loaded(file, f"[fields]\nx = '{text}'\n", **environ).fields == {"x": expected}


def test_references_stand_anywhere_a_text_does_and_in_variables(file: Path) -> None:
    found = loaded(
        file,
        '[[tail]]\npaths = ["${ROOT}/a", "/b"]\n[spool]\nmax_bytes = "${SIZE:-5MiB}"\n',
        ROOT="/var/log",
        FORWARDER__KAFKA__TOPIC="logs.${ROOT_TOPIC}",
        ROOT_TOPIC="x",
    )
    assert (found.tails[0].paths, found.spool.max_bytes, found.kafka.topic) == (("/var/log/a", "/b"), 5 * MIB, "logs.x")


def test_secrets_are_known_by_their_keys(file: Path) -> None:
    (file.parent / "file").write_text("x")
    file.write_text(
        KAFKA + 'properties = { "sasl.password" = "x", "linger.ms" = 5 }\n'
        '[fields]\nplain = "${HOST_NAME}"\na = "${DB_PASSWORD}"\nb = ["y", "${file:file}"]\n"c d" = "${apikey:-x}"\n'
        '[[socket]]\napp = "${APP}"\n[[socket]]\npath = "/b"\nkey = "${ACCESS_TOKEN}"\n'
    )
    environ = {"HOST_NAME": "h", "DB_PASSWORD": "x", "APP": "a", "ACCESS_TOKEN": "x"}
    assert configload.load(str(file), environ).secrets == {
        'kafka.properties."sasl.password"',
        "fields.a",
        "fields.b[1]",
        'fields."c d"',
        "socket[1].key",
    }


# Values


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0B", 0),
        ("17", 17),
        ("17B", 17),
        ("64KiB", 64 * KIB),
        ("64 KiB", 64 * KIB),
        ("1.5MiB", 3 * MIB // 2),
        ("2GiB", 2 * GIB),
        ("1TiB", 1024 * GIB),
        ("1KB", 1000),
        ("2.5GB", 2_500_000_000),
        (4096, 4096),
    ],
)
def test_a_size_is_bytes(text: str | int, expected: int) -> None:
    assert configvalues.read(text, Shape("size")) == expected


@pytest.mark.parametrize(
    ("text", "expected"), [("0s", 0.0), ("500ms", 0.5), ("20s", 20.0), ("1.5m", 90.0), ("1h", 3600.0), ("2d", 172_800.0)]
)
def test_a_duration_is_seconds(text: str, expected: float) -> None:
    assert configvalues.read(text, Shape("duration")) == expected


@pytest.mark.parametrize(
    "text", ["", "5", "s", "-1s", "+1s", "1 s", "1e3s", "1,5s", ".5s", "5.s", "1m30s", "1S", "\u0661s", "1s\n", "inf", "nans"]
)
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(configvalues.Wrong):
        configvalues.read(text, Shape("duration"))


@pytest.mark.parametrize(
    "text", ["", "-1", "1.5", "KiB", "1kib", "1KIB", "1  KiB", "1e3", "0x10", "\u0661KiB", "1KiB\n", "1PiB", True, 1.5]
)
def test_what_is_no_size_is_refused(text: str | float) -> None:
    with pytest.raises(configvalues.Wrong):
        configvalues.read(text, Shape("size"))


@given(
    st.one_of(
        st.integers(0, 1 << 50), st.builds(lambda number, power: number << power, st.integers(0, 1 << 10), st.integers(0, 40))
    )
)
def test_a_size_written_is_read_as_the_same(size: int) -> None:
    assert configvalues.read(configvalues.written(size, Shape("size")), Shape("size")) == size


@given(
    st.one_of(st.integers(0, 3650 * 86400).map(float), st.integers(0, 10**7).map(lambda number: number / 1000), st.floats(0, 1e9))
)
def test_a_duration_written_is_read_as_the_same(seconds: float) -> None:
    assert configvalues.read(configvalues.written(seconds, Shape("duration")), Shape("duration")) == seconds


@given(st.integers(0, 0o777))
def test_a_mode_written_is_read_as_the_same(mode: int) -> None:
    assert configvalues.read(configvalues.written(mode, Shape("mode")), Shape("mode")) == mode


@settings(deadline=None)
@given(
    st.text(st.characters(exclude_categories=["Cs"])),
    st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), st.booleans()),
)
def test_any_text_written_as_toml_is_read_as_the_same(
    tmp_path_factory: pytest.TempPathFactory, text: str, table: dict[str, bool]
) -> None:
    from forwarder.cli import check

    file = tmp_path_factory.getbasetemp() / "any.toml"
    whole = Config(kafka=config.Kafka(bootstrap_servers="k"), fields={"text": text, "table": table}, sockets=(config.Socket(),))
    file.write_text("\n".join(check.as_toml(configload.Loaded(whole, (), frozenset()))), newline="")
    assert configload.load(str(file), {}).config == whole


@pytest.mark.parametrize(
    "text",
    ["logs", "logs.{app}", "{app}", "{field:a.b}-{level}", "{host}_x", "x" * 249, "x" * 249 + "{app}"],
)
def test_a_topic_may_be(text: str) -> None:
    assert configvalues.read(text, Shape("topic template")) == text


@pytest.mark.parametrize(
    "text", ["k", "k:9092", "k-1:9092, k-2:9092", "[::1]:9092", "10.0.0.1:9092", "SASL_SSL://k.example:9093"]
)
def test_brokers_may_be(text: str) -> None:
    assert configvalues.read(text, Shape("brokers")) == text


@pytest.mark.parametrize("text", ["", ":9600", "0.0.0.0:80", "[::]:9600", "localhost:65535", "unix:/run/http.sock"])
def test_http_may_listen_at(text: str) -> None:
    assert configvalues.read(text, Shape("listen address")) == text


@pytest.mark.parametrize("text", ["utf-8", "UTF8", "gb18030", "utf-16", "latin-1", "shift_jis", "cp1252"])
def test_an_encoding_may_be(text: str) -> None:
    assert configvalues.read(text, Shape("codec")) == text
