"""Models as files: out of a swarm that runs, out of the checkpoints of its nodes, and how far two of them are apart."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from node.errors import NodeError
from node.local import MURMURA, LocalNode


def live_model(node: LocalNode, path: Path) -> dict[str, Any]:
    """Let a node write the model as it is now; return what it says of it."""
    facts: dict[str, Any] = node.ask("export", timeout_s=60.0, path=str(path))
    return facts


def checkpoint_model(state_dirs: Sequence[Path], path: Path, step: int) -> None:
    """Write the model of one step out of the checkpoints in these folders, as an operator would."""
    first, *others = map(str, state_dirs)
    also = [word for folder in others for word in ("--also", folder)]
    command = ["checkpoints", "export", str(path), "--step", str(step), "--state-dir", first, *also]
    done = subprocess.run([*MURMURA, *command], capture_output=True, text=True, check=False)
    if done.returncode:
        raise NodeError(
            f"`murmura {' '.join(command)}` ended with {done.returncode}: {done.stderr}"
        )


def difference(one: Path, other: Path) -> float:
    """Return the largest difference of any parameter, 0.0 for equal models."""
    left, right = load_file(one), load_file(other)
    if {n: t.shape for n, t in left.items()} != {n: t.shape for n, t in right.items()}:
        raise NodeError(f"{one.name} and {other.name} have other parameters")
    return max(float((left[name] - right[name]).abs().max()) for name in left)
