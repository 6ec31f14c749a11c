"""`[pipeline]` of the run file: how a step is cut into stages and microbatches (SWARM, arXiv:2301.11913)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

from protocols.run.data import TextSpec
from protocols.run.model import LayeredModelSpec
from protocols.run.optimizer import AdamWSpec
from protocols.schema import Range, SchemaError

if TYPE_CHECKING:
    from protocols.run.spec import RunSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class PipelineSpec:
    """The table as it is written. What follows from it and from `[training]` is a `Pipeline`."""

    CAN_START: ClassVar[bool] = True

    stages: Annotated[int, Range(1, 1024)] = 3
    microbatches: Annotated[int, Range(1, 65536)] = 16
    """Per optimizer step, over all trainers; `training.batch` is cut in so many equal parts."""
    replicas_to_start: Annotated[int, Range(1, 1024)] = 1
    """Every stage has so many replicas before the first step; afterwards one is enough to go on."""

    def check_run(self, run: RunSpec) -> None:
        """Refuse a model that cannot be cut like this, and samples that cannot be dealt out evenly."""
        model = run.model
        if not isinstance(model, LayeredModelSpec):
            raise SchemaError("model.kind", f"a pipeline cannot cut {model.kind!r} in stages")
        if not isinstance(run.data, TextSpec):
            raise SchemaError("data.kind", f"a pipeline trains on text, not on {run.data.kind!r}")
        if not isinstance(run.optimizer, AdamWSpec):
            raise SchemaError("optimizer.kind", "must be adamw in a pipeline")
        if self.stages > model.layers:
            raise SchemaError(
                "pipeline.stages",
                f"must be at most model.layers ({model.layers}): each stage has at least one layer",
            )
        sequences, rest = divmod(run.training.batch, self.microbatches)
        if rest or sequences > 4096:
            raise SchemaError(
                "training.batch",
                f"must be a multiple of pipeline.microbatches ({self.microbatches}), up to 4096 times",
            )
        if run.training.evaluation_samples % sequences:
            raise SchemaError(
                "training.evaluation_samples",
                f"must be a multiple of the {sequences} sequences that a microbatch has",
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Pipeline:
    """A run of this mode in the numbers that its cores and shells count in."""

    stages: int
    microbatches: int
    sequences: int
    """Per microbatch; each has `model.context` tokens."""
    steps: int
    replicas_to_start: int
    evaluate_every: int
    evaluation_microbatches: int
    model: LayeredModelSpec
    data: TextSpec
    optimizer: AdamWSpec


def pipeline_of(run: RunSpec) -> Pipeline:
    """Work out the numbers of a pipeline run. Raises TypeError for a run of another mode."""
    table, training = run.settings(PipelineSpec), run.training
    model, data, optimizer = run.model, run.data, run.optimizer
    assert isinstance(model, LayeredModelSpec)
    assert isinstance(data, TextSpec)
    assert isinstance(optimizer, AdamWSpec)
    sequences = training.batch // table.microbatches
    return Pipeline(
        stages=table.stages,
        microbatches=table.microbatches,
        sequences=sequences,
        steps=training.steps,
        replicas_to_start=table.replicas_to_start,
        evaluate_every=training.evaluate_every,
        evaluation_microbatches=training.evaluation_samples // sequences,
        model=model,
        data=data,
        optimizer=optimizer,
    )
