"""What several commands share: which node is meant, and how answers are printed."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from node.control.client import ControlClient

F = TypeVar("F", bound=Callable[..., Any])


def node_options(function: F) -> F:
    """Add --state-dir, --runtime-dir and --config: which of the nodes on this machine is meant."""

    @click.option(
        "--state-dir", metavar="DIR", help="The node's state folder, as given to `murmura run`."
    )
    @click.option("--runtime-dir", metavar="DIR", help="The folder of the node's control socket.")
    @click.option(
        "--config", "config_file", metavar="FILE", help="A settings file other than the usual one."
    )
    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    return wrapper  # type: ignore[return-value]


def json_option(function: F) -> F:
    """Add --json: one object on stdout, nothing else there."""
    return click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")(function)


def connect(
    state_dir: str | None, runtime_dir: str | None, config_file: str | None
) -> ControlClient:
    """Open the control socket of the node that the options name. Raises NodeError."""
    from node.config import load

    flags = {"state_dir": state_dir, "runtime_dir": runtime_dir}
    effective = load(
        {key: value for key, value in flags.items() if value is not None},
        config_file=Path(config_file) if config_file else None,
    )
    return ControlClient(effective.paths.socket)


def print_json(data: Any) -> None:
    """Print one JSON object, indented for people, with keys in their own order."""
    click.echo(json.dumps(data, indent=2))
