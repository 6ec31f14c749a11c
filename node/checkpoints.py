"""Checkpoints as a service of the node: writes what a mode offers, forgets what is old, and says how it stands.

A mode offers a part at every version (`offer`). When one is due, its copy is made on the compute thread; the rest
happens in a thread of its own, one write at a time. A version that comes due while the last is still being written is
left out: training never waits for the disk. On a full disk, or without one, training goes on, and `status` says so.
"""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import trio

from node.clock import unix_s
from node.config import NodeConfig
from protocols.ids import RunID
from swarm.state.cadence import Cadence, OwnCadence
from swarm.state.checkpoint import FOLDER, Checkpoint, CheckpointRefusedError, delete, expired, scan
from swarm.state.part import Part, PartFacts

if TYPE_CHECKING:
    from torch import Tensor
    from trio_typing import TaskStatus

    from protocols.frames import TensorSpec
    from swarm.hosting.compute import ComputeThread

log = logging.getLogger(__name__)

Result = TypeVar("Result")

_DAY_S: Final = 86_400.0
_REFUSED_SHOWN: Final = 8


class Checkpoints:
    """The checkpoints of one run on this node. Its object outlives restarts of its task, as all services do."""

    name = "checkpoints"

    def __init__(self, config: NodeConfig, folder: Path, run: RunID) -> None:
        """
        Args:
          folder: the run's, private to this node.
        """
        self._config = config
        self._folder = folder / FOLDER
        self._run = run
        self._cadences: dict[str, Cadence] = {}
        self._own_cadences: dict[str, OwnCadence] = {}
        self._here: list[Checkpoint] = []
        self._refused: dict[str, str] = {}
        """Path -> why it is not used."""
        self._writing = trio.CapacityLimiter(1)
        self._send, self._offered = trio.open_memory_channel[
            tuple[Part, int, "Mapping[str, Tensor]", PartFacts]
        ](0)
        self._write_seconds: float | None = None
        self._cpu_s = 0.0
        """What copies and writing have cost."""
        self._written = 0
        self._skipped = 0
        self._begun = False
        self.problem = ""
        """Why the last checkpoint was not written; empty when it was."""

    # --- the service ---

    async def run(self, *, task_status: TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Write what is offered, until cancelled."""
        if self._config.new_swarm and not self._begun and self._folder.exists():
            where = await trio.to_thread.run_sync(self.put_aside)
            log.warning("the run begins again; its checkpoints of before are in %s", where)
        self._begun = True
        task_status.started()
        if not self.enabled:
            await trio.sleep_forever()
        await self.scan()
        async for part, version, tensors, facts in self._offered:
            await self._write(part, version, tensors, facts)
            del tensors  # before the next one is waited for

    async def drain(self, deadline_s: float) -> None:
        """The last checkpoint is the training service's to ask for, when its mode has let go."""

    def status(self) -> dict[str, Any]:
        newest = self._here[0].manifest if self._here else None
        return {
            "enabled": self.enabled,
            "newest": None if newest is None else f"{newest.part} at {newest.version}",
            "version": newest.version if newest is not None else None,
            "age_seconds": None
            if newest is None
            else round(max(0.0, unix_s() - newest.written_unix_s), 1),
            "count": len(self._here),
            "size_bytes": sum(checkpoint.manifest.byte_count for checkpoint in self._here),
            "written": self._written,
            "skipped": self._skipped,
            "write_seconds": self._write_seconds,
            "cpu_seconds": round(self._cpu_s, 4),
            "refused": [
                {"path": path, "reason": reason}
                for path, reason in list(self._refused.items())[:_REFUSED_SHOWN]
            ],
            "problem": self.problem or None,
        }

    # --- what a mode asks (swarm.mode.Keeper) ---

    @property
    def enabled(self) -> bool:
        return self._config.checkpoints

    async def offer(self, part: Part, compute: ComputeThread, *, last: bool = False) -> None:
        """Take a part at its present version, if that is to be written. Returns when its copy is made; the last one is written then."""
        if last:
            await self.save(part, compute)
            return
        if not self.enabled or not self._is_due(part):
            return
        if not self._offered.statistics().tasks_waiting_receive:
            self._skipped += 1
            log.debug("checkpoint left out, the last is still being written: part=%s", part.name)
            return
        version, tensors = await self._copy(part, compute)
        # Without waiting: had the writer gone meanwhile, this one is left out.
        try:
            self._send.send_nowait((part, version, tensors, part.facts(version)))
        except trio.WouldBlock:
            self._skipped += 1

    async def offer_own(self, part: Part, compute: ComputeThread) -> None:
        """Take a part that no other node writes, if that is to be written; returns when it is."""
        if not self.enabled:
            return
        cadence = self._own_cadences.get(part.name)
        if cadence is None:
            cadence = self._own_cadences[part.name] = OwnCadence(**self._intervals)
        if cadence.is_due(trio.current_time(), part.version):
            cadence.wrote(trio.current_time(), part.version)
            await self.save(part, compute)

    async def save(self, part: Part, compute: ComputeThread) -> None:
        """Write a part as it is now, due or not, unless that version is there already."""
        if not self.enabled:
            return
        facts = part.facts(part.version)
        if any(
            c.manifest.part == part.name and c.manifest.order == (facts.epoch, part.version)
            for c in self._here
        ):
            return
        version, tensors = await self._copy(part, compute)
        await self._write(part, version, tensors, part.facts(version))

    async def forget(self, part: str) -> None:
        """Delete what is on disk of a part that this node does not hold any more."""
        self._own_cadences.pop(part, None)
        gone = [c for c in self._here if c.manifest.part == part]
        if gone:
            await trio.to_thread.run_sync(self._delete, gone, limiter=self._writing)

    async def scan(self, version_max: int | None = None) -> list[Checkpoint]:
        """Return what is on disk and readable, newest first. What is not is told in the log and in `status`."""
        if not self.enabled:
            return []
        self._here, refused = await trio.to_thread.run_sync(
            lambda: scan(self._folder, self._run, version_max=version_max)
        )
        for item in refused:
            self.refuse(item.path, item.reason)
        return list(self._here)

    async def load(
        self, checkpoint: Checkpoint, expected: Mapping[str, TensorSpec] | None
    ) -> dict[str, Tensor] | None:
        """Verify and load one; None when it is refused, which is told. Use the one before then."""
        from swarm.state.checkpoint_tensors import load_checkpoint

        try:
            return await trio.to_thread.run_sync(load_checkpoint, checkpoint, expected)
        except CheckpointRefusedError as error:
            self.refuse(checkpoint.manifest_file, str(error))
            return None

    def refuse(self, path: Path, reason: str) -> None:
        """Do not use this one, and say so once."""
        where = str(path.relative_to(self._folder))
        if self._refused.get(where) != reason:
            log.error("checkpoint refused: path=%s reason=%s", where, reason)
        self._refused[where] = reason
        self._here = [c for c in self._here if c.manifest_file != path]

    def put_aside(self) -> str:
        """Rename the folder of checkpoints: what is in it is of a history that has ended, and a person may still want it."""
        aside = self._folder.with_name(f"{FOLDER}-given-up")
        self._here, self._refused = [], {}
        try:
            if self._folder.exists():
                shutil.rmtree(aside, ignore_errors=True)
                self._folder.rename(aside)
        except OSError as error:
            self._note_problem(f"checkpoints cannot be put aside: {error.strerror}")
        return str(aside)

    # --- pieces ---

    def _is_due(self, part: Part) -> bool:
        cadence = self._cadences.get(part.name)
        if cadence is None:
            cadence = self._cadences[part.name] = Cadence(**self._intervals)
        return cadence.is_due(trio.current_time(), part.version)

    @property
    def _intervals(self) -> dict[str, Any]:
        config = self._config
        return {"every_s": config.checkpoint_every_s, "every": config.checkpoint_every_steps}

    async def _copy(self, part: Part, compute: ComputeThread) -> tuple[int, Mapping[str, Tensor]]:
        (version, tensors), cpu_s = await compute.run_own(lambda: _costed(part.snapshot))
        self._cpu_s += cpu_s
        return version, tensors

    async def _write(
        self, part: Part, version: int, tensors: Mapping[str, Tensor], facts: PartFacts
    ) -> None:
        from swarm.state.checkpoint_tensors import write_checkpoint

        began_s = trio.current_time()
        try:
            written, cpu_s = await trio.to_thread.run_sync(
                lambda: _costed(
                    lambda: write_checkpoint(
                        *(self._folder, self._run, part.name, version, tensors, facts),
                        now_unix_s=unix_s(),
                    )
                ),
                limiter=self._writing,
            )
        except OSError as error:
            self._note_problem(f"no checkpoint is written: {error.strerror or error}")
            return
        self._cpu_s += cpu_s
        self._write_seconds = round(trio.current_time() - began_s, 3)
        self._written += 1
        if self.problem:
            log.info("checkpoints are written again")
        self.problem = ""
        log.info(
            "checkpoint written: part=%s version=%d bytes=%d after_s=%.2f",
            part.name,
            version,
            written.manifest.byte_count,
            self._write_seconds,
        )
        others = [c for c in self._here if c.manifest_file != written.manifest_file]
        self._here = sorted([written, *others], key=lambda c: c.manifest.order, reverse=True)
        await trio.to_thread.run_sync(self._forget_old, limiter=self._writing)

    def _note_problem(self, problem: str) -> None:
        if problem != self.problem:
            log.error("%s; training goes on", problem)
        self.problem = problem

    def _forget_old(self) -> None:
        """In a thread. One that cannot be deleted is tried again after the next write."""
        gone: Sequence[Checkpoint] = expired(
            self._here,
            kept=self._config.checkpoints_kept,
            age_max_s=self._config.checkpoints_kept_days * _DAY_S,
            now_unix_s=unix_s(),
        )
        self._delete(gone)

    def _delete(self, gone: Sequence[Checkpoint]) -> None:
        """In a thread."""
        for checkpoint in gone:
            try:
                delete(checkpoint)
            except OSError as error:
                log.warning("old checkpoint not deleted: %s", error.strerror)
                continue
            self._here = [c for c in self._here if c is not checkpoint]


def _costed(work: Callable[[], Result]) -> tuple[Result, float]:
    """Do it, and return the processor seconds that it took of this thread."""
    began_s = time.thread_time()
    return work(), time.thread_time() - began_s
