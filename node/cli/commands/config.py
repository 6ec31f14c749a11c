"""`murmura config`: what applies, where it comes from, and whether it is right."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from node.cli.options import json_option, node_options, print_json
from node.config import Effective, Setting, load
from protocols.shown import shown


@click.group()
def command() -> None:
    """Show or check the settings."""


@command.command()
@click.option("--effective", is_flag=True, help="Say also where each value comes from.")
@json_option
@node_options
def show(*, effective: bool, as_json: bool, **which: str | None) -> None:
    """Print every setting with its value."""
    loaded = _load(**which)
    if as_json:
        settings = {
            item.key: {"value": _shown(item), "origin": item.origin} for item in loaded.settings
        }
        print_json({"schema_version": 1, "settings": settings, "paths": _paths(loaded)})
        return
    for item in loaded.settings:
        value = _shown(item)
        line = f"# {item.key} is unset" if value is None else f"{item.key} = {_toml(value)}"
        click.echo(f"{line:<48} # {item.origin}" if effective else line)
    for name, path in _paths(loaded).items():
        click.echo(f"# {name}: {path}")


@command.command()
@click.argument("run_file", required=False, type=click.Path(dir_okay=False))
@json_option
@node_options
def check(*, run_file: str | None, as_json: bool, **which: str | None) -> None:
    """Check the settings, RUN_FILE when it is named, and its text; exit 78 when something is wrong."""
    loaded = _load(**which)
    lines: list[str] = []
    report: dict[str, Any] = {"schema_version": 1, "ok": True}
    if chosen := run_file or loaded.config.run:
        from node.forecast import check_fits, forecast_lines, forecasts
        from node.run_start import start_lines
        from node.runfile import check_data, check_wishes, read_run_file, wishes_of

        spec = read_run_file(Path(chosen).expanduser())
        check_wishes(spec, wishes_of(loaded.config))
        check_fits(spec, loaded.config)
        check_data(spec, loaded.config.data)
        report |= {"run_name": spec.name, "run_id": str(spec.run_id), "mode": spec.mode}
        began = start_lines(spec, loaded.paths.state_dir / "runs")
        lines = [*began, *forecast_lines(spec, loaded.config)]
        report["start"] = began
        report["forecast"] = [asdict(part) for part in forecasts(spec)]
    if loaded.config.join:
        _check_invite(loaded.config.join)
    if as_json:
        print_json(report)
    else:
        named = f"; run {shown(report['run_name'])} is {report['run_id']}" if chosen else ""
        click.echo(f"the settings are right{named}")
        for line in lines:
            click.echo(shown(line))


@command.command()
@click.argument("pattern")
@click.option("--bytes-max", type=int, default=None, help="Use at most so much text.")
def data(*, pattern: str, bytes_max: int | None) -> None:
    """Print the [data] section of a run file for PATTERN: a file, a folder or a glob."""
    from node.errors import ConfigError
    from protocols.run import TextSpec
    from swarm.data.errors import DataError
    from swarm.data.text import read_text

    if pattern and not pattern.startswith("{stdlib}"):
        # A service has another working folder than the person who asks.
        pattern = str(Path(pattern).expanduser().absolute())
    spec = TextSpec(pattern=pattern or ".", sha256="0" * 64)
    limit = spec.bytes_max if bytes_max is None else bytes_max
    try:
        text = read_text(pattern, bytes_max=limit)
    except DataError as error:
        raise ConfigError(str(error), "name a file, a folder or a glob that has text") from error
    click.echo(f"# {text.files} files, {len(text.data)} bytes are used")
    click.echo(f"[data]\npattern = {_toml(pattern)}\nsha256 = {_toml(text.sha256)}")
    if limit != spec.bytes_max:
        click.echo(f"bytes_max = {limit}")


def _load(state_dir: str | None, runtime_dir: str | None, config_file: str | None) -> Effective:
    flags = {"state_dir": state_dir, "runtime_dir": runtime_dir}
    given = {key: value for key, value in flags.items() if value is not None}
    return load(given, config_file=Path(config_file) if config_file else None)


def _check_invite(text: str) -> None:
    from node.errors import ConfigError
    from protocols.invite import InviteError, invite_from_text

    try:
        invite_from_text(text)
    except InviteError as error:
        raise ConfigError(f"join: {error}") from error


def _shown(item: Setting) -> Any:
    if item.secret:
        return "(set)" if item.value else ""
    return list(item.value) if isinstance(item.value, tuple) else item.value


def _toml(value: Any) -> str:
    """Write a value as the settings file would."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        return "[" + ", ".join(_toml(item) for item in value) + "]"
    if not isinstance(value, str):
        return str(value)
    plain = (c if c.isprintable() and c not in '"\\' else f"\\U{ord(c):08X}" for c in value)
    return f'"{"".join(plain)}"'


def _paths(loaded: Effective) -> dict[str, str]:
    paths = loaded.paths
    return {
        "state_dir": str(paths.state_dir),
        "runtime_dir": str(paths.runtime_dir),
        "socket": str(paths.socket),
    }
