"""What a mode measures of a machine before it takes part: `swarm.mode_info.ModeInfo.measure`. No torch here."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

_WARM_CALLS: Final = 2
"""The first calls choose kernels and touch memory."""


@dataclass(frozen=True, slots=True)
class Measured:
    """One figure."""

    name: str
    value: float
    unit: str


def rate(call: Callable[[], object], seconds: float) -> float:
    """Return calls a second over about so many seconds; at least one call is made."""
    for _ in range(_WARM_CALLS):
        call()
    count, began_s = 0, time.perf_counter()
    while True:
        call()
        count += 1
        took_s = time.perf_counter() - began_s
        if took_s >= seconds:
            return count / took_s
