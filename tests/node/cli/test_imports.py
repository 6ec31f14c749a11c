"""Local commands are quick because of what they do not import."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.process

HEAVY = {"torch", "hivemind", "libp2p", "trio", "pydantic", "cryptography", "asyncio", "rich"}
"""Import costs in seconds: torch 2.6, hivemind 3.5, libp2p 1.3, pydantic 0.2, trio 0.18; a command may take 0.15."""

SCRIPT = """
import sys
from node.cli.entry import run
code = run(sys.argv[1:])
print(code, *sys.modules, file=sys.stderr)
"""


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["status"], 3),
        (["status", "--json"], 3),
        (["peers"], 3),
        (["id"], 3),
        (["invite"], 3),
        (["drain"], 3),
        (["export", "model"], 3),
        (["checkpoints", "list"], 0),
        (["checkpoints", "verify"], 0),
        (["config", "show"], 0),
        (["config", "check"], 0),
        (["run", "--help"], 0),
        (["--help"], 0),
        (["version"], 0),
    ],
)
def test_local_commands_import_nothing_heavy(
    arguments: list[str], code: int, tmp_path: Path
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
        env={"HOME": str(tmp_path), "PYTHONPATH": str(Path(__file__).parents[3])},
    )
    last = done.stderr.splitlines()[-1].split()
    assert int(last[0]) == code
    imported = {name.partition(".")[0] for name in last[1:]}
    assert not imported & HEAVY


def test_the_daemon_loads_nothing_of_http_before_it_is_asked_to() -> None:
    """13 MB that most volunteers never use."""
    done = subprocess.run(
        [sys.executable, "-c", "import sys, node.daemon; print(*sys.modules)"],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
        env={"PYTHONPATH": str(Path(__file__).parents[3])},
    )
    imported = {name.partition(".")[0] for name in done.stdout.split()}
    assert not imported & {"quart", "quart_trio", "hypercorn", "prometheus_client", "flask"}
