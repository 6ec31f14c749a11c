"""At which versions a part is checkpointed. Pure: told of versions and times, it has no clock.

Replicas, and the stages of a pipeline, must write the same steps, or no step is complete among their disks; and nobody
is to be asked for that. So each takes the versions that are multiples of a power of two, the smallest that takes
`every_s` or longer at the part's own pace. Peers that measure the pace a little differently, or want other intervals,
differ by powers of two: what the rarer one writes, the others have as well.
"""

from __future__ import annotations

import math
from collections import deque
from typing import Final

_PACE_OVER: Final = 32
"""Versions over which the pace is measured."""
_PACE_MIN: Final = 4


class Cadence:
    """Of one part.

    Args:
      every_s: seconds between checkpoints, at least.
      every: versions between checkpoints; replaces `every_s`.
    """

    def __init__(self, *, every_s: float, every: int | None = None) -> None:
        self._every_s = every_s
        self._every = every
        self._seen: deque[tuple[float, int]] = deque(maxlen=_PACE_OVER)

    def is_due(self, now_s: float, version: int) -> bool:
        """Take note of a version reached, and tell whether it is to be written."""
        if self._seen and version <= self._seen[-1][1]:
            self._seen.clear()  # it went back: an older state was loaded
        self._seen.append((now_s, version))
        interval = self._every or self._interval()
        return version > 0 and interval is not None and version % interval == 0

    def _interval(self) -> int | None:
        """Return the power of two; None while the pace is not known."""
        (first_s, first), (last_s, last) = self._seen[0], self._seen[-1]
        if last - first < _PACE_MIN:
            return None
        per_version_s = max((last_s - first_s) / (last - first), 1e-6)
        exponent = math.ceil(math.log2(max(1.0, self._every_s / per_version_s)))
        return 1 << min(exponent, 62)


class OwnCadence:
    """Of a part that no other node writes, such as an expert, so that any version will do: as far apart as is wanted.

    Args:
      every_s, every: as above.
    """

    def __init__(self, *, every_s: float, every: int | None = None) -> None:
        self._every_s = every_s
        self._every = every
        self._written: tuple[float, int] | None = None

    def is_due(self, now_s: float, version: int) -> bool:
        """Tell whether this version is to be written; the first one is, once there is something to lose."""
        if self._written is None:
            return version > 0
        written_s, before = self._written
        if version == before:
            return False
        if self._every is not None:
            return abs(version - before) >= self._every
        return now_s - written_s >= self._every_s

    def wrote(self, now_s: float, version: int) -> None:
        self._written = now_s, version
