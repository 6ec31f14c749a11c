"""Progress on stderr: a table that redraws itself on a terminal, a line now and then anywhere else."""

from __future__ import annotations

import sys
import time
from collections import deque
from typing import IO, TYPE_CHECKING, Final, Protocol

from node.demo.scene import Scene

if TYPE_CHECKING:
    from rich.console import Console, Group
    from rich.table import Table

LINE_EVERY_S: Final = 4.0
_EVENTS_SHOWN: Final = 8


class Screen(Protocol):
    """Where the person sees how it goes."""

    def show(self, scene: Scene) -> None:
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


def open_screen(steps: int, *, began_s: float, stream: IO[str] | None = None) -> Screen:
    """Return the screen that suits stderr.

    Args:
      began_s: of time.monotonic, when the demo began.
    """
    stream = stream or sys.stderr
    if stream.isatty():
        return LiveScreen(steps, began_s, stream)
    return PlainScreen(steps, began_s, stream)


def headline(scene: Scene, steps: int) -> str:
    """Return step, losses, speed and peers per stage in one line."""
    latest = scene.latest
    if latest is None:
        return f"starting {len(scene.up)} nodes" if scene.up else "all nodes have left"
    parts = [f"step {scene.step}/{steps}"]
    if latest.loss is not None:
        parts.append(f"loss {latest.loss:.3f}")
    if latest.held_out_loss is not None:
        parts.append(f"held-out {latest.held_out_loss:.3f}")
    if latest.tokens_per_second:
        parts.append(f"{latest.tokens_per_second:,.0f} tokens/s")
    parts.append("peers per stage " + " ".join(map(str, latest.members_by_stage)))
    parts.append(f"{len(scene.up)} nodes up")
    return ", ".join(parts)


class PlainScreen:
    """One line every few seconds, and one per event."""

    def __init__(self, steps: int, began_s: float, stream: IO[str]) -> None:
        self._steps = steps
        self._began_s = began_s
        self._stream = stream
        self._line_s = 0.0

    def show(self, scene: Scene) -> None:
        self.progress(headline(scene, self._steps))

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

    def __init__(self, steps: int, began_s: float, stream: IO[str]) -> None:
        from rich.console import Console
        from rich.live import Live

        self._steps = steps
        self._began_s = began_s
        self._console: Console = Console(file=stream)
        self._events: deque[str] = deque(maxlen=_EVENTS_SHOWN)
        self._scene = Scene(())
        self._headline = ""
        self._live = Live(console=self._console, auto_refresh=False)
        self._live.start()

    def show(self, scene: Scene) -> None:
        self._scene = scene
        self.progress(headline(scene, self._steps))

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
        for name in ("node", "role", "state", "stage", "step", "counted", "in flight"):
            table.add_column(name, justify="left" if name in ("node", "role", "state") else "right")
        for sight in self._scene.sights:
            table.add_row(
                sight.name + (" (leads)" if sight.leading and sight.up else ""),
                sight.role,
                Text(sight.state, style=_STYLES.get(sight.state, "")),
                "-" if sight.stage is None else str(sight.stage),
                "-" if sight.step is None else str(sight.step),
                str(sight.counted),
                str(sight.in_flight) if sight.up else "-",
            )
        return table


_STYLES: Final = {"serving": "green", "killed": "red", "drained": "dim", "syncing": "yellow"}
