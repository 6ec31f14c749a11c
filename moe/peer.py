"""One node's part in a network of experts, put together: what it hosts, what it knows, and how it asks others.

The mode `moe` and scripts of `murmura.join` use the same class: it needs a caller, a directory and a compute thread.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import trio
from torch import nn

from moe.bridge import Bridge
from moe.network import RemoteExperts
from moe.search import ExpertAnnouncer, ExpertSearch
from moe.server import Expert, ExpertServer, build_expert
from protocols.experts.dispatch import Dispatch
from protocols.experts.spec import MoeSpec
from protocols.experts.uid import ExpertUID, Grid
from protocols.experts.view import PrefixView
from protocols.ids import PeerID, RunID
from protocols.ports import Directory
from protocols.run import OptimizerSpec, RunSpec
from swarm.calls import Caller
from swarm.endpoints import Endpoint
from swarm.hosting.compute import ComputeThread
from swarm.hosting.optimizers import MakeOptimizer

_SMALL_GRID: Final = 4096
"""Prefixes of a grid that are all kept fresh; of a larger one only those that searches ask for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerSettings:
    """How a node hosts and asks."""

    announced_s: float = 60.0
    """How long the directory names us after we went silently."""
    refresh_s: float = 2.0
    """Between two looks at the directory."""
    floor_s: float = 2.0
    """No call has less time."""
    ceiling_s: float = 60.0
    """No call has more time; one to a host of which nothing is known has this."""
    clip_norm: float = 1.0
    staleness_max: int = 64

    @classmethod
    def of_run(cls, run: RunSpec, *, clip_norm: float) -> PeerSettings:
        """Return what a run says of it."""
        spec = run.settings(MoeSpec)
        return cls(
            announced_s=spec.announced_s,
            refresh_s=spec.refresh_s,
            floor_s=run.deadlines.floor_s,
            ceiling_s=run.deadlines.ceiling_s,
            clip_norm=clip_norm,
            staleness_max=spec.staleness_max,
        )


class ExpertPeer:
    """Made in the event loop.

    Args:
      rate: learning rate of an expert's step, counted from 0.
      unix_s: wall clock.
      failed: told of hosts that calls could not reach.
      newer: told when a caller knows a newer epoch of an expert here.
    """

    def __init__(
        self,
        *,
        me: PeerID,
        run: RunID,
        directory: Directory,
        caller: Caller,
        compute: ComputeThread,
        unix_s: Callable[[], float],
        rate: Callable[[int], float],
        settings: PeerSettings | None = None,
        failed: Callable[[PeerID], None] = lambda peer: None,
        newer: Callable[[ExpertUID, int], None] = lambda uid, epoch: None,
        looked: Callable[[], None] = lambda: None,
    ) -> None:
        settings = settings or PeerSettings()
        self._me = me
        self._compute = compute
        self.view = PrefixView(fresh_s=settings.refresh_s)
        self.view.own(me, {})
        self.announcer = ExpertAnnouncer(directory, run, lifetime_s=settings.announced_s)
        self.search = ExpertSearch(
            directory,
            run,
            self.view,
            unix_s=unix_s,
            faulty=lambda peer, error: caller.guard.fault(peer, error),
            looked=looked,
            found=lambda peer, prefix: self.announcer.found(prefix) if peer == me else None,
        )
        self.server = ExpertServer(
            compute,
            rate=rate,
            clip_norm=settings.clip_norm,
            staleness_max=settings.staleness_max,
            newer=newer,
        )
        self.dispatch = Dispatch(floor_s=settings.floor_s, ceiling_s=settings.ceiling_s)
        self.bridge = Bridge()
        self.network = RemoteExperts(
            caller,
            self.search,
            self.dispatch,
            self.bridge,
            me=me,
            local=self.server,
            failed=failed,
        )

    async def run(self, *, task_status: Any = trio.TASK_STATUS_IGNORED) -> None:
        """Look up and announce until cancelled; then nobody waits for an answer any more."""
        try:
            async with trio.open_nursery() as nursery:
                await nursery.start(self.search.run)
                await nursery.start(self.announcer.run)
                task_status.started()
        finally:
            self.bridge.close()

    def wire(self) -> Mapping[str, Endpoint]:
        return self.server.wire()

    def watch(self, grids: Iterable[Grid]) -> None:
        """Keep what is known of these layers fresh, so that no search waits for the directory."""
        for grid in grids:
            if len(grid) // grid.sizes[-1] <= _SMALL_GRID:
                self.view.want(grid.prefixes())

    async def host(
        self,
        uid: ExpertUID,
        make: Callable[[], nn.Module],
        optimizer: OptimizerSpec | MakeOptimizer,
        *,
        row: Sequence[int],
        epoch: int = 1,
        device: str = "cpu",
    ) -> Expert:
        """Build an expert on the compute thread, answer for it, and announce it."""
        build = functools.partial(_build, uid, make, optimizer, row, epoch, device)
        expert = await self._compute.run_own(build)
        self.server.put(expert)
        self.announce()
        return expert

    def announce(self) -> None:
        """State what is hosted here now."""
        hosted = {uid: expert.epoch for uid, expert in self.server.experts.items()}
        self.view.own(self._me, hosted)
        self.announcer.announce(hosted)


def _build(
    uid: ExpertUID,
    make: Callable[[], nn.Module],
    optimizer: OptimizerSpec | MakeOptimizer,
    row: Sequence[int],
    epoch: int,
    device: str,
) -> Expert:
    return build_expert(uid, make(), optimizer, row=row, epoch=epoch, device=device)
