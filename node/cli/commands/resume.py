"""`murmura resume`."""

from __future__ import annotations

import click

from node import exit_codes
from node.cli.options import connect, json_option, node_options, print_json


@click.command()
@json_option
@node_options
def command(
    *, as_json: bool, state_dir: str | None, runtime_dir: str | None, config_file: str | None
) -> int:
    """End a pause: the node joins and trains again, unless its schedule speaks against it."""
    with connect(state_dir, runtime_dir, config_file) as client:
        answer = client.call("resume")
    if as_json:
        print_json(answer)
    elif answer["paused"]:
        click.echo(f"still paused: {answer['reason']}")
    else:
        click.echo("resumed" if answer["was_paused"] else "it was not paused")
    return exit_codes.OK
