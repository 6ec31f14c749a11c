"""The way of one microbatch: forward through the stages, backward down again, counted once at each.

Pure bookkeeping for protocols.ledger.trainer. What is known is where the tensors are: `input s` is what stage s
takes, `gradient s` is the loss's gradient with respect to stage s's output (the last stage needs none: it has the
loss). They are kept until the step commits, so any stage can be asked again.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from protocols.ids import PeerID
from protocols.ledger.grants import Grant
from protocols.ledger.tally import Attempt

Kind: TypeAlias = Literal["forward", "backward", "loss", "evaluate"]


@dataclass(frozen=True, slots=True)
class Leg:
    """The next request a journey needs."""

    kind: Kind
    stage: int
    count: bool


@dataclass(frozen=True, slots=True)
class CountedAt:
    """A member said that it counted us, when it had learned the records up to `index`."""

    peer: PeerID
    index: int


@dataclass(frozen=True, slots=True)
class Unsettled:
    """A request to count whose fate is unknown: the member must be asked before anybody else counts."""

    peer: PeerID
    incarnation: int
    attempt: Attempt


@dataclass(slots=True)
class Backoff:
    """When to ask again: soon at first, then twice as late each time, at once when something new is learned."""

    at_s: float = -math.inf
    _failures: int = 0

    def wait(self, now_s: float, *, first_s: float, longest_s: float) -> float:
        """Note a failure; return how long to wait."""
        pause_s = min(longest_s, first_s * 2.0 ** min(self._failures, 32))
        self._failures += 1
        self.at_s = now_s + max(first_s, pause_s)
        return self.at_s - now_s

    def reset(self) -> None:
        self.at_s = -math.inf
        self._failures = 0


@dataclass(slots=True)
class Journey:
    """Where one microbatch is.

    Args:
      microbatch: bit in the lease; from `microbatches of a step` on it is a held-out one, only evaluated.
      grant: the lease by which we may have it counted.
      held_out: forward only.
    """

    microbatch: int
    stages: int
    grant: Grant
    held_out: bool
    reached: int = 0
    """Input s is known for every s <= reached."""
    gradients: set[int] = field(default_factory=set)
    counted: dict[int, CountedAt] = field(default_factory=dict)
    unsettled: dict[int, Unsettled] = field(default_factory=dict)
    voided: set[int] = field(default_factory=set)
    """Stages whose count of us was void once."""
    doubtful: dict[int, set[PeerID]] = field(default_factory=dict)
    """Stages whose count of us was void again, and the replicas to ask first whether they have us: another trainer may have
    been given us meanwhile, and counting twice would have one of the two fenced again."""
    evaluated: float | None = None
    asking: int | None = None
    """The call in flight; a journey makes one at a time."""
    retry: Backoff = field(default_factory=Backoff)
    attempts: int = 0

    @property
    def generation(self) -> int:
        return self.grant.generation

    def next_attempt(self) -> Attempt:
        self.attempts += 1
        return Attempt(self.generation, self.attempts)

    @property
    def finished(self) -> bool:
        if self.held_out:
            return self.evaluated is not None
        return len(self.counted) == self.stages

    def next_leg(self) -> Leg | None:
        """Return what to ask next, once every fate is settled; None when finished."""
        if self.finished:
            return None
        last = self.stages - 1
        if self.reached < last:
            return Leg("forward", self.reached, count=False)
        if self.held_out:
            return Leg("evaluate", last, count=False)
        lowest = min(stage for stage in range(self.stages) if stage not in self.counted)
        stage = last
        while stage > lowest and stage in self.counted and stage - 1 in self.gradients:
            stage -= 1
        return Leg("loss" if stage == last else "backward", stage, count=stage not in self.counted)
