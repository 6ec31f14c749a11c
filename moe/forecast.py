"""What the parts of a moe run will take, without torch: the trunk of a node that trains, and one expert of a host."""

from __future__ import annotations

from typing import Final

from protocols.experts.spec import COSINE_WIDTH, MoeSpec
from protocols.frames import DTYPE_BYTES
from protocols.run import AdamWSpec, ByteTransformerSpec, RunSpec
from swarm.mode_info import Forecast

_VOCABULARY: Final = 256
_TRUNK_VECTORS: Final = 5
"""Parameters, gradient, what was pushed last, the newest snapshot, a received one; the optimizer's moments come on top."""
_EXPERT_VECTORS: Final = 4
"""Parameters, gradient, scratch, and the newest snapshot's share; the optimizer's moments come on top."""


def forecast(run: RunSpec) -> tuple[Forecast, ...]:
    """Return what the trunk takes, and what one expert; () for a run whose experts live in scripts."""
    model, spec = run.model, run.settings(MoeSpec)
    if not isinstance(model, ByteTransformerSpec):
        return ()
    moments = 2 if isinstance(run.optimizer, AdamWSpec) else 1
    size = DTYPE_BYTES[model.dtype]
    trunk, expert = trunk_parameters(model, spec), expert_parameters(model, spec)
    count = sum(map(len, spec.grids(model.layers)))
    return (
        Forecast("the trunk, where it trains", trunk, (_TRUNK_VECTORS + moments) * trunk * size),
        Forecast(f"each of {count} experts", expert, (_EXPERT_VECTORS + moments) * expert * size),
    )


def trunk_parameters(model: ByteTransformerSpec, spec: MoeSpec) -> int:
    """Count all but the experts: attention, gates, embedding and head."""
    width, places = model.width, sum(spec.grid)
    gate = width * places
    if spec.scores == "cosine":
        gate = width * COSINE_WIDTH + COSINE_WIDTH * places + 1
    return model.layers * (4 * width**2 + gate) + 2 * _VOCABULARY * width


def expert_parameters(model: ByteTransformerSpec, spec: MoeSpec) -> int:
    """Count one expert's: two matrices."""
    return 2 * model.width * spec.hidden
