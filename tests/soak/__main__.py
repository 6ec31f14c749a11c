"""Real nodes come and go for a while; one JSON object on stdout says what came of it.

python -m tests.soak --minutes 30 --seed 1
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path

from tests.processes.swarm import process_swarm
from tests.soak.churn import Churn


def main() -> int:
    """Return the exit code: 0 when all steps were counted once and what the nodes hold stays flat."""
    options = argparse.ArgumentParser(prog="tests.soak", description=__doc__)
    options.add_argument("--minutes", type=float, default=float(os.environ.get("MINUTES", "30")))
    options.add_argument("--seed", type=int, default=1)
    options.add_argument("--folder", type=Path, help="keep logs and journals there")
    chosen = options.parse_args()
    began_s = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="soak") as temporary:
        folder = chosen.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        with process_swarm(folder) as swarm:
            churn = Churn(swarm, seed=chosen.seed, minutes=chosen.minutes)
            churn.run()
            result = churn.result()
    result = {
        "minutes": chosen.minutes,
        "seed": chosen.seed,
        "seconds": round(time.monotonic() - began_s, 1),
        **result,
    }
    print(json.dumps(result, indent=2))  # noqa: T201 - this command's output
    return 1 if result["problems"] else 0


if __name__ == "__main__":
    sys.exit(main())
