"""`murmura status --watch`: one live screen, with the mode's own picture of the swarm. Names of peers are never markup.

It asks every second. A daemon that dies leaves its last picture, with since when it is gone; one that comes back is
taken up again. rich draws anew at each turn, so a window that changes its size is right a second later.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

from rich import box
from rich.columns import Columns
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from node.cli.render import duration, status_lines
from node.errors import NodeError
from protocols.shown import shown_all

TURN_S: Final = 1.0
SEEN_MAX: Final = 600
"""Turns that the curves go back."""
_BARS: Final = " ▁▂▃▄▅▆▇█"
_ROWS_MAX: Final = 12

Ask = Callable[[], dict[str, Any]]
Draw = Callable[[Mapping[str, Any], Mapping[str, Any]], RenderableType]


class Watched:
    """What has been seen of one node so far; `screen` draws it. No IO."""

    def __init__(self) -> None:
        self.report: dict[str, Any] | None = None
        self.gone = ""
        """Why the node does not answer, empty while it does."""
        self._gone_s = 0.0
        self._loss: deque[float] = deque(maxlen=SEEN_MAX)
        self._rate: deque[float] = deque(maxlen=SEEN_MAX)

    def saw(self, report: dict[str, Any]) -> None:
        """Take an answer."""
        self.report, self.gone = shown_all(report), ""
        section = self._section()
        for key, seen in (("loss", self._loss), ("samples_per_second", self._rate)):
            value = section.get(key)
            if isinstance(value, int | float) and math.isfinite(value):
                seen.append(float(value))

    def missed(self, reason: str, now_s: float) -> None:
        """Take it that the node did not answer."""
        self._gone_s = self._gone_s if self.gone else now_s
        self.gone = reason

    def screen(self, width: int, now_s: float) -> RenderableType:
        """Return the picture for a window of this width."""
        parts: list[RenderableType] = []
        if self.gone:
            since = duration(now_s - self._gone_s)
            parts.append(Text(f"no answer for {since}: {self.gone}", style="bold red"))
        if self.report is None:
            return Group(*parts, Text("waiting for the node; Ctrl-C ends this"))
        report, section = self.report, self._section()
        parts.append(_headline(report))
        parts += [Text(f"! {reason}", style="yellow") for reason in report["unhealthy_reasons"]]
        parts.append(_figures(report, section))
        curve_width = max(10, width - 34)
        parts += [
            _curve("loss", self._loss, curve_width),
            _curve("samples per second", self._rate, curve_width),
        ]
        draw = _MAPS.get(report["run"]["mode"], _no_map)
        parts.append(Panel(draw(report, section), title="the swarm", box=box.ROUNDED))
        # The first lines of the plain status are the headline above.
        rest = [line for line in status_lines(report) if line.startswith(("resources", "address"))]
        parts += [Text(line, style="dim", overflow="ellipsis", no_wrap=True) for line in rest[:2]]
        return Group(*parts)

    def _section(self) -> dict[str, Any]:
        if self.report is None:
            return {}
        found: dict[str, Any] = self.report["services"].get(self.report["run"]["mode"], {})
        return found


def watch(ask: Ask, console: Console | None = None) -> int:
    """Draw until Ctrl-C.

    Args:
      ask: returns the node's status; raises NodeError when it does not answer.
    """
    watched = Watched()
    console = console or Console()
    with Live(console=console, screen=True, auto_refresh=False) as live:
        while True:
            now_s = time.monotonic()
            try:
                watched.saw(ask())
            except NodeError as error:
                watched.missed(error.reason, now_s)
            live.update(watched.screen(console.width, now_s), refresh=True)
            time.sleep(TURN_S)


def sparkline(values: Sequence[float], width: int) -> str:
    """Return the newest `width` values as bars, scaled between their own least and greatest."""
    newest = list(values)[-width:]
    if not newest:
        return ""
    low, high = min(newest), max(newest)
    span = (high - low) or 1.0
    return "".join(_BARS[1 + round((value - low) / span * (len(_BARS) - 2))] for value in newest)


def _headline(report: Mapping[str, Any]) -> Text:
    run, life = report["run"], report["life"]
    return Text.assemble(
        (run["name"] or "(not fetched yet)", "bold"),
        f"  {run['mode'] or ''} {run['run_id'][:8]}  ",
        (life["state"], "green" if report["healthy"] else "yellow"),
        f" for {duration(life['since_seconds'])}: {life['reason']}",
    )


def _figures(report: Mapping[str, Any], section: Mapping[str, Any]) -> Columns:
    steps = f" of {section['steps']:,}" if section.get("steps") else ""
    facts = [
        ("step", f"{_figure(section.get('step'))}{steps}"),
        ("loss", _figure(section.get("loss"))),
        ("held out", _figure(section.get("held_out_loss"))),
        ("samples/s", _figure(section.get("samples_per_second"))),
        ("in the run", _figure(section.get("peers"))),
        ("role", str(section.get("role") or "-")),
    ]
    cells = [Text.assemble((f"{name} ", "dim"), (value, "bold")) for name, value in facts]
    waits = section.get("waiting_for")
    if waits:
        cells.append(Text.assemble(("waits for ", "dim"), str(waits)))
    return Columns(cells, padding=(0, 3))


def _figure(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _curve(name: str, values: Sequence[float], width: int) -> Text:
    newest = _figure(float(values[-1])) if values else ""
    return Text.assemble(
        (f"{name:<19}", "dim"), (sparkline(values, width), "cyan"), f" {newest}", no_wrap=True
    )


def _stages(report: Mapping[str, Any], section: Mapping[str, Any]) -> RenderableType:
    own = report["node"]["peer_id"]
    table = Table(box=box.SIMPLE, expand=True)
    columns = []
    for stage, count in enumerate(section.get("members_by_stage", ())):
        table.add_column(f"stage {stage}", style="" if count else "red")
        held = [row for row in section.get("members", ()) if row["stage"] == stage]
        columns.append([_peer(row["peer_id"], own) for row in held] or [Text("nobody", "red")])
    if not columns:
        return Text("no member yet")
    for row in range(min(_ROWS_MAX, max(map(len, columns)))):
        table.add_row(*[column[row] if row < len(column) else "" for column in columns])
    return table


def _neighbours(report: Mapping[str, Any], section: Mapping[str, Any]) -> RenderableType:
    table = Table(box=box.SIMPLE, expand=True)
    for name in ("neighbour", "models taken", "refused", "pushes taken", "last model"):
        table.add_column(name, justify="left" if name == "neighbour" else "right")
    for row in section.get("members", ())[:_ROWS_MAX]:
        last_s = row.get("last_model_seconds")
        table.add_row(
            _peer(row["peer_id"], ""),
            *(_figure(row.get(key)) for key in ("models", "refused", "pushes_taken")),
            "-" if last_s is None else f"{last_s:.0f} s ago",
        )
    return table if table.row_count else Text("no neighbour yet")


def _experts(report: Mapping[str, Any], section: Mapping[str, Any]) -> RenderableType:
    if "table" not in section:
        return Text("no expert yet")
    from node.cli.commands.experts import heat_lines

    alive, hosted = section.get("experts_alive"), section.get("experts_hosted")
    head = f"{_figure(alive)} of {_figure(section['experts'])} alive, {_figure(hosted)} here"
    lines = [line for line in heat_lines(section) if line][: 2 * _ROWS_MAX]
    return Group(Text(head), *[Text(line, no_wrap=True) for line in lines])


def _fragments(report: Mapping[str, Any], section: Mapping[str, Any]) -> RenderableType:
    table = Table(box=box.SIMPLE, expand=True)
    for name in ("fragment", "numbers", "averaged after step", "steps since", "round"):
        table.add_column(name, justify="left" if name == "fragment" else "right")
    for index, row in enumerate(section.get("fragments", ())[:_ROWS_MAX]):
        keys = ("numbers", "averaged_at_step", "steps_not_averaged", "round")
        table.add_row(f"outer/{index}", *(_figure(row.get(key)) for key in keys))
    if not table.row_count:
        return Text("no outer parameters yet")
    members = [_peer(row["peer_id"], "") for row in section.get("members", ())[:_ROWS_MAX]]
    return Group(table, Columns([Text("with", "dim"), *members], padding=(0, 2)))


def _no_map(report: Mapping[str, Any], section: Mapping[str, Any]) -> RenderableType:
    rows: Iterator[str] = status_lines(dict(report))
    return Group(*[Text(line) for line in rows])


_MAPS: Final[dict[str | None, Draw]] = {
    "pipeline": _stages,
    "gossip": _neighbours,
    "collective": _fragments,
    "moe": _experts,
}


def _peer(peer: str, own: str) -> Text:
    return Text(f"{peer[-8:]} (here)", "bold") if peer == own else Text(peer[-8:])
