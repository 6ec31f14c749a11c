"""`murmura experts`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import click

from node.cli.options import connect, json_option, node_options, print_json
from node.errors import NodeError
from protocols.shown import shown

_COLUMNS: Final = ("expert", "host", "epoch", "rows", "steps", "staleness", "age")
_SHADES: Final = " ░▒▓█"


@click.command()
@json_option
@node_options
@click.option("--heat", is_flag=True, help="Draw how many rows this node sent to each expert.")
def command(
    *,
    as_json: bool,
    state_dir: str | None,
    runtime_dir: str | None,
    config_file: str | None,
    heat: bool,
) -> None:
    """List the experts of a moe run: who hosts each, and how it is used.

    Rows are what this node sent there itself; steps, staleness and age are known of experts that it hosts.
    """
    with connect(state_dir, runtime_dir, config_file) as client:
        status = client.call("status")
    section = status["services"].get("moe", {})
    if status["life"]["state"] == "paused":
        raise NodeError("this node is paused, and hosts no experts", "`murmura resume` ends that")
    if "table" not in section:
        raise NodeError(
            "this node hosts and knows no experts", "the run's mode is not moe, or it has not begun"
        )
    if as_json:
        print_json({key: section[key] for key in ("grid", "layers", "table", "members")})
        return
    for line in heat_lines(section) if heat else table_lines(section["table"]):
        click.echo(line)


def table_lines(rows: Sequence[Mapping[str, Any]]) -> Sequence[str]:
    """Return one line for each expert."""
    cells = [_cells(row) for row in rows]
    widths = [max(len(name), *(len(line[i]) for line in cells)) for i, name in enumerate(_COLUMNS)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in [_COLUMNS, *cells]
    ]


def heat_lines(section: Mapping[str, Any]) -> Sequence[str]:
    """Return each layer's grid: the darker, the more rows; `!` where nobody hosts the expert.

    The last coordinate runs to the right, all others downwards.
    """
    across = section["grid"][-1]
    lines = []
    for layer in section["layers"]:
        rows = [row for row in section["table"] if row["expert"].startswith(f"{layer}.")]
        most = max((row["rows"] or 0 for row in rows), default=0)
        lines.append(f"{shown(layer)}, at most {most} rows")
        for start in range(0, len(rows), across):
            place = rows[start]["expert"].partition(".")[2].rpartition(".")[0]
            cells = "".join(_shade(row, most) for row in rows[start : start + across])
            lines.append(f"  {shown(place):>8} {cells}")
    return [*lines, "the darker, the more rows this node sent; ! nobody hosts it"]


def _shade(row: Mapping[str, Any], most: int) -> str:
    if not row["hosts"] and not row.get("replicas"):
        return " !"
    share = (row["rows"] or 0) / most if most else 0.0
    return 2 * _SHADES[round(share * (len(_SHADES) - 1))]


def _cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    answering = [*row["hosts"], *row.get("replicas", ())]
    host = "nobody" if not answering else ("here" if row["here"] else answering[0][-8:])
    more = f" +{len(answering) - 1}" if len(answering) > 1 else ""
    age = row["age_seconds"]
    values = (
        row["expert"], host + more, row["epoch"], row["rows"], row["steps"], row["staleness"],
        None if age is None else f"{age:.0f} s",
    )  # fmt: skip
    return tuple("-" if value is None else shown(str(value)) for value in values)
