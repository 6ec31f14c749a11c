"""What a node may take of its machine, and what it takes: descriptors, niceness, memory, threads.

Linux only, like the node: numbers come from /proc, which costs microseconds and no dependency.
"""

from __future__ import annotations

import logging
import os
import platform
import resource
import time
from collections.abc import Iterator, MutableMapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

log = logging.getLogger(__name__)

_PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE")
_TICKS_PER_S: Final = os.sysconf("SC_CLK_TCK")
_THREAD_VARIABLES: Final = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


@dataclass(frozen=True, slots=True)
class Usage:
    """What the daemon and all its children take together."""

    processes: int
    memory_bytes: int
    """Resident, shared pages counted once per process: the number that a person sees in `top`."""
    cpu_seconds: float
    """User and system time since each process started."""


def raise_descriptor_limit() -> int:
    """Raise the soft limit of open files to the hard one, for us and our children, and return it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        except (
            ValueError,
            OSError,
        ) as error:  # macOS reports an infinite hard limit it does not grant
            log.warning("open files stay limited to %d: %s", soft, error)
            return soft
    return hard


def descriptors_open() -> int:
    """How many descriptors this process has open."""
    return len(os.listdir("/proc/self/fd"))


def be_nice(nice: int) -> None:
    """Lower our priority to `nice`; children inherit it. Never raises it: that needs root."""
    missing = nice - os.getpriority(os.PRIO_PROCESS, 0)
    if missing > 0:
        os.nice(missing)


def cap_library_threads(threads: int, environ: MutableMapping[str, str] | None = None) -> None:
    """Tell numeric libraries, before anybody imports them, how many threads they may start.

    Only where the person has not said otherwise. Children inherit it: the dht process loads torch for no arithmetic.
    """
    environ = os.environ if environ is None else environ
    for name in _THREAD_VARIABLES:
        environ.setdefault(name, str(threads))


def usage() -> Usage:
    """Add up what we and our descendants take."""
    return usage_of(os.getpid())


def usage_of(root: int) -> Usage:
    """Add up what a process and its descendants take. One that ends meanwhile is left out."""
    processes, pages, ticks = 0, 0, 0
    for pid in family(root):
        try:
            process_pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
            # Fields after the command name, which may itself hold spaces: state is the first.
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except (OSError, IndexError):
            continue
        processes += 1
        pages += process_pages
        ticks += int(fields[11]) + int(fields[12])
    return Usage(processes, pages * _PAGE_BYTES, ticks / _TICKS_PER_S)


def cores_busy() -> float:
    """Return the processor seconds that this machine has spent on anything since it was started, over all cores."""
    fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
    ticks = [int(field) for field in fields[:8]]  # user nice system idle iowait irq softirq steal
    return (sum(ticks) - ticks[3] - ticks[4]) / _TICKS_PER_S


def family(pid: int) -> Iterator[int]:
    """Yield `pid` and its living descendants."""
    yield pid
    try:
        tasks = os.listdir(f"/proc/{pid}/task")
    except OSError:
        return
    for task in tasks:
        try:
            children = Path(f"/proc/{pid}/task/{task}/children").read_text().split()
        except OSError:
            continue
        for child in children:
            yield from family(int(child))


class MemoryLimit:
    """Says whether there is memory for more work. With some hysteresis, so that it does not flap at the edge."""

    RESUME_SHARE: Final = 0.9
    """Work is taken again below this share of the limit."""

    def __init__(self, limit_bytes: int | None) -> None:
        self._limit_bytes = limit_bytes
        self._over = False

    def observe(self, memory_bytes: int) -> None:
        """Take a measurement; log when the answer changes."""
        if self._limit_bytes is None:
            return
        share = memory_bytes / self._limit_bytes
        if not self._over and share > 1.0:
            self._over = True
            log.warning(
                "over the memory limit, no new work is taken: used_mb=%d limit_mb=%d",
                memory_bytes >> 20,
                self._limit_bytes >> 20,
            )
        elif self._over and share < self.RESUME_SHARE:
            self._over = False
            log.info("below the memory limit again: used_mb=%d", memory_bytes >> 20)

    @property
    def reason(self) -> str | None:
        """Why no work should be taken, or None."""
        if not self._over or self._limit_bytes is None:
            return None
        return f"over the memory limit of {self._limit_bytes >> 20} MB"


def processor() -> dict[str, Any]:
    """Name the processor, the cores we may use, and the day: figures mean nothing without them."""
    model = platform.machine()
    try:
        for line in Path("/proc/cpuinfo").read_text("utf-8", "replace").splitlines():
            if line.startswith("model name"):
                model = line.partition(":")[2].strip()
                break
    except OSError:
        pass  # not everywhere; the architecture has to do
    return {
        "processor": model,
        "cores": len(os.sched_getaffinity(0)),
        "date": datetime.now(UTC).date().isoformat(),
    }


def process_age_s() -> float:
    """Seconds since this process was started, imports included."""
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    return time.clock_gettime(time.CLOCK_BOOTTIME) - int(fields[19]) / _TICKS_PER_S
