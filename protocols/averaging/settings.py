"""How peers form groups and how long they wait for each other: what a run file's table may say of group averaging."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from protocols.schema import Range, SchemaError


@dataclass(frozen=True, slots=True, kw_only=True)
class AveragingSpec:
    """Group averaging: sizes of groups, and bounds on every wait. Between its bounds a wait follows what was seen."""

    group_max: Annotated[int, Range(2, 64)] = 16
    """More peers than this average in several groups, drawn anew for each round. One more is taken rather than left alone."""
    gather_floor_s: Annotated[float, Range(0.0, 600.0)] = 1.0
    """The least that a group waits for further peers after the last that came, while the directory names some."""
    gather_ceiling_s: Annotated[float, Range(0.1, 3600.0)] = 60.0
    """The longest between the first peer that comes and the group that is formed."""
    answer_s: Annotated[float, Range(0.05, 60.0)] = 5.0
    """What a small message and its answer may take; who needs longer is left out."""
    exchange_floor_s: Annotated[float, Range(0.1, 600.0)] = 10.0
    """The least that an exchange of vectors is given before it is begun anew without whoever holds it up."""
    exchange_ceiling_s: Annotated[float, Range(0.1, 7200.0)] = 600.0
    """The most, also for the first exchange, when nobody knows yet what one takes."""
    attempts_max: Annotated[int, Range(1, 64)] = 8
    """After so many attempts a round is given up."""
    weight_max: Annotated[float, Range(0.0, 1e12)] = 1e6
    """A larger weight is a lie, or a mistake: with it one peer alone would be the average."""
    unhealthy_after: Annotated[int, Range(1, 1000)] = 3
    """Rounds missed in a row after which averaging is a problem that a person should look at."""

    def __post_init__(self) -> None:
        if self.gather_floor_s > self.gather_ceiling_s:
            raise SchemaError("gather_floor_s", "must not be larger than gather_ceiling_s")
        if self.exchange_floor_s > self.exchange_ceiling_s:
            raise SchemaError("exchange_floor_s", "must not be larger than exchange_ceiling_s")
