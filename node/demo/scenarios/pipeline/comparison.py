"""The other side of the demo: the same run in one process, and what the two models have in common.

The arithmetic is done by `reference_process`, in a process of its own: this one imports no torch.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from node.demo.beside import messages_of

_COMMAND: Final = (sys.executable, "-P", "-m", "node.demo.scenarios.pipeline.reference_process")


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """What the swarm made of the run beside what one process made of it. Losses are held-out, in nats per byte."""

    initial_loss: float
    final_loss: float
    """Of the swarm's model, by the same function and in the same process as the others."""
    reference_loss: float
    parameter_difference: float
    """The largest, over the parameter tensors, of the norm of the difference over the norm."""
    reference_tokens_per_second: float
    parameters: int
    trained_on: dict[int, list[int]]
    """Step, counted from 1 -> the microbatches that the one process trained on in it."""
    sample: str
    """Text from the swarm's model."""

    @property
    def relative_difference(self) -> float:
        return abs(self.final_loss - self.reference_loss) / self.reference_loss


def compare(
    run_file: Path, model: Path, log: Path, *, on_step: Callable[[int, float], None]
) -> Comparison:
    """Train the run in one process on all cores, and compare the exported model with the outcome.

    Args:
      log: takes what the process writes on stderr.
      on_step: called with the steps done and the last training loss.
    Raises:
      NodeError: the process failed.
    """
    result: dict[str, Any] = {}
    for message in messages_of([*_COMMAND, str(run_file), str(model)], log):
        if "step" in message:
            on_step(message["step"], message["loss"])
        else:
            result = message
    trained_on = {int(step): ids for step, ids in result.pop("trained_on").items()}
    return Comparison(trained_on=trained_on, **result)
