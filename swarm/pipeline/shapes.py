"""What tensors a stage takes and gives. No torch here: trainers and decoders ask too.

Letters: m microbatches in one call, B = m * pipeline.sequences, T = model.context, C = model.width.
"""

from __future__ import annotations

from protocols.errors import LocalProtocolError
from protocols.frames import TensorSpec
from protocols.run import RunSpec
from protocols.run.pipeline import pipeline_of


def input_spec(run: RunSpec, stage: int, microbatches: int) -> TensorSpec:
    """Return (B, T) uint8 for stage 0, (B, T, C) in the model's dtype for the others."""
    if stage == 0:
        return target_spec(run, microbatches)
    return _activation_spec(run, microbatches)


def output_spec(run: RunSpec, stage: int, microbatches: int) -> TensorSpec:
    """Return (B, T, C): what a stage passes on, and the gradient it gets for it. The last stage passes nothing on."""
    if stage >= pipeline_of(run).stages - 1:
        raise LocalProtocolError("the last stage ends in a loss: it passes no activations on")
    return _activation_spec(run, microbatches)


def target_spec(run: RunSpec, microbatches: int) -> TensorSpec:
    """Return (B, T) uint8: the byte that follows each token."""
    pipeline = pipeline_of(run)
    return TensorSpec("uint8", (microbatches * pipeline.sequences, pipeline.model.context))


def microbatches_of(run: RunSpec, sequences: int) -> int:
    """Return how many whole microbatches a batch holds; 0 when it is not a whole number of them."""
    count, rest = divmod(sequences, pipeline_of(run).sequences)
    return 0 if rest else count


def _activation_spec(run: RunSpec, microbatches: int) -> TensorSpec:
    pipeline = pipeline_of(run)
    model = pipeline.model
    return TensorSpec(model.dtype, (microbatches * pipeline.sequences, model.context, model.width))
