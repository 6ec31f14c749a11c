"""Whether what a process holds stays flat: memory and descriptors, looked at over time."""

from __future__ import annotations

import os
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

_PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE")
MEMORY_SHARE: Final = 0.10
MEMORY_BYTES: Final = 8 << 20
"""Together the growth that caches and allocators are allowed, from the second fifth of the time to the last."""
DESCRIPTORS: Final = 12
"""Streams to one more neighbour than there was on average, and back."""
SAMPLES_MIN: Final = 10


@dataclass(slots=True)
class Held:
    """What one process held, sample by sample."""

    memory_bytes: list[int] = field(default_factory=list)
    descriptors: list[int] = field(default_factory=list)

    def look(self, pid: int) -> None:
        """Add a sample. Raises OSError when the process is gone."""
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        count = len(os.listdir(f"/proc/{pid}/fd"))
        self.memory_bytes.append(pages * _PAGE_BYTES)
        self.descriptors.append(count)

    def problem(self) -> str | None:
        """Say what has grown; None when nothing has."""
        if len(self.memory_bytes) < SAMPLES_MIN:
            return None
        before, after = early_and_late(self.memory_bytes)
        if after > before * (1 + MEMORY_SHARE) + MEMORY_BYTES:
            return f"memory grew from {before / 2**20:.1f} to {after / 2**20:.1f} MiB"
        before, after = early_and_late(self.descriptors)
        if after > before + DESCRIPTORS:
            return f"descriptors grew from {before:.0f} to {after:.0f}"
        return None


def early_and_late(samples: Sequence[int]) -> tuple[float, float]:
    """Return the medians of the second and of the last fifth: in the first a process still fills what it will keep."""
    fifth = len(samples) // 5
    return statistics.median(samples[fifth : 2 * fifth]), statistics.median(samples[-fifth:])
