"""Whether a run goes on, as one node sees it: what "healthy" means, once.

Healthy is a run that is complete, a node that leaves, its first minute of training, a run that rests for a reason that is in
order (it waits for the peers it wants to begin with), and a step lately: within a minute, or ten times what steps take.
Everything else is unhealthy, with its reason. It is for people and scripts; a watchdog asks only whether the process turns:
a minority that waits for its majority must not be killed.
"""

from __future__ import annotations

import statistics
from collections import deque
from dataclasses import dataclass
from typing import Final

GRACE_S: Final = 60.0
"""After training has begun, and after each step."""
LATE_FACTOR: Final = 10.0
_STEPS_KEPT: Final = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What is looked at, about once a second."""

    step: int | None
    complete: bool = False
    leaving: bool = False
    resting: bool = False
    waiting_for: str | None = None


class Health:
    """One node's view of its run's pace."""

    def __init__(self) -> None:
        self._since_s: float | None = None
        """When the last step was seen, or training was looked at first; None before that."""
        self._step: int | None = None
        self._seconds: deque[float] = deque(maxlen=_STEPS_KEPT)
        """What the last steps took."""
        self._facts = Facts(step=None)

    def observe(self, now_s: float, facts: Facts) -> None:
        """Take note of how it stands."""
        if self._since_s is None:
            self._since_s = now_s
        elif facts.step is not None and facts.step != self._step:
            passed = facts.step - self._step if self._step is not None else 0
            if passed > 0:
                self._seconds.extend([(now_s - self._since_s) / passed] * min(passed, _STEPS_KEPT))
            self._since_s = now_s
        elif facts.resting or facts.complete:
            self._since_s = now_s
        self._step = facts.step if facts.step is not None else self._step
        self._facts = facts

    def problem(self, now_s: float) -> str | None:
        """Say why a person should look; None while all is well."""
        facts = self._facts
        if self._since_s is None or facts.complete or facts.leaving or facts.resting:
            return None
        waited_s = now_s - self._since_s
        if waited_s <= self.patience_s:
            return None
        what = "no step" if self._step else "no first step"
        why = f": waits for {facts.waiting_for}" if facts.waiting_for else ""
        return f"{what} for {waited_s:.0f} s{why}"

    @property
    def patience_s(self) -> float:
        """How long the next step may take."""
        usual_s = statistics.median(self._seconds) if self._seconds else 0.0
        return max(GRACE_S, LATE_FACTOR * usual_s)
