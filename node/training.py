"""Training as a service of the node: gives a mode what it works with, and puts it behind the supervisor.

Nothing here knows one mode from another, or loads torch: `node.modes` does, in a thread, once the run is known.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import trio

from node.clock import unix_s
from node.errors import NodeError
from node.forecast import check_fits, forecasts
from node.identity import verify_signature
from node.modes import build_mode, info_of
from node.node import Node
from node.run_start import start_lines
from node.runfile import check_wishes, refused_pattern, wishes_of
from node.services import Service
from protocols.run import ScriptExpertsSpec
from swarm.endpoints import Endpoints
from swarm.mode import ExportRefusedError, Mode, Progress, RunContext

if TYPE_CHECKING:
    from trio_typing import TaskStatus

    from swarm.resources import Resources

log = logging.getLogger(__name__)

_LAST_CHECKPOINT_S: Final = 4.0
"""Of a drain's time, at most: some GB on a disk of today. One cut short leaves the checkpoint before it."""


def build_services(node: Node) -> Iterable[Service]:
    """Return the services that train the node's run. Loads torch: call it in a thread. Raises NodeError."""
    if isinstance(node.run.model, ScriptExpertsSpec):
        raise NodeError(
            f"the experts of the run {node.run.name} live in scripts, and a daemon has no code for them",
            "a script takes part with murmura.join(invite), see docs/tutorial-moe.md",
        )
    for line in start_lines(node.run, node.membership.folder.parent):
        log.info("start: %s", line)
    return (TrainingService(node, build_mode(context_of(node))),)


def context_of(node: Node) -> RunContext:
    return RunContext(
        run=node.run,
        signer=node.signer,
        verify=verify_signature,
        host=node.host,
        directory=node.directory,
        guard=node.guard,
        rates=node.rates,
        run_key=node.membership.run_key,
        wishes=dataclasses.replace(wishes_of(node.config), new_epoch=node.new_epoch),
        founding=lambda: _founding(node),
        folder=node.membership.folder,
        life=node.life,
        refuses_work=node.refuses_work,
        rng=node.rng,
        keeper=node.checkpoints,
        unix_s=unix_s,
    )


async def _founding(node: Node) -> bool:
    await node.founding_known.wait()
    return node.membership.first


class TrainingService:
    """A run's mode on this node."""

    def __init__(self, node: Node, mode: Mode) -> None:
        self._node = node
        self._mode = mode
        self._resources: Resources | None = None
        self.name = mode.name
        self._refused = ""
        """Why the run's data is not read; nothing is done then."""
        self._forecasts = forecasts(node.run)
        self._endpoints = Endpoints(
            node.host,
            node.run.run_id,
            run_key=node.membership.run_key,
            guard=node.guard,
            rates=node.rates,
            limits=mode.limits,
        )

    async def run(self, *, task_status: TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        # Loads torch: this module is imported before READY.
        from swarm.resources import open_resources

        node, mode = self._node, self._mode
        # One who joins learns only now what the run has to offer; it must not do another thing than was asked for.
        wishes = wishes_of(node.config)
        check_wishes(node.run, wishes)
        check_fits(node.run, node.config)
        self._refused = refused_pattern(node.run, wishes) or ""
        if self._refused:
            log.error("does not train: %s", self._refused)
            node.life.needs_state(self.name, "waits for leave to read the run's text")
            task_status.started()
            await trio.sleep_forever()
        node.life.needs_state(self.name, "starting to train")
        async with (
            open_resources(
                node.host,
                node.run.run_id,
                run_key=node.membership.run_key,
                guard=node.guard,
                rates=node.rates,
                limits=mode.limits,
                threads=node.config.compute_threads,
                nice=node.config.nice,
                batch_max=mode.batch_max,
            ) as resources,
            trio.open_nursery() as nursery,
        ):
            self._resources = resources
            try:
                await nursery.start(mode.run, resources)
                await self._endpoints.open(mode.wire())
                task_status.started()
                await trio.sleep_forever()
            finally:
                self._resources = None
                self._endpoints.close()

    async def drain(self, deadline_s: float) -> None:
        """Let the mode hand over, then write what this node still holds: what others have is worth less."""
        await self._mode.drain(deadline_s - min(_LAST_CHECKPOINT_S, deadline_s / 4))
        if self._resources is not None:
            for part in self._mode.parts():
                await self._node.checkpoints.save(part, self._resources.compute)

    def progress(self) -> Progress:
        """Say how training goes; O(1)."""
        if self._refused:
            return Progress(problems=(self._refused,))
        return self._mode.progress()

    @property
    def task_seconds(self) -> float:
        return self._resources.task_seconds if self._resources is not None else 0.0

    def status(self) -> dict[str, Any]:
        """Return the mode's section: the facts that all modes have, then its own."""
        progress = dataclasses.asdict(self.progress())
        return (
            progress
            | {"problems": list(progress["problems"])}
            | {"forecast": [dataclasses.asdict(part) for part in self._forecasts]}
            | self._mode.detail()
        )

    async def export(self, path: Path, options: Mapping[str, Any]) -> dict[str, Any]:
        """Write the model as one safetensors file. Raises NodeError."""
        known = info_of(self.name).options
        for option in options:
            if option not in known:
                raise NodeError(f"--{option} says nothing in a run of mode {self.name}")
        try:
            return await self._mode.export(path, options)
        except ExportRefusedError as error:
            raise NodeError(str(error), "try again in a moment") from error
        except OSError as error:
            # strerror: the error's own text names a temporary file that nobody has heard of.
            raise NodeError(
                f"cannot write {path}: {error.strerror}", "name a path that this node may write"
            ) from error
