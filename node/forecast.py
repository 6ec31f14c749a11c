"""What a run will take of this machine's memory, in the run's words, before torch fails in its own."""

from __future__ import annotations

from pathlib import Path

from node.config import NodeConfig
from node.container import memory_limit_bytes
from node.errors import ConfigError
from node.modes import info_of
from protocols.run import RunSpec
from swarm.mode_info import Forecast


def forecasts(spec: RunSpec) -> tuple[Forecast, ...]:
    """Return what each part of the model takes; () when nobody can tell without building it."""
    return info_of(spec.mode).forecast(spec)


def forecast_lines(spec: RunSpec, config: NodeConfig) -> list[str]:
    """Say what each part takes, and what is free here."""
    free = _text_of(memory_free_bytes(config))
    return [
        f"{part.name}: {part.parameters:,} parameters, {_text_of(part.memory_bytes)} with optimizer and gradient;"
        f" {free} is free here"
        for part in forecasts(spec)
    ]


def check_fits(spec: RunSpec, config: NodeConfig, *, room_bytes: int | None = None) -> str:
    """Say what the run takes here. Raises ConfigError when this machine cannot hold what it would have to.

    Args:
      room_bytes: what there is; None takes all memory that this node may ever have.
    """
    parts = [part for part in forecasts(spec) if config.stage in (None, part.stage) and config.host]
    if not parts:
        return "nothing to forecast"
    least = min(parts, key=lambda part: part.memory_bytes)
    room = memory_total_bytes(config) if room_bytes is None else room_bytes
    if least.memory_bytes > room:
        raise ConfigError(
            f"{least.name} of run {spec.name} has {least.parameters:,} parameters and takes"
            f" {_text_of(least.memory_bytes)} with optimizer and gradient; there are {_text_of(room)} for it here",
            "take a smaller model or more stages, or --no-host to train only",
        )
    return f"{least.name} takes {_text_of(least.memory_bytes)}, {_text_of(room)} are there"


def memory_total_bytes(config: NodeConfig) -> int:
    """Return what this node may ever have: of the machine, its container, and `memory_max_mb`."""
    return _smallest(_meminfo("MemTotal:"), config)


def memory_free_bytes(config: NodeConfig) -> int:
    """Return what this node may take now."""
    return _smallest(_meminfo("MemAvailable:"), config)


def _smallest(machine_bytes: int, config: NodeConfig) -> int:
    wanted = None if config.memory_max_mb is None else config.memory_max_mb << 20
    return min(n for n in (machine_bytes, wanted, memory_limit_bytes()) if n is not None)


def _meminfo(key: str) -> int:
    """Read one line of /proc/meminfo, in bytes; a number without end where there is none."""
    try:
        for line in Path("/proc/meminfo").read_text("ascii").splitlines():
            if line.startswith(key):
                return int(line.split()[1]) << 10
    except (OSError, ValueError, IndexError):
        pass
    return 1 << 62


def _text_of(count: int) -> str:
    """Write a number of bytes for people."""
    for unit, size in (("TB", 1 << 40), ("GB", 1 << 30)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{max(1, count >> 20)} MB"
