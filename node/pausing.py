"""The shell of `protocols.pausing`: clocks, load, the file that a pause survives in, and what a pause does to this process.

A node that trains pauses by draining and then starting its own program anew in the same process (`node.daemon`): that
alone gives back all memory and the device. The new one finds the file, joins as any node does, and waits with training.
"""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgpack
import trio

from node.clock import unix_s
from node.config import NodeConfig
from node.errors import NodeError
from node.files import write_atomically
from node.life import NodeLife
from node.limits import cores_busy, usage
from node.logs import utc_text
from protocols.errors import RemoteProtocolError
from protocols.frames import unpack_untrusted
from protocols.pausing import Facts, Kept, Pausing, hours_from_text
from protocols.schema import SchemaError, decode, encode

if TYPE_CHECKING:
    from trio_typing import TaskStatus

log = logging.getLogger(__name__)

FILE: Final = "pause.msgpack"
"""In the state folder: a pause is the node's, whatever its run."""
LOOK_EVERY_S: Final = 5.0
HAND_OVER_S: Final = 60.0
"""A pause may take longer than a drain: nobody takes the machine away."""


class PausingService:
    """Watches for reasons to pause. Its object outlives restarts of its task, as all services do."""

    name = "pausing"

    def __init__(self, config: NodeConfig, state_dir: Path, life: NodeLife) -> None:
        self._path = state_dir / FILE
        self._life = life
        self._core = Pausing(
            [hours_from_text(text) for text in config.schedule_hours],
            config.schedule_idle_load,
            _read(self._path),
        )
        self._because: str | None = None
        self._looked: tuple[float, float, float] | None = None
        """When load was looked at last, the processor seconds of the machine by then, and ours."""
        self._measures = config.schedule_idle_load is not None
        self._hand_over_s = max(HAND_OVER_S, config.drain_s)
        self.may_train = trio.Event()
        """Set while nothing speaks against training; a new one takes its place at a pause that comes before it began."""
        self.training_begun = False
        self.embedded = False
        """The process is somebody else's, so it cannot be replaced."""

    async def run(self, *, task_status: TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Look every few seconds, until cancelled."""
        self._look()
        task_status.started()
        while True:
            await trio.sleep(LOOK_EVERY_S)
            self._look()

    async def drain(self, deadline_s: float) -> None:
        """Nothing is held here."""

    def status(self) -> dict[str, Any]:
        until = self._core.kept.until_unix_s
        return {
            "paused": self._because is not None,
            "reason": self._because,
            "until": utc_text(until) if until is not None else None,
        }

    def pause(self, for_s: float | None) -> dict[str, Any]:
        """Pause because the owner says so. Raises NodeError when that cannot be kept for the next start."""
        if self.embedded:
            raise NodeError("this node lives in a script: end the script instead")
        self._core.ask(None if for_s is None else unix_s() + for_s)
        self._keep()
        self._look()
        return self.status()

    def resume(self) -> dict[str, Any]:
        """Train again, unless the schedule speaks against it. Raises NodeError."""
        was_paused = self._because is not None
        self._core.take_back()
        self._keep()
        self._look()
        return {**self.status(), "was_paused": was_paused}

    # --- pieces ---

    def _look(self) -> None:
        before = self._core.kept
        local = time.localtime(unix_s())
        because = self._core.observe(
            Facts(
                now_s=trio.current_time(),
                now_unix_s=unix_s(),
                minute=60 * local.tm_hour + local.tm_min,
                others_cores=self._others_cores(),
            )
        )
        if self._core.kept != before:
            try:
                self._keep()
            except NodeError as error:
                log.warning("the pause is not kept for the next start: %s", error)
        if because != self._because:
            self._because = because
            log.info("paused: %s" if because else "not paused any more%s", because or "")
        self._act()

    def _act(self) -> None:
        """Make the node what it should be. A node that leaves is left alone."""
        if not self._life.takes_work or self.embedded:
            self.may_train.set()
            return
        if self._because is None:
            self._life.resumed("the pause is over")
            self.may_train.set()
        elif self.training_begun:
            self._life.drain_to_pause(self._because, self._hand_over_s)
        else:
            if self.may_train.is_set():
                self.may_train = trio.Event()
            self._life.paused(self._because)

    def _others_cores(self) -> float | None:
        """Return how many cores other programs kept busy since the last look."""
        if not self._measures:
            return None
        now_s, all_s, ours_s = trio.current_time(), cores_busy(), usage().cpu_seconds
        last, self._looked = self._looked, (now_s, all_s, ours_s)
        if last is None or now_s <= last[0]:
            return None
        return max(0.0, (all_s - last[1]) - (ours_s - last[2])) / (now_s - last[0])

    def _keep(self) -> None:
        write_atomically(self._path, bytes(msgpack.packb(encode(self._core.kept))))


def _read(path: Path) -> Kept:
    """Return what a former life has kept. A file that cannot be read pauses nothing: a volunteer notices, and asks again."""
    try:
        return decode(Kept, unpack_untrusted(path.read_bytes()))
    except FileNotFoundError:
        return Kept()
    except (OSError, RemoteProtocolError, SchemaError) as error:
        log.warning("what was kept of a pause cannot be read: %s", error)
        return Kept()
