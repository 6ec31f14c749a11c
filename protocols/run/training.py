"""`[training]` and `[deadlines]`: what every mode needs to know."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from protocols.schema import Natural, Positive, Range, SchemaError


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingSpec:
    """How much is trained, and how often the model is looked at."""

    batch: Annotated[int, Range(1, 1 << 24)] = 32
    """Samples (for text: sequences) per optimizer step: of the whole run where peers share a step, else of each peer."""
    steps: Positive = 120
    """Optimizer steps: of the whole run where peers share a step, else of each peer."""
    evaluate_every: Natural = 10
    """Steps between held-out evaluations; 0 turns them off."""
    evaluation_samples: Annotated[int, Range(1, 1 << 24)] = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadlineSpec:
    """Bounds of deadlines; between them they follow what is observed."""

    floor_s: Annotated[float, Range(0.05, 600.0)] = 2.0
    """No peer is suspected of silence sooner: covers a scheduler hiccup on a loaded home machine. Heartbeats come four times
    in it, and no request is given less time than it."""
    ceiling_s: Annotated[float, Range(0.1, 3600.0)] = 60.0
    """However slow a peer has been, its partners do not wait longer."""

    def __post_init__(self) -> None:
        if self.floor_s > self.ceiling_s:
            raise SchemaError("floor_s", f"must not be above ceiling_s ({self.ceiling_s})")
