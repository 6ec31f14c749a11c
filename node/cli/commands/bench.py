"""`murmura bench`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from node import exit_codes
from node.cli.options import json_option, node_options, print_json
from node.errors import ConfigError
from node.forecast import forecast_lines
from node.limits import processor
from protocols.shown import shown


@click.command()
@click.argument("run_file", required=False, type=click.Path(dir_okay=False))
@click.option("--seconds", default=30.0, type=click.FloatRange(1.0, 600.0), help="In all.")
@click.option("--threads", type=click.IntRange(1, 1024), help="As given to `murmura run`.")
@click.option("--data", metavar="PATH", help="Where the run's data is on this machine.")
@json_option
@node_options
def command(
    *,
    run_file: str | None,
    seconds: float,
    threads: int | None,
    data: str | None,
    as_json: bool,
    state_dir: str | None,
    runtime_dir: str | None,
    config_file: str | None,
) -> int:
    """Measure what this machine can do for the run in RUN_FILE, or the one in the settings. Starts no node."""
    from node.bench import measure
    from node.config import load
    from node.membership import resolve

    flags = {"state_dir": state_dir, "runtime_dir": runtime_dir, "run": run_file, "data": data}
    effective = load(
        {key: value for key, value in (flags | {"threads": threads}).items() if value},
        config_file=Path(config_file) if config_file else None,
    )
    config, paths = effective.config, effective.paths
    paths.prepare()
    run = resolve(config, paths).spec
    if run is None:
        raise ConfigError(
            "this run has not been fetched from a peer yet", "name its run file, or join it first"
        )
    if not as_json:
        click.echo(f"{shown(run.name)}, {run.mode}, on {config.compute_threads} threads")
        for line in forecast_lines(run, config):
            click.echo(shown(line))
    found = []
    for measured in measure(run, config, folder=paths.state_dir, seconds=seconds):
        found.append(asdict(measured) | {"value": round(measured.value, 2)})
        if not as_json:
            click.echo(f"{measured.name:<24}{measured.value:>12,.1f} {measured.unit}")
    if as_json:
        head = {"schema_version": 1, "run": run.name, "mode": run.mode}
        print_json(head | {"threads": config.compute_threads, "measured": found} | processor())
    return exit_codes.OK
