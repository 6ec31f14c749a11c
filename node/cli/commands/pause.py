"""`murmura pause`: the machine is wanted back."""

from __future__ import annotations

import re
import time
from typing import Any, Final

import click

from node import exit_codes
from node.cli.commands.drain import waits_for
from node.cli.options import connect, json_option, node_options, print_json
from node.errors import ControlError, NodeError, NotRunningError
from protocols.shown import shown

_SPAN: Final = re.compile(r"(?:(\d+(?:\.\d+)?)([smhd]))")
_UNITS_S: Final = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}
_NUMBER: Final = re.compile(r"\d+")
_POLL_S: Final = 0.2
WAIT_S: Final = 120.0
"""The node takes at most a minute to hand over, or its `drain_s`; then it starts again."""


def seconds_of(text: str) -> float:
    """Read `90s`, `30m`, `2h`, `1h30m`, `1d`. Raises ValueError."""
    spans = _SPAN.findall(text)
    if not spans or "".join(number + unit for number, unit in spans) != text:
        raise ValueError(f"must be a time like 90s, 30m, 2h or 1h30m, not {text[:40]!r}")
    seconds = sum(float(number) * _UNITS_S[unit] for number, unit in spans)
    if seconds <= 0:
        raise ValueError("must be longer than nothing")
    return seconds


@click.command()
@click.option("--for", "span", metavar="TIME", help="Resume by itself after 90s, 30m, 2h, 1d.")
@click.option("--no-wait", is_flag=True, help="Ask, and do not wait until the node has paused.")
@json_option
@node_options
def command(
    *,
    span: str | None,
    no_wait: bool,
    as_json: bool,
    state_dir: str | None,
    runtime_dir: str | None,
    config_file: str | None,
) -> int:
    """Let the node hand over what it holds, free memory and device, and rest until `murmura resume`.

    It keeps its identity and stays paused over restarts. The last node with a part of the model hands it over first.
    """
    try:
        params = {} if span is None else {"for_s": seconds_of(span)}
    except ValueError as error:
        raise click.UsageError(f"--for: {error}") from error
    began_s = time.monotonic()
    with connect(state_dir, runtime_dir, config_file) as client:
        answer = client.call("pause", **params)
    if not no_wait:
        _wait_until_paused(state_dir, runtime_dir, config_file)
    seconds = round(time.monotonic() - began_s, 2)
    if as_json:
        report = {"schema_version": 1, "waited": not no_wait, "seconds": seconds}
        print_json({**report, "until": answer["until"]})
    else:
        until = f", until {answer['until']}" if answer["until"] else ", until `murmura resume`"
        click.echo(f"pausing{until}" if no_wait else f"paused after {seconds} s{until}")
    return exit_codes.OK


def _wait_until_paused(
    state_dir: str | None, runtime_dir: str | None, config_file: str | None
) -> None:
    """Ask until the node says so; in between it is away for a moment, since it starts anew."""
    began_s = time.monotonic()
    said = {""}
    while time.monotonic() - began_s < WAIT_S:
        try:
            with connect(state_dir, runtime_dir, config_file) as client:
                status: dict[str, Any] = client.call("status")
        except (ControlError, NotRunningError):
            time.sleep(_POLL_S)
            continue
        if status["life"]["state"] == "paused":
            return
        waiting = waits_for(status)
        if (phrase := _NUMBER.sub("", waiting)) not in said:  # numbers that count down are no news
            said.add(phrase)
            click.echo(shown(waiting), err=True)
        time.sleep(_POLL_S)
    raise NodeError(f"the node has not paused after {WAIT_S:g} s", "its log may say why")
