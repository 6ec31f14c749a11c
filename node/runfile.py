"""Read the run file people write (TOML) into the RunSpec peers agree on.

Errors name the file, the key, what is wrong and what would be right. How the run is hashed is protocols.run's.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import protocols.run
from node.config import NodeConfig
from node.container import memory_limit_bytes
from node.errors import ConfigError
from node.files import read_toml
from node.modes import info_of
from protocols.run import RunSpec
from protocols.schema import SchemaError
from swarm.data.errors import DataError
from swarm.data.text import is_within
from swarm.mode_info import Wishes

_MOVED: Final = {
    "pipeline.steps": "training.steps",
    "pipeline.sequences": "training.batch: the samples of a whole step, sequences times microbatches",
    "pipeline.evaluate_every": "training.evaluate_every",
    "pipeline.evaluation_microbatches": "training.evaluation_samples: sequences times microbatches",
}
"""Keys that had another place in earlier versions."""
FILE_BYTES_MAX: Final = 256 * 1024
"""A page or two of settings with comments; anything larger is the wrong file."""


def read_run_file(path: Path) -> RunSpec:
    """Read and check one run file. Raises NodeError."""
    data = read_toml(path, "the run file", bytes_max=FILE_BYTES_MAX)
    return run_from_plain(data, source=str(path))


def run_from_plain(data: dict[str, Any], *, source: str) -> RunSpec:
    """Check plain data as a run. `source` opens the error messages."""
    for old, now in _MOVED.items():
        table, _, key = old.partition(".")
        if isinstance(found := data.get(table), dict) and key in found:
            raise ConfigError(f"{source}: {old}: is now {now}", "every key: docs/run.md")
    try:
        return protocols.run.run_from_plain(data)
    except SchemaError as error:
        raise ConfigError(f"{source}: {error}", error.hint or "every key: docs/run.md") from error


def wishes_of(config: NodeConfig) -> Wishes:
    """Return what a volunteer's settings say about training."""
    return Wishes(
        host=config.host,
        train=config.train,
        stage=config.stage,
        data=config.data,
        data_folders=None if config.run else config.data_folders,
        memory_max_bytes=memory_max_bytes(config),
        threads=config.compute_threads,
        nice=config.nice,
        begin_anew=config.new_swarm,
    )


def memory_max_bytes(config: NodeConfig) -> int | None:
    """What was asked for, else nearly all that a container gives us: over that it would be killed without a word."""
    if config.memory_max_mb is not None:
        return config.memory_max_mb << 20
    limit = memory_limit_bytes()
    return None if limit is None else limit // 10 * 9


def refused_pattern(spec: RunSpec, wishes: Wishes) -> str | None:
    """Say why the place that a fetched run names for its data is not looked at, with the command to give; else None.

    Whether a node trains shows whether a guessed hash was right, so a run could ask for any file of its nodes.
    """
    pattern = getattr(spec.data, "pattern", None)
    if pattern is None or wishes.data or not wishes.train or wishes.data_folders is None:
        return None
    if is_within(pattern, wishes.data_folders):
        return None
    return (
        f"this run wants to read {pattern!a}, which nobody here has allowed; start this node with `--data PATH` if you"
        " keep its text, with `--data-folders FOLDER` to allow runs to name files there, or with `--no-train`"
    )


def check_wishes(spec: RunSpec, wishes: Wishes) -> None:
    """Refuse wishes that the run cannot grant, e.g. `--stage` of a stage that it does not have. Raises ConfigError."""
    try:
        info_of(spec.mode).check_wishes(spec, wishes)
    except ValueError as error:
        raise ConfigError(
            str(error), "leave the flag away, and the node chooses by itself"
        ) from error


def check_data(spec: RunSpec, path: str) -> str:
    """Read the run's data here, as a node that trains would, and say what was found.

    Args:
      path: the setting `data`; empty takes the place the run names.
    Raises:
      ConfigError: it is not here, or is other data: then both hashes are named.
    """
    try:
        return info_of(spec.mode).check_data(spec, path)
    except DataError as error:
        raise ConfigError(str(error)) from error
