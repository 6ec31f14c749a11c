"""`murmura invite`."""

from __future__ import annotations

import click

from node.cli.options import connect, json_option, node_options, print_json


@click.command()
@json_option
@node_options
def command(
    *, as_json: bool, state_dir: str | None, runtime_dir: str | None, config_file: str | None
) -> None:
    """Print the invite to the node's run; whoever has it joins with `murmura run --join INVITE`."""
    with connect(state_dir, runtime_dir, config_file) as client:
        answer = client.call("invite")
    if as_json:
        print_json(answer)
        return
    click.echo(answer["invite"])
    if answer["secret"]:
        click.echo(
            "This run is private: the invite holds its key. Hand it on like a password.", err=True
        )
    if all(address.startswith(("/ip4/127.", "/ip6/::1/")) for address in answer["addresses"]):
        click.echo(
            "It names loopback addresses only, so it is of use on this machine; see --listen and --announce.",
            err=True,
        )
