"""One large swarm: `python -m tests.sim.scale --json`."""

from __future__ import annotations

import sys

from tests.sim.pipeline.scale import main

if __name__ == "__main__":
    sys.exit(main())
