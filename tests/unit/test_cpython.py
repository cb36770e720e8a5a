"""CPython's own tests of `SocketHandler`, with our class in place of the standard one; only their server reads our protocol."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.harness.pythons import PYTHONS

ROOT = Path(__file__).parents[2]

RUN = """
import json, logging, logging.handlers, sys, unittest
sys.path.insert(0, sys.argv.pop(1))
import forwarder
from test import test_logging

def handle_socket(self, request):
    lines = request.connection.makefile("rb")
    assert json.loads(lines.readline())["forwarder"] == 1
    for number, line in enumerate(lines, 1):
        self.log_output += json.loads(line)["message"] + "\\n"
        request.connection.sendall(number.to_bytes(8, "big"))
        self.handled.release()

class Ours(forwarder.SocketHandler):
    def __init__(self, *arguments):
        super().__init__(*arguments)
        made.append(self)

made = []
logging.handlers.SocketHandler = Ours
test_logging.SocketHandlerTest.handle_socket = handle_socket
suite = unittest.TestSuite()
for case in (test_logging.SocketHandlerTest, test_logging.UnixSocketHandlerTest):
    suite.addTests(unittest.defaultTestLoader.loadTestsFromTestCase(case))
result = unittest.TextTestRunner(verbosity=2).run(suite)
assert result.wasSuccessful() and result.testsRun >= 4 and not result.skipped, result
assert len(made) >= 4
"""


def test_cpythons_tests_of_the_socket_handler_pass() -> None:
    has_tests = ["-c", "import test.test_logging"]
    pythons = [sys.executable, *(path for _, path in reversed(PYTHONS))]
    found = next((path for path in pythons if not subprocess.call([path, *has_tests], stderr=subprocess.DEVNULL)), None)
    assert found, "no Python here has its test package; on Debian: apt-get install libpython3.11-testsuite"
    done = subprocess.run(
        [found, "-c", RUN, str(ROOT)], capture_output=True, text=True, timeout=120, check=False, stdin=subprocess.DEVNULL
    )
    assert done.returncode == 0, done.stderr
