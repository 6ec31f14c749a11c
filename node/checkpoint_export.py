"""A model out of checkpoints, without a swarm. Loads torch."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from node.errors import NodeError
from node.modes import info_of
from protocols.run import RunSpec
from swarm.hosting.module import PARAMETERS
from swarm.state.checkpoint import Checkpoint, CheckpointRefusedError
from swarm.state.checkpoint_tensors import load_checkpoint
from swarm.state.export import ExportError, export_model, write_tensors


def export_checkpoints(
    path: Path, run: RunSpec, checkpoints: Sequence[Checkpoint], *, step: int | None
) -> dict[str, Any]:
    """Write the newest whole model among the checkpoints, or that of `step`. Raises NodeError."""
    problem = ""
    orders = {c.manifest.order for c in checkpoints if step in (None, c.manifest.version)}
    for order in sorted(orders, reverse=True):
        try:
            size_bytes = _write(path, run, [c for c in checkpoints if c.manifest.order == order])
        except (CheckpointRefusedError, ExportError) as error:
            problem = problem or f"step {order[1]}: {error}"
        except OSError as error:
            raise NodeError(f"cannot write {path}: {error.strerror}") from error
        else:
            return {"path": str(path), "run": run.name, "step": order[1], "bytes": size_bytes}
    problem = problem or "there is no checkpoint" + ("" if step is None else f" of step {step}")
    raise NodeError(problem, "--also DIR names the state folder of a node that holds the rest")


def _write(path: Path, run: RunSpec, checkpoints: Sequence[Checkpoint]) -> int:
    parts: dict[str, dict[str, Tensor]] = {}
    for checkpoint in checkpoints:
        if checkpoint.manifest.part not in parts:
            parts[checkpoint.manifest.part] = _parameters(load_checkpoint(checkpoint, None))
    version = checkpoints[0].manifest.version
    if run.mode == "pipeline":
        return export_model(path, run, step=version, stages=parts.values())
    if lacking := sorted(set(info_of(run.mode).checkpoint_parts(run)) - parts.keys()):
        raise ExportError(f"{len(lacking)} parts are not here, {lacking[0]} among them")
    name_of = _naming(run)
    together = {
        name_of(part, name): tensor
        for part, parameters in parts.items()
        for name, tensor in parameters.items()
    }
    about = {"run": run.name, "run_id": str(run.run_id), "step": version}
    return write_tensors(path, together, about)


def _naming(run: RunSpec) -> Callable[[str, str], str]:
    """Return what a parameter of a part is called in the whole model."""
    module, _, name = info_of(run.mode).name_in_model.partition(":")
    if not module:
        return lambda part, name: name
    naming: Callable[[str, str], str] = getattr(importlib.import_module(module), name)
    return naming


def _parameters(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Leave the optimizer's moments out."""
    prefix = f"{PARAMETERS}/"
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in tensors.items()
        if name.startswith(prefix)
    }
