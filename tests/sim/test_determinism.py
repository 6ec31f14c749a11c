"""One seed fixes everything: the same trace, to the byte, in fresh processes and with any hash seed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.sim.engine.subject import MODES

pytestmark = pytest.mark.sim

SCRIPT = """
import hashlib, sys
from tests.sim.engine.runner import run_seed
from tests.sim.engine.subject import subject_of
for seed in (3, 11, 29):
    world = run_seed(subject_of(sys.argv[1]), seed, detailed=True)
    print(len(world.trace), hashlib.sha256("\\n".join(world.trace).encode()).hexdigest())
"""


def digests(mode: str, hash_seed: str) -> str:
    """Run the script in a fresh process and return what it prints."""
    environment = os.environ | {"PYTHONHASHSEED": hash_seed}
    command = [sys.executable, "-c", SCRIPT, mode]
    root = Path(__file__).parents[2]
    done = subprocess.run(
        command, cwd=root, env=environment, capture_output=True, text=True, check=True, timeout=120
    )
    return done.stdout


@pytest.mark.parametrize("mode", MODES)
def test_a_seed_gives_the_same_trace_in_every_process(mode: str) -> None:
    first, second = digests(mode, "1"), digests(mode, "4711")
    assert first == second
    assert len(first.splitlines()) == 3
