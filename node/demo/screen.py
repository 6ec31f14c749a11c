"""Progress on stderr: a table that redraws itself on a terminal, a line now and then anywhere else."""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Sequence
from typing import IO, TYPE_CHECKING, Final, Protocol

from node.demo.scene import SceneT, View

if TYPE_CHECKING:
    from rich.console import Console, Group
    from rich.table import Table

LINE_EVERY_S: Final = 4.0
_EVENTS_SHOWN: Final = 8


class Screen(Protocol):
    """Where the person sees how it goes."""

    def show(self, scene: SceneT, view: View[SceneT]) -> None:
        """Show what was found; called several times a second."""
        ...

    def say(self, text: str) -> None:
        """Report something that happened."""
        ...

    def progress(self, text: str) -> None:
        """Show how far something else than the swarm is; called often."""
        ...

    def close(self) -> None:
        """Leave the last picture and give the terminal back."""
        ...


def open_screen(*, began_s: float, stream: IO[str] | None = None) -> Screen:
    """Return the screen that suits stderr.

    Args:
      began_s: of time.monotonic, when the demo began.
    """
    stream = stream or sys.stderr
    if stream.isatty():
        return LiveScreen(began_s, stream)
    return PlainScreen(began_s, stream)


def headline(scene: SceneT, view: View[SceneT]) -> str:
    """Say how it goes in one line, whatever the scenario."""
    if scene.latest is None:
        return f"starting {len(scene.up)} nodes" if scene.up else "all nodes have left"
    return view.headline(scene)


class PlainScreen:
    """One line every few seconds, and one per event."""

    def __init__(self, began_s: float, stream: IO[str]) -> None:
        self._began_s = began_s
        self._stream = stream
        self._line_s = 0.0

    def show(self, scene: SceneT, view: View[SceneT]) -> None:
        self.progress(headline(scene, view))

    def progress(self, text: str) -> None:
        now_s = time.monotonic()
        if now_s - self._line_s >= LINE_EVERY_S:
            self._line_s = now_s
            self._write(text)

    def say(self, text: str) -> None:
        self._write(f"* {text}")

    def close(self) -> None:
        self._stream.flush()

    def _write(self, text: str) -> None:
        self._stream.write(f"{time.monotonic() - self._began_s:6.1f} s  {text}\n")
        self._stream.flush()


class LiveScreen:
    """A table of nodes below a headline, and what happened last below the table. rich is imported here and not before."""

    def __init__(self, began_s: float, stream: IO[str]) -> None:
        from rich.console import Console
        from rich.live import Live

        self._began_s = began_s
        self._console: Console = Console(file=stream)
        self._events: deque[str] = deque(maxlen=_EVENTS_SHOWN)
        self._columns: Sequence[str] = ()
        self._rows: Sequence[Sequence[str]] = ()
        self._headline = ""
        self._live = Live(console=self._console, auto_refresh=False)
        self._live.start()

    def show(self, scene: SceneT, view: View[SceneT]) -> None:
        self._rows = [
            (sight.name, sight.role, sight.state, *view.cells(sight)) for sight in scene.sights
        ]
        self._columns = ("node", "role", "state", *view.columns)
        self.progress(headline(scene, view))

    def progress(self, text: str) -> None:
        self._headline = text
        self._live.update(self._picture(), refresh=True)

    def say(self, text: str) -> None:
        self._events.append(f"{time.monotonic() - self._began_s:6.1f} s  {text}")
        self._live.update(self._picture(), refresh=True)

    def close(self) -> None:
        self._live.stop()

    def _picture(self) -> Group:
        from rich.console import Group
        from rich.text import Text

        elapsed_s = time.monotonic() - self._began_s
        return Group(
            Text(f"{elapsed_s:6.1f} s  {self._headline}", style="bold"),
            self._table(),
            *(Text(event) for event in self._events),
        )

    def _table(self) -> Table:
        from rich.table import Table
        from rich.text import Text

        table = Table(box=None, pad_edge=False)
        for name in self._columns:
            table.add_column(name, justify="left" if name in ("node", "role", "state") else "right")
        for name, role, state, *cells in self._rows:
            table.add_row(name, role, Text(state, style=_STYLES.get(state, "")), *cells)
        return table


_STYLES: Final = {"serving": "green", "killed": "red", "drained": "dim", "syncing": "yellow"}
