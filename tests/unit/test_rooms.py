"""Who may import whom: the table of rooms in CONTRIBUTING.md, checked."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2] / "forwarder"

# A room may import itself, what stands here, and nothing else of ours.
MAY_IMPORT: dict[str, set[str]] = {
    "version": set(),
    "formatter": set(),
    "ring": set(),
    "session": {"ring"},
    "turns": set(),
    "settings": set(),
    "handler": {"formatter", "ring", "session", "settings", "turns"},
    "shims": {"formatter", "handler"},
    "testing": set(),
    "protocol": set(),
    "pickles": set(),
    "config": set(),
    "configtree": {"config"},
    "configvalues": {"configtree", "redact"},
    "configcheck": {"config", "configtree", "configvalues", "kafkaproperties"},
    "configload": {"config", "configcheck", "configtree"},
    "kafkaproperties": {"config", "kafka"},
    "route": set(),
    "source": {"route"},
    "redact": {"route"},
    "enrich": {"redact", "route"},
    "spool": {"config", "route", "source"},
    "tail": {"config", "positions", "route", "source"},
    "positions": set(),
    "dead": {"spool"},
    "kafka": {"config", "rdkafka"},
    "rdkafka": set(),
    "unix": set(),
    "flight": {"kafka", "source"},
    "halving": set(),
    "topics": {"flight", "kafka"},
    "burial": {"dead", "flight"},
    "shipper": {"burial", "config", "flight", "halving", "kafka", "positions", "saving", "source", "topics"},
    "saving": {"flight", "positions", "source"},
    "worker": set(),
    "transactions": {"config", "flight", "kafka", "positions", "worker"},
    "probe": {"config", "flight", "halving", "kafka"},
    "exactly_once": {"config", "flight", "kafka", "positions", "probe", "shipper", "source", "transactions", "worker"},
    "listener": {"config", "formatter", "pickles", "protocol", "route", "spool", "unix"},
    "systemd": set(),
    "logs": {"systemd"},
    "http": {"unix"},
    "client": set(),
    "status": {"agent", "http", "metrics", "version"},
    "metrics": {"agent", "flight", "status", "version"},
    "agent": {
        "config",
        "enrich",
        "exactly_once",
        "http",
        "listener",
        "positions",
        "redact",
        "route",
        "shipper",
        "source",
        "spool",
        "systemd",
        "tail",
    },
}
ANYTHING = {"cli", "__main__"}


def room_of(path: Path) -> str:
    return path.relative_to(ROOT).with_suffix("").parts[0]


def imported_rooms(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "forwarder":
            parts = node.module.split(".")
            found |= {parts[1]} if len(parts) > 1 else {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("forwarder.")}
    return found


@pytest.mark.parametrize("path", sorted(ROOT.rglob("*.py")), ids=lambda path: str(path.relative_to(ROOT)))
def test_a_room_imports_only_what_lies_below_it(path: Path) -> None:
    room = room_of(path)
    if room in ANYTHING or path == ROOT / "__init__.py":
        return
    assert room in MAY_IMPORT, f"{room} is new: say in this table, and in CONTRIBUTING.md, what it may import"
    assert imported_rooms(path) - {room, "__version__"} <= MAY_IMPORT[room]


def test_the_app_side_needs_nothing_but_the_standard_library() -> None:
    script = (
        "import sys; before = set(sys.modules); sys.path.insert(0, sys.argv[1]); import forwarder; "
        "forwarder.SocketHandler, forwarder.JSONFormatter, forwarder.KafkaLoggingHandler, forwarder.__version__; "
        "ours = {name.split('.')[0] for name in set(sys.modules) - before}; "
        "print(sorted(ours - set(sys.stdlib_module_names) - {'forwarder'}))"
    )
    command = [sys.executable, "-S", "-I", "-c", script, str(ROOT.parent)]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() == "[]"
