"""The process that shows the demo stays light: torch belongs to the nodes and to the one process they are compared with."""

from __future__ import annotations

import subprocess
import sys


def test_the_demo_imports_neither_torch_nor_trio_nor_hivemind() -> None:
    code = (
        "import sys, node.demo.main; "
        "print([m for m in ('torch', 'trio', 'hivemind', 'libp2p', 'rich') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
