"""Read the run file people write (TOML) into the RunSpec peers agree on.

Errors name the file, the key, what is wrong and what would be right. How the run is hashed is protocols.run's.
"""

from __future__ import annotations

import dataclasses
import difflib
import tomllib
import typing
from pathlib import Path
from typing import Any, Final

from node.errors import ConfigError
from protocols.run import RunSpec
from protocols.schema import SchemaError, decode

FILE_BYTES_MAX: Final = 256 * 1024
"""A page or two of settings with comments; anything larger is the wrong file."""


def read_run_file(path: Path) -> RunSpec:
    """Read and check one run file. Raises ConfigError."""
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"cannot read the run file {path}: {error.strerror}") from error
    if len(raw) > FILE_BYTES_MAX:
        raise ConfigError(f"{path} has {len(raw)} bytes; a run file has at most {FILE_BYTES_MAX}")
    try:
        data = tomllib.loads(raw.decode("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from error
    return run_from_plain(data, source=str(path))


def run_from_plain(data: dict[str, Any], *, source: str) -> RunSpec:
    """Check plain data as a run. `source` opens the error messages."""
    _refuse_unknown_keys(RunSpec, data, "", source)
    try:
        return decode(RunSpec, data)
    except SchemaError as error:
        raise ConfigError(f"{source}: {error}", "every key: docs/run.md") from error


def check_stage(spec: RunSpec, stage: int | None) -> None:
    """Refuse a wish (`--stage`) for a stage that the run does not have. Raises ConfigError."""
    stages = spec.pipeline.stages
    if stage is not None and stage >= stages:
        raise ConfigError(
            f"stage must be 0 to {stages - 1}, not {stage}: the run {spec.name} has {stages} stages",
            "leave --stage away to host the stage that needs it most",
        )


def check_data(spec: RunSpec, path: str) -> str:
    """Read the run's text here, as a node that trains would, and say what was found.

    Args:
      path: the setting `data`; empty takes the place the run names.
    Raises:
      ConfigError: it is not here, or is another text: then both hashes are named.
    """
    from swarm.pipeline.data import load_dataset
    from swarm.pipeline.text import DataError

    try:
        dataset = load_dataset(spec, path=path)
    except DataError as error:
        raise ConfigError(str(error)) from error
    return f"{dataset.held_out_range.stop} bytes, hash {spec.data.sha256[:8]} as the run names it"


def _refuse_unknown_keys(shape: type, data: dict[str, Any], path: str, source: str) -> None:
    """Find misspelt keys first: telling what was meant helps more than telling what is missing then."""
    hints = typing.get_type_hints(shape)
    known = [item.name for item in dataclasses.fields(shape)]
    for key, value in data.items():
        where = f"{path}.{key}" if path else key
        if key not in known:
            close = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean {close[0]}?" if close else f"known here: {', '.join(known)}"
            raise ConfigError(f"{source}: {where}: unknown key", hint)
        inner = hints[key]
        if dataclasses.is_dataclass(inner) and isinstance(inner, type) and isinstance(value, dict):
            _refuse_unknown_keys(inner, value, where, source)
