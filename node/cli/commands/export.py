"""`murmura export`."""

from __future__ import annotations

from pathlib import Path

import click

from node.cli.options import connect, json_option, node_options, print_json
from node.cli.render import start_table

_EXPORT_S = 600.0


@click.command()
@click.argument("path", type=click.Path(dir_okay=False, path_type=Path))
@click.option(
    "--checkpoint",
    is_flag=True,
    help="Mode moe: write a whole checkpoint to this node's disk as well, from which another run can begin.",
)
@click.option(
    "--consensus",
    is_flag=True,
    help="Mode gossip: write the mean of the neighbours' newest models and this peer's.",
)
@json_option
@node_options
def command(
    *,
    path: Path,
    checkpoint: bool,
    consensus: bool,
    as_json: bool,
    state_dir: str | None,
    runtime_dir: str | None,
    config_file: str | None,
) -> None:
    """Write the trained model to PATH as one safetensors file, gathering stages or experts from peers."""
    flags = {"checkpoint": checkpoint, "consensus": consensus}
    options = {name: True for name, given in flags.items() if given}
    with connect(state_dir, runtime_dir, config_file) as client:
        answer = client.call("export", timeout_s=_EXPORT_S, path=str(path.absolute()), **options)
    start = answer.pop("start", None)
    if as_json:
        print_json(answer if start is None else answer | {"start": start})
    else:
        facts = ", ".join(
            f"{key} {value}"
            for key, value in answer.items()
            if key not in ("schema_version", "path") and not isinstance(value, dict)
        )
        click.echo(f"{path}: {facts}")
        if start is not None:
            click.echo(start_table(start))
