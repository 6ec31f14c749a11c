"""`python -m tests.processes.toy_launcher run --run FILE`: `murmura`, with the toy mode registered."""

from __future__ import annotations

import sys

from node.cli.entry import run
from node.modes import register
from tests.processes.toy_mode import INFO, ToySpec

register(INFO, ToySpec)
sys.exit(run(sys.argv[1:]))
