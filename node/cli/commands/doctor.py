"""`murmura doctor`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from node import exit_codes
from node.cli.options import json_option, node_options, print_json
from protocols.shown import shown


@click.command()
@click.option(
    "--join", metavar="INVITE", help="Check also whether this invite's peers can be reached."
)
@click.option("--listen", multiple=True, metavar="MULTIADDR", help="Check these addresses.")
@json_option
@node_options
def command(
    *,
    join: str | None,
    listen: tuple[str, ...],
    as_json: bool,
    state_dir: str | None,
    runtime_dir: str | None,
    config_file: str | None,
) -> int:
    """Look for what could keep a node on this machine from working; exit 1 when something is found."""
    from node.config import load
    from node.doctor import examine

    flags = {"state_dir": state_dir, "runtime_dir": runtime_dir, "join": join, "listen": listen}
    effective = load(
        {key: value for key, value in flags.items() if value},
        config_file=Path(config_file) if config_file else None,
    )
    findings = list(examine(effective))
    healthy = all(finding.ok for finding in findings)
    if as_json:
        print_json(
            {"schema_version": 1, "ok": healthy, "findings": [asdict(item) for item in findings]}
        )
    else:
        for finding in findings:
            click.echo(
                f"{'ok     ' if finding.ok else 'PROBLEM'} {shown(finding.name)}: {shown(finding.detail)}"
            )
            if not finding.ok and finding.hint:
                click.echo(f"        {shown(finding.hint)}")
    return exit_codes.OK if healthy else exit_codes.FAILED
