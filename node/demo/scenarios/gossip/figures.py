"""The gossip demo's result, the bounds it must keep, and a sentence for each one broken. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Final

GAP_POINTS_MAX: Final = 2.0
ALONE_POINTS_MIN: Final = 15.0
PLAIN_RATIO_MIN: Final = 3.0
SECONDS_MAX: Final = 180.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """What one demo measured. Accuracies are of the test set, in percent."""

    peers: int
    """That lived to the end."""
    peers_killed: int
    peers_joined_late: int
    """That began with a neighbour's model and trained to the end."""
    batches_per_peer: int
    accuracy_mean: float
    """Over the peers that lived to the end, of the models that they exported."""
    accuracy_min: float
    accuracy_reference: float
    """Of one model that saw as many samples as one peer did, drawn from all data."""
    accuracy_alone_mean: float
    """Of peers that saw only their own part of the data, for as many batches."""
    exchanges_to_target: float | None
    """Snapshots pushed per peer until the mean accuracy was 90 %."""
    plain_exchanges_to_target: float | None
    """The same swarm without the correction, in virtual time; null: not within the cap."""
    plain_exchanges_cap: float
    plain_accuracy: float
    """At its cap."""
    models_refused: int
    seconds: float
    processor: str
    cores: int
    date: str

    @property
    def accuracy_gap_points(self) -> float:
        return self.accuracy_reference - self.accuracy_mean

    @property
    def plain_ratio(self) -> float | None:
        """Exchanges that plain gossip takes over ours; never reached counts as its cap."""
        if not self.exchanges_to_target:
            return None
        plain = self.plain_exchanges_to_target or self.plain_exchanges_cap
        return plain / self.exchanges_to_target

    def to_json(self) -> dict[str, Any]:
        """Return plain data, numbers rounded to what they can say."""
        ratio = self.plain_ratio
        plain = asdict(self) | {
            "accuracy_gap_points": self.accuracy_gap_points,
            "plain_ratio": None if ratio is None else round(ratio, 2),
        }
        return {
            name: round(value, 2) if isinstance(value, float) else value
            for name, value in plain.items()
        }


def broken_bounds(figures: Figures, *, shortened: bool) -> Iterator[str]:
    """Yield a sentence for every bound that is broken.

    Args:
      shortened: the person chose the number of batches, so how much is learned in them is not judged.
    """
    if figures.peers_killed != 1:
        yield f"{figures.peers_killed} peers were killed, one should be"
    if figures.peers_joined_late != 1:
        yield "no peer joined late, began with a neighbour's model and trained to the end"
    if shortened:
        return
    if not figures.accuracy_gap_points <= GAP_POINTS_MAX:
        yield (
            f"the peers' mean accuracy is {figures.accuracy_mean:.1f} %, {figures.accuracy_gap_points:.1f} points below "
            f"that of a model which saw all data; at most {GAP_POINTS_MAX:g} are allowed"
        )
    if not figures.accuracy_mean - figures.accuracy_alone_mean >= ALONE_POINTS_MIN:
        yield (
            f"peers that never exchange reach {figures.accuracy_alone_mean:.1f} %: the swarm's {figures.accuracy_mean:.1f} % "
            f"should be {ALONE_POINTS_MIN:g} points above"
        )
    if figures.plain_ratio is None:
        yield "the swarm's mean accuracy never was 90 %"
    elif not figures.plain_ratio >= PLAIN_RATIO_MIN:
        yield (
            f"without the correction it takes {figures.plain_ratio:.2f} times as many exchanges; "
            f"at least {PLAIN_RATIO_MIN:g} times was expected"
        )
    if figures.seconds > SECONDS_MAX:
        yield f"the demo took {figures.seconds:.0f} s, at most {SECONDS_MAX:.0f} s are allowed"
