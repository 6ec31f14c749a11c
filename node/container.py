"""What a container, or a unit of systemd, leaves us of its machine: control groups, version 2 and 1.

A process that takes more memory than its group has is killed; one that takes more processor time only waits. The limits
of all groups above ours hold, too.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

_GROUPS: Final = Path("/sys/fs/cgroup")
_OURS: Final = Path("/proc/self/cgroup")
_UNLIMITED_BYTES: Final = 1 << 60
"""Version 1 says a number near 2^63 for no limit."""


def cores_available(groups: Path = _GROUPS, ours: Path = _OURS) -> int:
    """Return how many cores this process may use at once, rounded up; at least one."""
    cores = float(len(os.sched_getaffinity(0)))
    for folder in _folders(groups, ours, "cpu"):
        quota, _, period = (_read(folder / "cpu.max") or "max 100000").partition(" ")
        if quota == "max":
            quota = _read(folder / "cpu.cfs_quota_us") or "-1"
            period = _read(folder / "cpu.cfs_period_us") or "100000"
        if quota.isdigit() and period.isdigit() and int(quota) and int(period):
            cores = min(cores, int(quota) / int(period))
    return max(1, math.ceil(cores))


def memory_limit_bytes(groups: Path = _GROUPS, ours: Path = _OURS) -> int | None:
    """Return the smallest limit on our memory, or None when there is none."""
    limits = []
    for folder in _folders(groups, ours, "memory"):
        for name in ("memory.max", "memory.limit_in_bytes"):
            text = _read(folder / name) or ""
            if text.isdigit() and 0 < int(text) < _UNLIMITED_BYTES:
                limits.append(int(text))
    return min(limits, default=None)


def _folders(groups: Path, ours: Path, controller: str) -> Iterator[Path]:
    """Yield the folders whose limits hold for us: our group's and those of all above, in either version."""
    for line in (_read(ours) or "").splitlines():
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        if controllers and controller not in controllers.split(","):
            continue
        root = groups / controller if controllers else groups
        here = root / path.lstrip("/")
        while here != root and root in here.parents:
            yield here
            here = here.parent
        yield root  # seen from inside a container, the group we are in


def _read(path: Path) -> str | None:
    try:
        return path.read_text("ascii").strip()
    except (OSError, UnicodeDecodeError):
        return None
