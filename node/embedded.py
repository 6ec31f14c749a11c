"""A node inside somebody's own script: p2pd, directory and one trio thread behind a `with` block. No torch here.

    with murmura.join("murmura1...") as swarm:
        ...

It is the daemon's own composition (`node.daemon.serve`) in a thread, with the script where the daemon builds a mode.
"""

from __future__ import annotations

import queue
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final, TypeVar

import trio

from node.clock import unix_s
from node.config import load
from node.daemon import Startup, prepared, serve, what_a_person_can_fix
from node.errors import NodeError
from node.node import Node
from node.services import Service
from node.status import build_status
from node.training import TrainingService, context_of
from protocols.run import RunSpec
from swarm.mode import Mode, RunContext

START_S: Final = 60.0
"""For p2pd and the directory; peers are looked for afterwards."""
RUN_S: Final = 120.0
"""To fetch the run from a peer."""
LEAVE_S: Final = 20.0

MakeMode = Callable[[RunContext], Mode]
Part = TypeVar("Part")


class Swarm:
    """A run that this script takes part in. Use it as a context manager; made by `join`."""

    def __init__(self, startup_of: Callable[[Path], Any], folder: Path | None) -> None:
        self._startup_of = startup_of
        self._own_folder = folder is None
        self._folder = folder or Path(tempfile.mkdtemp(prefix="murmura-"))
        self._thread = threading.Thread(target=self._main, name="murmura", daemon=True)
        self._opened: queue.SimpleQueue[Node | BaseException] = queue.SimpleQueue()
        self._wanted: queue.SimpleQueue[MakeMode | None] = queue.SimpleQueue()
        self._node: Node | None = None
        self._token: trio.lowlevel.TrioToken | None = None
        self._failure: BaseException | None = None
        self._on_end: list[Callable[[str], None]] = []
        self._part: Any = None

    def __enter__(self) -> Swarm:
        """Start the network. Raises NodeError when it cannot start."""
        self._thread.start()
        opened = self._opened.get(timeout=START_S)
        if isinstance(opened, BaseException):
            self._close()
            raise opened
        self._node = opened
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Leave: tell the others, stop the children. Whatever the block raised goes on."""
        self._wanted.put(None)
        if self._node is not None and self._thread.is_alive():
            reason = "the script is done" if error is None else f"the script ended: {kind}"
            self._in_trio(self._node.life.drain, reason, LEAVE_S / 2)
        self._close()
        if error is None and self._failure is not None:
            raise self._failure

    # --- what a script asks ---

    @property
    def run(self) -> RunSpec:
        """The run; a script that joins waits until a peer has told it. Raises NodeError."""
        self._in_trio_async(self._run_known)
        return self._here.run

    @property
    def invite(self) -> str:
        """The line with which others join, scripts and daemons alike."""
        node = self._here
        text: str = self._in_trio(lambda: node.membership.invite(node.host.addresses()).to_text())
        return text

    def status(self) -> dict[str, Any]:
        """Return what `murmura status --json` would say."""
        node = self._here
        report: dict[str, Any] = self._in_trio(lambda: build_status(node, now_unix_s=unix_s()))
        return report

    # --- what trains in a script ---

    def part(self, kind: type[Part], make: Callable[[], Part]) -> Part:
        """Return what this script takes part with, made at the first call. Raises NodeError when that is of another kind."""
        if self._part is None:
            self._part = make()
        if not isinstance(self._part, kind):
            raise NodeError("this script takes part in the run in another way already")
        return self._part

    def take_part(self, make: MakeMode, *, on_end: Callable[[str], None]) -> None:
        """Take part in the run with this mode, once.

        Args:
          make: called in another thread, once the run is known.
          on_end: told why when the network ends by itself.
        """
        self._on_end.append(on_end)
        self._wanted.put(make)

    # --- the thread ---

    def _main(self) -> None:
        try:
            with self._startup_of(self._folder) as startup:
                trio.run(self._serve, startup)
        except BaseExceptionGroup as group:
            self._ended(what_a_person_can_fix(group))
        except BaseException as error:  # noqa: BLE001 - handed to the script's thread
            self._ended(error)
        else:
            self._ended(None)

    async def _serve(self, startup: Startup) -> None:
        self._token = trio.lowlevel.current_trio_token()
        await serve(startup, build_services=self._build, opened=self._opened.put)

    def _build(self, node: Node) -> Iterable[Service]:
        make = self._wanted.get()  # until the script brings something to train, or ends
        return () if make is None else (TrainingService(node, make(context_of(node))),)

    def _ended(self, error: BaseException | None) -> None:
        self._failure = error
        self._opened.put(error or NodeError("the node ended before it was ready"))
        for told in self._on_end:
            told(str(error) if error is not None else "the node has left")

    def _close(self) -> None:
        self._wanted.put(None)
        self._thread.join(LEAVE_S)
        if self._own_folder:
            shutil.rmtree(self._folder, ignore_errors=True)

    # --- between the threads ---

    @property
    def _here(self) -> Node:
        if self._node is None:
            raise NodeError("not in the swarm", "use it inside `with murmura.join(...) as swarm:`")
        return self._node

    def _in_trio(self, fn: Callable[..., Any], *args: Any) -> Any:
        return trio.from_thread.run_sync(fn, *args, trio_token=self._token)

    def _in_trio_async(self, fn: Callable[..., Any], *args: Any) -> Any:
        return trio.from_thread.run(fn, *args, trio_token=self._token)

    async def _run_known(self) -> None:
        with trio.move_on_after(RUN_S):
            await self._here.run_known.wait()


def join(
    invite: str = "",
    *,
    run_file: str | Path | None = None,
    run: RunSpec | None = None,
    state_dir: str | Path | None = None,
    listen: Sequence[str] = ("/ip4/0.0.0.0/tcp/0",),
    private: bool = False,
) -> Swarm:
    """Open the network for a script, without a daemon. Use the result as a context manager.

    Args:
      invite: of a run that others are in already.
      run_file: a run file: this script begins that run. One of the three must be given.
      run: the same, as an object (`murmura.script_run`).
      state_dir: where the identity is kept, for a script that comes back as the same peer; None forgets it.
      listen: addresses, as for `murmura run`; `/ip4/127.0.0.1/tcp/0` for this machine only.
      private: beginning a run: only who has the invite may take part.
    Raises:
      NodeError: an invite or a run file that is wrong.
    """

    def startup(folder: Path) -> Any:
        flags: dict[str, Any] = {
            "state_dir": str(folder),
            "listen": list(listen),
            "join": invite,
            "private": private,
            "nice": 0,
        }
        if run_file is not None:
            flags["run"] = str(Path(run_file).expanduser().absolute())
        # An empty environment: a script is what its arguments say, whatever the daemon's settings are.
        return prepared(load(flags, environ={}), run=run)

    return Swarm(startup, Path(state_dir).expanduser() if state_dir is not None else None)
