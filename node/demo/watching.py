"""The demo's nodes, seen as a person sees them: over their control sockets, and as processes.

`Watch.until` is how the demo waits: it looks, shows, and fails with the log of the node concerned when a node ends by
itself or when nothing happens any more. Nothing here sleeps for a fixed time where an arrival can be observed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Generic

from node.demo.scene import SceneT, Sight, View
from node.demo.screen import Screen
from node.errors import NodeError
from node.local import ASK_S, MURMURA, LocalNode, stop_all

EVERY_S: Final = 0.25
"""Between looks. A status costs a node about a millisecond."""
LOOK_S: Final = 1.0
"""A node that imports torch beside six others may answer late: it is asked again, and the picture stays alive."""
STILL_S: Final = 30.0
"""Nothing happens for so long: something hangs. A step takes about a second."""
INVITE_S: Final = 60.0
_KILL_S: Final = 10.0
"""The kernel takes a process down at once; children that it has to find first may take a moment."""


@dataclass(slots=True)
class _Watched:
    node: LocalNode
    role: str
    fate: str = "up"
    last: Sight | None = None


class Watch(Generic[SceneT]):
    """Starts nodes, looks at them, ends them. As a context manager it leaves none running.

    Args:
      folder: each node gets a state folder in it.
      view: how the scenario looks at nodes.
      flags: of `murmura run`, for every node.
    """

    def __init__(
        self, folder: Path, screen: Screen, view: View[SceneT], flags: Iterable[str] = ()
    ) -> None:
        self.screen = screen
        self._view = view
        self._folder = folder
        self._flags = tuple(flags)
        self._watched: dict[str, _Watched] = {}

    def start(self, name: str, *flags: str, role: str, command: Iterable[str] = ()) -> LocalNode:
        """Start one node with `murmura run`, or with another command that takes the same arguments; or one again that ended."""
        if (before := self._watched.get(name)) is not None:
            before.node.close()
        node = LocalNode(
            self._folder / name, *self._flags, *flags, command=tuple(command) or MURMURA
        )
        self._watched[name] = _Watched(node, role)
        return node

    def invite(self, name: str) -> str:
        """Wait for the line that a first node prints on standard output, and return the invite in it."""
        node = self._watched[name].node
        node.wait_ready()
        deadline_s = time.monotonic() + INVITE_S
        while not (words := node.out.read_text("utf-8").split()):
            if node.process.poll() is not None or time.monotonic() > deadline_s:
                raise NodeError(f"node {name} printed no invite; its log ends:", node.tail())
            time.sleep(0.02)
        return words[-1]

    def ask(self, name: str, method: str, *, timeout_s: float = ASK_S, **params: Any) -> Any:
        """Ask one node over its control socket. Raises NodeError."""
        return self._watched[name].node.ask(method, timeout_s=timeout_s, **params)

    def kill(self, name: str) -> None:
        """SIGKILL a node; its children die with it."""
        watched = self._watched[name]
        watched.node.kill()
        watched.fate = "killed"

    def kill_all(self) -> None:
        """Take the power: SIGKILL to all that are up, before anything is waited for."""
        up = [watched for watched in self._watched.values() if watched.fate == "up"]
        for watched in up:
            watched.node.family()
        for watched in up:
            watched.node.process.kill()
        for watched in up:
            watched.node.process.wait(_KILL_S)
            watched.fate = "killed"

    def drain(self) -> dict[str, int]:
        """SIGTERM all that are up, at once, and return their exit codes."""
        up = {name: w for name, w in self._watched.items() if w.fate == "up"}
        codes = stop_all([watched.node for watched in up.values()])
        for watched in up.values():
            watched.fate = "drained"
        return {name: codes[watched.node] for name, watched in up.items()}

    def leave(self) -> list[str]:
        """Let all that are up drain, and return a sentence for everything that went wrong about it."""
        codes = self.drain()
        self.look()  # the last picture shows them as they are now
        failures = [
            f"node {name} ended with exit code {code} when asked to leave; its log ends:\n  {self.tail(name)}"
            for name, code in codes.items()
            if code
        ]
        failures += [
            f"node {name} left processes behind: {sorted(pids)}"
            for name, pids in self.left_behind().items()
        ]
        self.screen.say(f"drained: {len(codes)} nodes, {len(failures)} of them not cleanly")
        return failures

    def left_behind(self) -> dict[str, set[int]]:
        """Return the processes that outlived their node, by node; none, if all is well."""
        found = {name: watched.node.left_behind() for name, watched in self._watched.items()}
        return {name: pids for name, pids in found.items() if pids}

    def tail(self, name: str) -> str:
        return self._watched[name].node.tail()

    # --- looking ---

    def look(self) -> SceneT:
        """Ask every node that is up, and show what was found. Raises NodeError when one has ended by itself."""
        scene = self._view.scene([self._look_at(name) for name in self._watched])
        self.screen.show(scene, self._view)
        return scene

    def _look_at(self, name: str) -> Sight:
        watched = self._watched[name]
        blank = Sight(name=name, role=watched.role, fate=watched.fate)
        if watched.fate == "up":
            code = watched.node.process.poll()
            if code is not None:
                raise NodeError(
                    f"node {name} ended by itself with exit code {code}; its log ends:",
                    watched.node.tail(),
                )
            try:
                watched.last = self._view.sight(blank, watched.node.ask("status", timeout_s=LOOK_S))
            except NodeError:
                watched.last = watched.last or blank  # starting, or too busy to answer just now
            watched.node.family()
        elif watched.last is not None:
            return replace(watched.last, fate=watched.fate, state=watched.fate)
        return watched.last or blank

    def until(
        self,
        condition: Callable[[SceneT], Any],
        *,
        what: str,
        every_s: float = EVERY_S,
        still_s: float = STILL_S,
    ) -> SceneT:
        """Look until `condition(scene)` holds and return that scene.

        Args:
          what: is waited for, for the message when nothing happens any more.
        Raises:
          NodeError: a node ended by itself, cannot train, or nothing happened for `still_s`.
        """
        progress: object = None
        moved_s = time.monotonic()
        while True:
            scene = self.look()
            if condition(scene):
                return scene
            self._raise_data_problem(scene)
            if scene.progress() != progress:
                progress, moved_s = scene.progress(), time.monotonic()
            elif time.monotonic() - moved_s > still_s:
                raise self._nothing_happens(scene, what, still_s)
            time.sleep(every_s)

    def _raise_data_problem(self, scene: SceneT) -> None:
        for sight in scene.up:
            if sight.problem:
                raise NodeError(f"node {sight.name} cannot train: {sight.problem}")

    def _nothing_happens(self, scene: SceneT, what: str, still_s: float) -> NodeError:
        """Blame the node that is not where it should be: one that is not serving, else the one that leads."""
        late = [sight for sight in scene.up if sight.state != "serving"]
        concerned = late[0] if late else scene.latest or scene.up[0]
        waiting = f", which waits for {concerned.waiting_for}" if concerned.waiting_for else ""
        return NodeError(
            f"nothing has happened for {still_s:.0f} s at step {scene.step} while waiting for {what}; "
            f"the log of node {concerned.name} ({concerned.state}){waiting} ends:",
            self.tail(concerned.name),
        )

    # --- leaving ---

    def close(self) -> None:
        """Leave nothing running: what is still up is killed, all of it before anything is waited for."""
        for watched in self._watched.values():
            watched.node.process.kill()
        for watched in self._watched.values():
            watched.node.close()

    def __enter__(self) -> Watch[SceneT]:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
