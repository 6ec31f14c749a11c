"""`murmura top`: many nodes in one table, asked as a stranger asks."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import click

from node import exit_codes
from node.cli.options import json_option, print_json
from node.cli.render import duration
from node.light.ask import Asker
from protocols.invite import dial_problem
from protocols.shown import shown

if TYPE_CHECKING:
    from rich.table import Table

PEERS_MAX: Final = 256
_COLUMNS: Final = ("node", "state", "for", "run", "mode", "role", "step", "steps/min", "peers")

Row = dict[str, Any]


@click.command()
@click.argument("peers", nargs=-1, required=True, metavar="PEER...")
@click.option("--join", metavar="INVITE", help="An invite to their run, when it is private.")
@click.option("--every", default=5.0, type=click.FloatRange(1.0, 3600.0), help="Seconds.")
@click.option("--once", is_flag=True, help="Print the table once.")
@json_option
def command(
    *, peers: tuple[str, ...], join: str | None, every: float, once: bool, as_json: bool
) -> int:
    """Show how many nodes are doing, again and again until Ctrl-C. PEER is a multiaddr, as `murmura id` prints it.

    Exit 0 when all answered, 69 when one did not.
    """
    if len(peers) > PEERS_MAX:
        raise click.UsageError(f"at most {PEERS_MAX} nodes")
    for peer in peers:
        problem = dial_problem(peer)
        if problem is not None:
            raise click.UsageError(f"{shown(peer)}: {problem}")
    with Asker(peers, invite=join) as asker:
        if once or as_json or not sys.stdout.isatty():
            return _print_once(asker.round(), as_json=as_json)
        return _live(asker, every)


def _print_once(rows: Sequence[Row], *, as_json: bool) -> int:
    if as_json:
        print_json({"schema_version": 1, "nodes": rows})
    else:
        for line in table_lines(rows, {}):
            click.echo(line)
    answered = all(row["status"] is not None for row in rows)
    return exit_codes.OK if answered else exit_codes.UNAVAILABLE


def _live(asker: Asker, every_s: float) -> int:
    from rich.live import Live

    speed = Speed()
    with Live(screen=True, auto_refresh=False) as live:
        while True:
            began_s = time.monotonic()
            rows = asker.round()
            live.update(_table(rows, speed.saw(rows, began_s)), refresh=True)
            time.sleep(max(0.0, began_s + every_s - time.monotonic()))


class Speed:
    """Steps a minute of each node, from what it said before. A step that went back begins anew."""

    def __init__(self) -> None:
        self._first: dict[str, tuple[float, int]] = {}

    def saw(self, rows: Sequence[Row], now_s: float) -> dict[str, float]:
        """Return by address what is known after this round."""
        found = {}
        for row in rows:
            step = (row["status"] or {}).get("step")
            if step is None:
                continue
            then_s, before = self._first.setdefault(row["address"], (now_s, step))
            if step < before:
                self._first[row["address"]] = (now_s, step)
            elif now_s > then_s:
                found[row["address"]] = 60 * (step - before) / (now_s - then_s)
        return found


def table_lines(rows: Sequence[Row], speeds: dict[str, float]) -> list[str]:
    """Return the table as plain lines; one look alone knows no speeds."""
    lines = [_COLUMNS, *(_cells(row, speeds) for row in rows)]
    if not speeds:
        speed = _COLUMNS.index("steps/min")
        lines = [(*line[:speed], *line[speed + 1 :]) for line in lines]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    ]


def _table(rows: Sequence[Row], speeds: dict[str, float]) -> Table:
    from rich.table import Table
    from rich.text import Text

    answered = sum(row["status"] is not None for row in rows)
    table = Table(title=f"{answered} of {len(rows)} nodes answer", expand=True)
    for name in _COLUMNS:
        table.add_column(
            name, justify="right" if name in ("step", "steps/min", "peers") else "left"
        )
    for row in rows:
        style = "red" if row["status"] is None else ""
        # Text: what nodes say of themselves is never markup.
        table.add_row(*(Text(cell) for cell in _cells(row, speeds)), style=style)
    return table


def _cells(row: Row, speeds: dict[str, float]) -> tuple[str, ...]:
    name = row["address"].rpartition("/")[2][-8:]
    status = row["status"]
    if status is None:
        return (name, shown(row["problem"]), *[""] * (len(_COLUMNS) - 2))
    if status["state"] is None:
        return (name, "up; its run is private", *[""] * (len(_COLUMNS) - 2))
    speed = speeds.get(row["address"])
    values = (
        name,
        status["state"],
        None if status["state_seconds"] is None else duration(status["state_seconds"]),
        status["run_name"],
        status["mode"],
        status["role"],
        status["step"],
        None if speed is None else f"{speed:.1f}",
        status["peers"],
    )
    return tuple("-" if value in (None, "") else shown(str(value)) for value in values)
