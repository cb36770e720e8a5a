"""`python -m forwarder` is the command `forwarder`."""

import sys

from forwarder.cli import main

sys.exit(main())
