"""Deliberate faults in the cores, each to be caught by the checker named for it: `python -m tests.sim.planted`."""

from __future__ import annotations

import sys

from tests.sim.pipeline.planted import main

if __name__ == "__main__":
    sys.exit(main())
