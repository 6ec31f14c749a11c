"""The result of the demo of outer steps, the bounds it must keep, and a sentence for each one broken. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Final

LOSS_RATIO_MAX: Final = 1.10
"""Forty rounds are few, one peer of four is dead for a tenth of the run, and the one that joins begins with an optimizer of its
own. What long runs lose is bounded by benchmarks.diloco."""
BYTES_RATIO_MIN: Final = 100.0
SECONDS_MAX: Final = 240.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """What one demo measured. Losses are of held-out text, in nats per byte."""

    peers: int
    """That lived to the end."""
    peers_killed: int
    peers_joined_late: int
    """That began with a member's outer parameters and trained to the end."""
    steps: int
    loss_before: float
    loss: float
    """Of the outer parameters that a node exported."""
    loss_one_process: float
    """One process that averages every gradient: as many samples per step as four peers together."""
    outer_parameters_differ: float
    """Largest difference between the nodes' outer parameters."""
    rounds: int
    rounds_missed: int
    """By those that lived to the end."""
    bytes_per_step: float
    """Of one peer, every byte that it sent and received for averaging and for finding out where others are."""
    bytes_per_step_data_parallel: float
    """Of one peer, if every gradient were averaged in float32: payload alone."""
    seconds: float
    processor: str
    cores: int
    date: str

    @property
    def loss_ratio(self) -> float:
        return self.loss / self.loss_one_process

    @property
    def bytes_ratio(self) -> float:
        return self.bytes_per_step_data_parallel / max(1.0, self.bytes_per_step)

    def to_json(self) -> dict[str, Any]:
        """Return plain data, numbers rounded to what they can say."""
        plain = asdict(self) | {"loss_ratio": self.loss_ratio, "bytes_ratio": self.bytes_ratio}
        return {
            name: round(value, 4) if isinstance(value, float) else value
            for name, value in plain.items()
        }


def broken_bounds(figures: Figures, *, shortened: bool) -> Iterator[str]:
    """Yield a sentence for every bound that is broken.

    Args:
      shortened: the person chose the number of steps, so how much is learned in them is not judged.
    """
    if figures.peers_killed != 1:
        yield f"{figures.peers_killed} peers were killed, one should be"
    if figures.peers_joined_late != 1:
        yield "no peer joined late, began with a member's outer parameters and trained to the end"
    if figures.outer_parameters_differ > 1e-6:
        yield f"the nodes' outer parameters differ by {figures.outer_parameters_differ:g}"
    if shortened:
        return
    if not figures.loss_ratio <= LOSS_RATIO_MAX:
        yield (
            f"the held-out loss is {figures.loss_ratio:.3f} times that of one process that averages every gradient; "
            f"at most {LOSS_RATIO_MAX:g} is allowed"
        )
    if not figures.bytes_ratio >= BYTES_RATIO_MIN:
        yield (
            f"averaging every gradient would take {figures.bytes_ratio:.0f} times the bytes; "
            f"at least {BYTES_RATIO_MIN:g} times was expected"
        )
    if figures.seconds > SECONDS_MAX:
        yield f"the demo took {figures.seconds:.0f} s, at most {SECONDS_MAX:.0f} s are allowed"
