"""`murmura version`."""

from __future__ import annotations

import click

from node.cli.options import json_option, print_json
from protocols.replies import SOFTWARE_VERSION, WIRE_VERSION


@click.command()
@json_option
def command(*, as_json: bool) -> None:
    """Print the version of the software and of the wire protocol."""
    if as_json:
        print_json({"schema_version": 1, "version": SOFTWARE_VERSION, "wire_version": WIRE_VERSION})
    else:
        click.echo(f"murmura {SOFTWARE_VERSION} (wire protocol {WIRE_VERSION})")
