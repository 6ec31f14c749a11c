"""`murmura export`."""

from __future__ import annotations

from pathlib import Path

import click

from node.cli.options import connect, json_option, node_options, print_json

_EXPORT_S = 600.0


@click.command()
@click.argument("path", type=click.Path(dir_okay=False, path_type=Path))
@json_option
@node_options
def command(
    *,
    path: Path,
    as_json: bool,
    state_dir: str | None,
    runtime_dir: str | None,
    config_file: str | None,
) -> None:
    """Write the trained model to PATH as one safetensors file, gathering stages from peers."""
    with connect(state_dir, runtime_dir, config_file) as client:
        answer = client.call("export", timeout_s=_EXPORT_S, path=str(path.absolute()))
    if as_json:
        print_json(answer)
    else:
        facts = ", ".join(
            f"{key} {value}"
            for key, value in answer.items()
            if key not in ("schema_version", "path")
        )
        click.echo(f"{path}: {facts}")
