"""`murmura peers`."""

from __future__ import annotations

from typing import Any

import click

from node.cli.options import connect, json_option, node_options, print_json
from protocols.shown import shown


@click.command()
@json_option
@node_options
def command(
    *, as_json: bool, state_dir: str | None, runtime_dir: str | None, config_file: str | None
) -> None:
    """List the peers this node is connected to, and what it knows of them."""
    with connect(state_dir, runtime_dir, config_file) as client:
        answer = client.call("peers")
    if as_json:
        print_json(answer)
        return
    peers = answer["peers"]
    if not peers:
        click.echo("no peers; `murmura status` says why")
        return
    columns = list(dict.fromkeys(key for peer in peers for key in peer))
    widths = {
        key: max(len(key), *(len(shown(_cell(peer, key))) for peer in peers)) for key in columns
    }
    click.echo("  ".join(key.ljust(widths[key]) for key in columns).rstrip())
    for peer in peers:
        click.echo(
            "  ".join(shown(_cell(peer, key)).ljust(widths[key]) for key in columns).rstrip()
        )


def _cell(peer: dict[str, Any], key: str) -> str:
    value = peer.get(key)
    return "-" if value is None else str(value)
