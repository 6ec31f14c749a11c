"""`murmura id`."""

from __future__ import annotations

import click

from node.cli.options import connect, json_option, node_options, print_json


@click.command()
@json_option
@node_options
def command(
    *, as_json: bool, state_dir: str | None, runtime_dir: str | None, config_file: str | None
) -> None:
    """Print the running node's PeerID and the addresses others can dial."""
    with connect(state_dir, runtime_dir, config_file) as client:
        answer = client.call("id")
    if as_json:
        print_json(answer)
        return
    click.echo(answer["peer_id"])
    for address in answer["addresses"]:
        click.echo(address)
