"""A node is READY before torch is there: what the daemon imports at once must not load it."""

from __future__ import annotations

import subprocess
import sys

import pytest

LIGHT = (
    "swarm.hosting.batching",
    "swarm.hosting.compute",
    "swarm.hosting.errors",
    "swarm.pipeline.shapes",
    "swarm.models.cut",
    "swarm.data.sequences",
    "swarm.schedule",
    "swarm.data.text",
    "swarm.state.fetch",
    "swarm.state.manifest",
    "swarm.tensors.threads",
)


@pytest.mark.process
def test_importing_the_light_modules_of_the_swarm_does_not_import_torch() -> None:
    program = f"import sys, {', '.join(LIGHT)}; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False, timeout=60).returncode == 0
