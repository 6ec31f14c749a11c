"""How late the event loop is: the figure that tells whether something computes or blocks in it."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass
from typing import Final

import trio

BUSY_PERIOD_S: Final = 0.1
"""Ten looks a second while the process works: every stall longer than this is seen."""
IDLE_PERIOD_S: Final = 2.0
"""While it does not, looking would be most of what it does: waking up costs up to 0.4 ms."""
IDLE_SHARE: Final = 0.05
"""Of one core, all threads together; a node that trains uses twenty times as much."""
SAMPLES_MAX: Final = 600
"""The last minute of a busy node."""


@dataclass(frozen=True, slots=True)
class Lag:
    """Milliseconds between when a timer was due and when its task ran, over the last samples."""

    p50_ms: float
    p99_ms: float
    max_ms: float
    samples: int


class LagMeter:
    """Sleeps and looks how late it woke. A lag is never below 0."""

    def __init__(self) -> None:
        self._late_s: deque[float] = deque(maxlen=SAMPLES_MAX)

    async def run(self) -> None:
        """Measure until cancelled."""
        period_s = BUSY_PERIOD_S
        while True:
            began_s, cpu_s = trio.current_time(), time.process_time()
            await trio.sleep_until(began_s + period_s)
            now_s = trio.current_time()
            self._late_s.append(max(0.0, now_s - began_s - period_s))
            share = (time.process_time() - cpu_s) / (now_s - began_s)
            period_s = BUSY_PERIOD_S if share > IDLE_SHARE else IDLE_PERIOD_S

    def read(self) -> Lag:
        """Return the quantiles; all 0 before the first sample."""
        late = sorted(self._late_s) or [0.0]
        return Lag(
            p50_ms=1000 * late[len(late) // 2],
            p99_ms=1000 * late[min(len(late) - 1, int(len(late) * 0.99))],
            max_ms=1000 * late[-1],
            samples=len(self._late_s),
        )
