"""`murmura drain`."""

from __future__ import annotations

import time
from typing import Any

import click

from node import exit_codes
from node.cli.options import connect, json_option, node_options, print_json
from node.control.client import ControlClient
from node.errors import ControlError, NodeError, NotRunningError

_POLL_S = 0.2
_MARGIN_S = 10.0
"""What a daemon may need beyond its deadline to save and to stop its children."""


@click.command()
@click.option("--deadline", metavar="SECONDS", type=float, help="Drop what is not done by then.")
@click.option("--no-wait", is_flag=True, help="Ask, and do not wait until the node has left.")
@json_option
@node_options
def command(
    *,
    deadline: float | None,
    no_wait: bool,
    as_json: bool,
    state_dir: str | None,
    runtime_dir: str | None,
    config_file: str | None,
) -> int:
    """Let the node finish what is in flight, hand over what it holds, and stop."""
    began_s = time.monotonic()
    params = {} if deadline is None else {"deadline_s": deadline}
    with connect(state_dir, runtime_dir, config_file) as client:
        answer = client.call("drain", **params)
        if not no_wait:
            _wait_until_gone(client, answer["deadline_seconds"] + _MARGIN_S)
    seconds = round(time.monotonic() - began_s, 2)
    report: dict[str, Any] = {"schema_version": 1, "waited": not no_wait, "seconds": seconds}
    if as_json:
        print_json(report)
    elif no_wait:
        click.echo("draining")
    else:
        click.echo(f"left after {seconds} s")
    return exit_codes.OK


def _wait_until_gone(client: ControlClient, timeout_s: float) -> None:
    """The daemon closes this very connection when it leaves; until then it answers."""
    deadline_s = time.monotonic() + timeout_s
    while time.monotonic() < deadline_s:
        try:
            client.call("version")
        except ControlError:
            pass
        except NotRunningError:
            return
        time.sleep(_POLL_S)
    raise NodeError(
        f"the node is still there after {timeout_s:g} s",
        "its log may say why; a second SIGTERM ends it at once",
    )
