"""What the optimizer does at which step, and to which parameters. No torch: status and tests read it too."""

from __future__ import annotations

import math
from collections.abc import Sequence

from protocols.run.optimizer import ScheduleSpec


def learning_rate(spec: ScheduleSpec, *, step: int, steps: int) -> float:
    """Return the rate of one step: linear warm-up, then half a cosine from `lr` down to `lr_min`.

    Args:
      step: counted from 0; past the end the rate stays at `lr_min`.
      steps: in the whole run.
    """
    if step < spec.warmup_steps:
        return spec.lr * (step + 1) / spec.warmup_steps
    progress = (step - spec.warmup_steps) / max(1, steps - spec.warmup_steps)
    return spec.lr_min + (spec.lr - spec.lr_min) * 0.5 * (
        1.0 + math.cos(math.pi * min(1.0, progress))
    )


def is_decayed(name: str, shape: Sequence[int]) -> bool:
    """Say whether weight decay applies: to matrices, not to norms, biases and embeddings."""
    return len(shape) >= 2 and not name.startswith("embedding.")
