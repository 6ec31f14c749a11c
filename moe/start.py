"""A moe run that goes on from a whole checkpoint of another moe run: what its parts need, and whether the files fit."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, cast

from moe.disk import part_name
from moe.info import TRUNK
from moe.model import build_feed_forward, build_remote
from protocols.experts.spec import MoeSpec
from protocols.frames import TensorSpec
from protocols.run import ByteTransformerSpec, RunSpec
from swarm.hosting.module import HostedModule
from swarm.state.checkpoint import Checkpoint
from swarm.state.initial import StartMisfitError, check_whole
from swarm.state.snapshot import expected_specs


def check_start(run: RunSpec, checkpoints: Collection[Checkpoint]) -> None:
    """Tell whether the run's trunk and experts can be made of these files. Raises StartMisfitError."""
    needs = part_specs(run)
    found = {checkpoint.manifest.part: checkpoint for checkpoint in checkpoints}
    for odd in sorted(needs.keys() ^ found.keys()):
        has, lacks = (
            ("the checkpoint", "this run") if odd in found else ("this run", "the checkpoint")
        )
        raise StartMisfitError(
            f"{has} has {odd}, which {lacks} has not: the grids or layers differ"
        )
    for part, specs in needs.items():
        check_whole(specs, [found[part]])


def part_specs(run: RunSpec) -> dict[str, dict[str, TensorSpec]]:
    """Name, for every part of a moe run, all that its training depends on."""
    model, spec = run.model, run.settings(MoeSpec)
    assert isinstance(model, ByteTransformerSpec)
    nobody = cast("Any", None)  # only built, not asked
    trunk = _specs(run, build_remote(model, spec, run.seed, nobody))
    uids = list(spec.uids(model.layers))
    expert = _specs(run, build_feed_forward(model, spec, uids[0], run.seed))
    return {TRUNK: trunk} | {part_name(uid): expert for uid in uids}


def _specs(run: RunSpec, module: Any) -> dict[str, TensorSpec]:
    return expected_specs(HostedModule(module, run.optimizer).snapshot())
