"""Measure this machine for one run: what it computes, hashes and writes. Starts no node and asks nobody."""

from __future__ import annotations

import hashlib
import importlib
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, cast

from node.config import NodeConfig
from node.errors import ConfigError, file_error
from node.limits import be_nice, cap_library_threads
from node.modes import info_of
from protocols.run import RunSpec
from swarm.data.errors import DataError
from swarm.measuring import Measured, rate
from swarm.tensors.threads import load_torch

_BLOCK: Final = 8 << 20
_WRITTEN_BYTES: Final = 64 << 20
_HASH_S: Final = 0.5

Measure = Callable[[RunSpec, str, float], Iterator[Measured]]


def measure(
    run: RunSpec, config: NodeConfig, *, folder: Path, seconds: float
) -> Iterator[Measured]:
    """Yield figures as they come, in about `seconds` together. Raises ConfigError, PermissionRefusedError.

    With the threads and the niceness that a node would have. Loads torch.

    Args:
      folder: on the disk where checkpoints would be written.
    """
    module, _, name = info_of(run.mode).measure.partition(":")
    if not name:
        raise ConfigError(f"the mode {run.mode} does not say how to measure a machine for it")
    be_nice(config.nice)
    cap_library_threads(config.compute_threads)
    began_s = time.monotonic()
    block = os.urandom(_BLOCK)
    hashes = rate(lambda: hashlib.sha256(block).digest(), _HASH_S)
    yield Measured("sha256, one core", hashes * _BLOCK / 1e6, "MB/s")
    yield Measured("disk, written through", _written_per_s(folder, block) / 1e6, "MB/s")
    load_torch(config.compute_threads)
    measure_mode = cast("Measure", getattr(importlib.import_module(module), name))
    left_s = max(1.0, seconds - (time.monotonic() - began_s))
    try:
        yield from measure_mode(run, config.data, left_s)
    except DataError as error:
        raise ConfigError(
            str(error), "--data says where the run's data is on this machine"
        ) from error


def _written_per_s(folder: Path, block: bytes) -> float:
    """Return bytes a second of a file as large as a small checkpoint, until the disk has it."""
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            began_s = time.monotonic()
            for _ in range(_WRITTEN_BYTES // len(block)):
                file.write(block)
            file.flush()
            os.fsync(file.fileno())
            return _WRITTEN_BYTES / (time.monotonic() - began_s)
    except OSError as error:
        raise file_error(error, f"cannot write in {folder}") from error
