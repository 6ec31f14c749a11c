"""`murmura drain`."""

from __future__ import annotations

import re
import time
from typing import Any

import click

from node import exit_codes
from node.cli.options import connect, json_option, node_options, print_json
from node.control.client import ControlClient
from node.errors import ControlError, NodeError, NotRunningError
from node.modes import MODES, info_of
from protocols.shown import shown

DEADLINE_S_MAX = 3600.0
"""The daemon takes no longer ones."""
_NUMBER = re.compile(r"\d+")
_POLL_S = 0.2
_MARGIN_S = 10.0
"""What a daemon may need beyond its deadline to save and to stop its children."""


@click.command()
@click.option(
    "--deadline",
    metavar="SECONDS",
    type=click.FloatRange(0, DEADLINE_S_MAX),
    help="Drop what is not done by then.",
)
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
            _wait_until_gone(client, answer["deadline_seconds"])
    seconds = round(time.monotonic() - began_s, 2)
    report: dict[str, Any] = {"schema_version": 1, "waited": not no_wait, "seconds": seconds}
    if as_json:
        print_json(report)
    elif no_wait:
        click.echo("draining")
    else:
        click.echo(f"left after {seconds} s")
    return exit_codes.OK


def _wait_until_gone(client: ControlClient, drain_s: float) -> None:
    """The daemon closes this very connection when it leaves; until then it answers, and we say what it waits for."""
    timeout_s = drain_s + _MARGIN_S
    began_s = time.monotonic()
    said = {""}
    while (elapsed_s := time.monotonic() - began_s) < timeout_s:
        try:
            waiting = waits_for(client.call("status"))
        except ControlError:
            waiting = ""
        except NotRunningError:
            return
        if (phrase := _NUMBER.sub("", waiting)) not in said:  # numbers that count down are no news
            said.add(phrase)
            # On stderr: what this command is asked for is that the node is gone.
            click.echo(
                f"{shown(waiting)} (at most {max(0.0, drain_s - elapsed_s):.0f} s)", err=True
            )
        time.sleep(_POLL_S)
    raise NodeError(
        f"the node is still there after {timeout_s:g} s",
        "its log may say why; a second SIGTERM ends it at once",
    )


def waits_for(report: dict[str, Any]) -> str:
    """Say what a draining node waits for, from its status; empty when it only takes down what it is made of."""
    if report["life"]["state"] != "draining":
        return ""
    mode = report["run"]["mode"] or ""
    reason = info_of(mode).waits_for(report["services"].get(mode, {})) if mode in MODES else ""
    return f"draining: {reason}" if reason else ""
