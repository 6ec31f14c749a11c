"""`murmura status`: of the node here, or of any node in the world."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

import click

from node import exit_codes
from node.cli.options import connect, json_option, node_options, print_json
from node.control.client import ControlClient
from node.light.ask import status_of
from protocols.shown import shown

_WATCH_S = 1.0


@click.command()
@json_option
@click.option(
    "--watch",
    is_flag=True,
    help="A live screen, until Ctrl-C; a report a second where there is no terminal.",
)
@click.option(
    "--peer",
    metavar="MULTIADDR",
    help="Ask this node instead, as a stranger; needs no daemon here.",
)
@click.option(
    "--join",
    metavar="INVITE",
    help="With --peer: an invite to its run, to see what a private run shows its own.",
)
@node_options
def command(
    *,
    as_json: bool,
    watch: bool,
    peer: str | None,
    join: str | None,
    state_dir: str | None,
    runtime_dir: str | None,
    config_file: str | None,
) -> int:
    """Say how a node is doing. Exit 0 when it is healthy, 3 when none runs, 4 when it is not healthy."""
    if peer is not None:
        return _show_peer(peer, join, as_json=as_json)
    if join is not None:
        raise click.UsageError("--join goes with --peer: a node of one's own shows all anyway")
    if watch and not as_json and sys.stdout.isatty():
        return _watch(lambda: connect(state_dir, runtime_dir, config_file))
    with connect(state_dir, runtime_dir, config_file) as client:
        while True:
            report = client.call("status")
            _show(report, as_json=as_json)
            if not watch:
                return exit_codes.OK if report["healthy"] else exit_codes.UNHEALTHY
            time.sleep(_WATCH_S)


def _watch(connect_to_node: Callable[[], ControlClient]) -> int:
    """Draw until Ctrl-C. Each turn connects anew: the daemon may have been started again."""
    from node.cli.watch import watch

    def ask() -> dict[str, Any]:
        with connect_to_node() as client:
            report: dict[str, Any] = client.call("status")
        return report

    return watch(ask)


def _show(report: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        print_json(report)
        return
    from node.cli.render import status_lines

    for line in status_lines(report):
        click.echo(line)


def _show_peer(address: str, invite: str | None, *, as_json: bool) -> int:
    _refuse_wrong_address(address)
    report = status_of(address, invite=invite)
    if as_json:
        print_json(report)
        return exit_codes.OK
    facts = {k: v for k, v in report.items() if v is not None and k != "schema_version"}
    if not facts:
        click.echo("it is up; its run is private, so more is shown with --join INVITE only")
    width = max(map(len, facts), default=0)
    for key, value in facts.items():
        click.echo(f"{key:<{width}}  {shown(str(value))}")
    return exit_codes.OK


def _refuse_wrong_address(address: str) -> None:
    from protocols.invite import dial_problem

    problem = dial_problem(address)
    if problem is not None:
        raise click.UsageError(f"--peer: {problem}")
