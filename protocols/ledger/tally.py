"""What one member's gradient of one step contains: each microbatch at most once, whatever is asked twice.

Rules of this file:
  - The gradient only grows. A microbatch leaves it with everything else, when the member is fenced.
  - Every request to count carries an *attempt*; a member serves each attempt once and none below the highest it has
    seen for that microbatch. So a repeated, late or overtaken request cannot count.
  - "void" is a promise: not counted here, and never will be under an attempt up to that one.

    absent --begin--> counting --finish(True)--> counted
                          '-----finish(False)--> absent
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from protocols.ledger.view import ids_of
from protocols.replies import ErrorCode


@dataclass(frozen=True, slots=True, order=True)
class Attempt:
    """Orders all requests to count one microbatch: first by lease, then by the trainer's own numbering."""

    generation: int
    number: int


class Work(enum.Enum):
    """What a member does with a request it admits."""

    COUNT = "count"
    """Compute, and add the gradient."""
    RECOMPUTE = "recompute"
    """Compute for the neighbours only: the gradient holds it already, or was not asked to."""


class Settled(enum.Enum):
    """What a member says of an attempt that its trainer lost sight of."""

    VOID = "void"
    COUNTED = "counted"
    PENDING = "pending"
    """It is being computed now: ask again when it is finished."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a request was not admitted. Nothing was counted, and nothing will be under its attempt; but for "step-ahead",
    of which nobody keeps a note: a later copy may find its step open."""

    code: ErrorCode
    reason: str
    retry_after_s: float | None = None


class Tally:
    """One member's counting of one step.

    Args:
      step: the optimizer step being accumulated.
      microbatches: how many the step has.
    """

    __slots__ = ("_counting", "_floors", "counted", "fences", "frozen", "microbatches", "step")

    def __init__(self, step: int, microbatches: int) -> None:
        self.step = step
        self.microbatches = microbatches
        self.counted = 0
        self.frozen = False
        self.fences = 0
        """Raised when the gradient is discarded: work begun before then may finish, and does not count."""
        self._counting: dict[int, int] = {}
        self._floors: dict[int, Attempt] = {}

    @property
    def busy(self) -> bool:
        """Something that counts is being computed."""
        return bool(self._counting)

    def begin(self, step: int, microbatch: int, attempt: Attempt, *, count: bool) -> Work | Refusal:
        """Decide what to do with a request, as its computation starts."""
        if step < self.step:
            return Refusal(
                "step-passed", f"step {step} is committed; this node works on {self.step}"
            )
        if step > self.step:
            return Refusal("step-ahead", f"this node works on step {self.step}, not yet {step}")
        if not 0 <= microbatch < self.microbatches:
            return Refusal("bad-request", f"step {step} has {self.microbatches} microbatches")
        if not count:
            return Work.RECOMPUTE
        floor = self._floors.get(microbatch)
        if floor is not None and attempt <= floor:
            return Refusal("overtaken", f"microbatch {microbatch} has been tried again since")
        self._floors[microbatch] = (
            attempt  # also of what is refused below: a late copy must not count
        )
        if self.frozen:
            return Refusal("busy", "the step is being committed", retry_after_s=0.05)
        if self.counted >> microbatch & 1:
            return Work.RECOMPUTE
        if microbatch in self._counting:
            return Refusal("busy", f"microbatch {microbatch} is being computed", retry_after_s=0.05)
        self._counting[microbatch] = self.fences
        return Work.COUNT

    def finish(self, microbatch: int, *, added: bool) -> bool:
        """Note that a COUNT computation ended and whether its gradient was added. Returns whether it counts."""
        fences = self._counting.pop(microbatch)
        if not added or fences != self.fences:
            return False
        self.counted |= 1 << microbatch
        return True

    def settle(self, microbatch: int, attempt: Attempt) -> Settled:
        """Close an attempt: after this answer, nothing up to it can begin to count any more."""
        if not 0 <= microbatch < self.microbatches:
            return Settled.VOID  # and no floor: strangers must not make this table grow
        floor = self._floors.get(microbatch)
        if floor is None or floor < attempt:
            self._floors[microbatch] = attempt
        if self.counted >> microbatch & 1:
            return Settled.COUNTED
        return Settled.PENDING if microbatch in self._counting else Settled.VOID

    def claim(self, ids: int, generation: int) -> tuple[int, int]:
        """Close every attempt of older leases of `ids`; returns (counted, pending) sets among them."""
        before = Attempt(generation, -1)
        known = ids & ((1 << self.microbatches) - 1)
        answers = {microbatch: self.settle(microbatch, before) for microbatch in ids_of(known)}
        counted = sum(1 << index for index, answer in answers.items() if answer is Settled.COUNTED)
        pending = sum(1 << index for index, answer in answers.items() if answer is Settled.PENDING)
        return counted, pending

    def fence(self) -> None:
        """Forget what was counted: the gradient is discarded with it."""
        self.counted = 0
        self.frozen = False
        self.fences += 1
