"""The result of the demo of remote experts, its bounds, and a sentence for each one broken. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Final

ONE_PROCESS_RATIO_MAX: Final = 1.06
KILL_RATIO_MAX: Final = 1.015
SECONDS_MAX: Final = 420.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """What one demo measured. Losses are in nats per byte, over held-out text, of whole exported models."""

    nodes: int
    experts: int
    batches_per_node: int
    loss: float
    """Of the swarm in which a host was killed and a node joined."""
    loss_undisturbed: float
    """Of the same run without."""
    loss_one_process: float
    """Of the best rate: one process, as many batches of as many samples as the swarm's trainers took together."""
    experts_adopted: int
    experts_lost: int
    steps_failed: int
    """Steps that found too few experts; each was tried again."""
    nodes_killed: int
    nodes_joined: int
    """That hosted experts and trained."""
    seconds: float
    processor: str
    cores: int
    date: str

    def to_json(self) -> dict[str, Any]:
        """Return plain data, numbers rounded to what they can say."""
        plain = asdict(self) | {
            "loss_ratio_to_one_process": self.loss / self.loss_one_process,
            "loss_ratio_of_kill": self.loss / self.loss_undisturbed,
        }
        return {
            name: round(value, 4) if isinstance(value, float) else value
            for name, value in plain.items()
        }


def broken_bounds(figures: Figures, *, shortened: bool) -> Iterator[str]:
    """Yield a sentence for every bound that is broken.

    Args:
      shortened: the person chose the number of batches, so how much is learned in them is not judged.
    """
    if figures.experts_lost:
        yield f"{figures.experts_lost} experts were lost, none may be"
    if figures.experts_adopted < 1:
        yield "no expert of the killed node was adopted"
    if figures.steps_failed:
        yield f"{figures.steps_failed} steps found too few experts, none should"
    if figures.nodes_killed != 1 or figures.nodes_joined != 1:
        yield "one node should have been killed, and one should have joined, hosted experts and trained"
    if shortened:
        return
    ratio = figures.loss / figures.loss_one_process
    if not ratio <= ONE_PROCESS_RATIO_MAX:
        yield f"the loss is {ratio:.3f} times that of one process; at most {ONE_PROCESS_RATIO_MAX:g} times is allowed"
    ratio = figures.loss / figures.loss_undisturbed
    if not ratio <= KILL_RATIO_MAX:
        yield f"the loss is {ratio:.3f} times that of the run undisturbed; at most {KILL_RATIO_MAX:g} times is allowed"
    if figures.seconds > SECONDS_MAX:
        yield f"the demo took {figures.seconds:.0f} s, at most {SECONDS_MAX:.0f} s are allowed"
