"""`[optimizer]`: how parameters follow gradients. A union by `kind`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal, TypeAlias

from protocols.schema import Fraction, Natural, Range

NonNegative: TypeAlias = Annotated[float, Range(0.0)]
AboveZero: TypeAlias = Annotated[float, Range(1e-12)]


@dataclass(frozen=True, slots=True, kw_only=True)
class ScheduleSpec:
    """The learning rate over a run: linear warm-up, then half a cosine down to `lr_min`."""

    lr: AboveZero = 3e-3
    lr_min: NonNegative = 3e-4
    warmup_steps: Natural = 10
    clip_norm: NonNegative = 1.0
    """Bound on the gradient's norm over the whole model; 0 turns clipping off."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AdamWSpec(ScheduleSpec):
    """AdamW (arXiv:1711.05101)."""

    kind: Literal["adamw"] = "adamw"
    beta1: Fraction = 0.9
    beta2: Fraction = 0.95
    eps: AboveZero = 1e-8
    weight_decay: NonNegative = 0.1
    """For matrices only; norms, biases and embeddings are not decayed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SgdSpec(ScheduleSpec):
    """Stochastic gradient descent with momentum. Weight decay is added to the gradient, for all parameters."""

    kind: Literal["sgd"]
    lr: AboveZero = 1e-2
    lr_min: NonNegative = 1e-2
    warmup_steps: Natural = 0
    clip_norm: NonNegative = 0.0
    momentum: Fraction = 0.9
    weight_decay: NonNegative = 1e-4


OptimizerSpec: TypeAlias = AdamWSpec | SgdSpec
