"""A large pipeline: few peers train, all host, and members announce themselves every half minute."""

from __future__ import annotations

from typing import Any, Final

from protocols.ledger.events import LedgerSettings
from tests.sim.engine.scale import Scale, Size
from tests.sim.engine.world import World
from tests.sim.pipeline.faults import PipelineFaults
from tests.sim.pipeline.world import PipelineWorld

_ANNOUNCE_S: Final = 30.0
_SILENCE_S: Final = 240.0
"""Hearts beat every quarter of it."""
_COMPUTE_S: Final = 0.5
"""What a forward through one stage takes, on an average peer."""
_REDUCE_S: Final = 2.0
_TRAINERS: Final = 0.05
"""One peer in twenty has data, and memory for one microbatch at a time; the others host."""
_DEADLINES_S: Final = (10.0, 40.0)
_FAULTS: Final = PipelineFaults(loss=0.0002, reordering=1.0, heavy_tail=0.0005)
_SLOWEST_STEP_S: Final = 1200.0
"""A swarm that commits fewer steps than this has stopped working; the checker of liveness says so."""
_SCALE: Final = _SILENCE_S / 2
"""The standard run suspects after two seconds."""
_STAGES: Final = 32


def _microbatches(size: Size) -> int:
    return size.options.get("microbatches", max(1, size.peers * 7 // 10))


def build(size: Size, seed: int) -> PipelineWorld:
    """Make the world; its clock has not begun."""
    settings = LedgerSettings(
        stages=size.options.get("stages", _STAGES),
        microbatches=_microbatches(size),
        steps=100_000,
        silence_s=_SILENCE_S,
        reduce_s=4 * _SILENCE_S,
        lease_s=5 * _SILENCE_S,
    )
    return PipelineWorld(
        seed,
        settings,
        size.peers,
        _FAULTS,
        scale=_SCALE,
        delay_s=0.05,
        reduce_s=_REDUCE_S / _SCALE,
        compute_s=_COMPUTE_S / _SCALE,
        announce_s=_ANNOUNCE_S,
        trainers=_TRAINERS,
        in_flight=1,
        deadlines_s=_DEADLINES_S,
    )


def _figures(world: World[Any], size: Size) -> dict[str, Any]:
    assert isinstance(world, PipelineWorld)
    record = world.newest_record
    assert record is not None
    return {
        "stages": world.settings.stages,
        "members": len(record.members),
        "records": record.index,
        "microbatches": record.step * _microbatches(size),
    }


SCALE: Final = Scale(
    options={
        "stages": f"of the pipeline (default: {_STAGES})",
        "microbatches": "of one step (default: 0.7 for each peer)",
    },
    build=build,
    goal=lambda size: int(size.seconds / _SLOWEST_STEP_S),
    figures=_figures,
)
