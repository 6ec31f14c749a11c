"""The examples of the tutorial on experts, run as its reader would: two servers and a trainer, no daemon."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.node.processes import REPOSITORY, environment

pytestmark = pytest.mark.process

LOCAL = ("--listen", "/ip4/127.0.0.1/tcp/0")
PATIENCE_S = 120.0


def start(home: Path, example: str, *arguments: str) -> subprocess.Popen[str]:
    home.mkdir()
    with (home / "log").open("w") as log:
        return subprocess.Popen(
            [sys.executable, "-u", str(REPOSITORY / "examples" / example), *arguments, *LOCAL],
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env=os.environ | environment(home) | {"OMP_NUM_THREADS": "1"},
        )


@pytest.mark.soak
def test_a_trainer_learns_with_experts_that_live_in_two_other_scripts(tmp_path: Path) -> None:
    server = start(tmp_path / "a", "moe_server.py")
    scripts = [server]
    try:
        assert server.stdout is not None
        found = re.search(r"murmura1\w+", server.stdout.readline())
        assert found is not None, (tmp_path / "a" / "log").read_text()
        scripts.append(start(tmp_path / "b", "moe_server.py", found.group(), "--row", "1"))
        trainer = start(tmp_path / "c", "moe_trainer.py", found.group(), "--batches", "150")
        scripts.append(trainer)
        out, _ = trainer.communicate(timeout=PATIENCE_S)
        assert trainer.returncode == 0, (tmp_path / "c" / "log").read_text()
        seen = [float(text) for text in re.findall(r"batch \d+: ([0-9.]+) %", out)]
        assert len(seen) == 3
        assert seen[-1] > 60.0  # one digit of ten would be 10 %
    finally:
        for script in scripts:
            with script:  # closes its pipe
                script.kill()
