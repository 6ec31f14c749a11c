"""What a stage will take, without torch: its parameters, and the memory of all that is as large as they are."""

from __future__ import annotations

from typing import Final

from protocols.frames import DTYPE_BYTES
from protocols.run import AdamWSpec, ByteTransformerSpec, RunSpec
from protocols.run.pipeline import pipeline_of
from swarm.mode_info import Forecast
from swarm.models.cut import Cut, cut_of

_VOCABULARY: Final = 256
_VECTORS: Final = 4
"""Parameters, the sum of gradients, the gradient in progress, and the reduced one; the optimizer's come on top."""


def forecast(run: RunSpec) -> tuple[Forecast, ...]:
    """Return what each stage takes; () for a model that only its own code can count."""
    pipeline = pipeline_of(run)
    model = pipeline.model
    if not isinstance(model, ByteTransformerSpec):
        return ()
    vectors = _VECTORS + (2 if isinstance(pipeline.optimizer, AdamWSpec) else 1)
    found = []
    for stage in range(pipeline.stages):
        cut = cut_of(layers=model.layers, stages=pipeline.stages, stage=stage)
        count = parameters_of(model, cut)
        memory = vectors * count * DTYPE_BYTES[model.dtype]
        found.append(Forecast(f"stage {stage}", count, memory, stage))
    return tuple(found)


def parameters_of(model: ByteTransformerSpec, cut: Cut) -> int:
    """Count one stage's: 12 matrices of width x width per layer, and the two ends."""
    ends = (cut.is_first + cut.is_last) * _VOCABULARY * model.width
    return 12 * model.width**2 * len(cut.layers) + ends
