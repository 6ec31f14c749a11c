"""Experts that somebody's own script hosts and asks: the mode `moe` without a model of its own.

    script's thread                             trio thread
    Server(swarm, {...})      -- host ------->    ExpertPeer, as in the daemon
    RemoteMixtureOfExperts    -- calls ------>    the network behind it

Experts compute on a thread of the node's; the layer, and all else of the script's model, on the script's own.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import torch
import trio
from torch import Tensor, nn

from moe.info import MODE
from moe.network import Answered, ExpertNetwork
from moe.peer import ExpertPeer, PeerSettings
from moe.server import ROWS_MAX, Expert
from moe.table import call_figures
from protocols.experts.uid import ExpertUID, Grid
from protocols.frames import Limits
from protocols.run import RunSpec, ScriptExpertsSpec, run_from_plain
from swarm.endpoints import Endpoint
from swarm.hosting.optimizers import FlatOptimizer, MakeOptimizer, TorchOptimizer
from swarm.mode import ExportRefusedError, Progress, RunContext
from swarm.presence import Presence
from swarm.resources import Resources
from swarm.state.part import Part

if TYPE_CHECKING:
    from trio_typing import TaskStatus

CLIP_NORM: Final = 1.0
"""On the gradient of each step of an expert: anybody in the run may send one."""

MakeTorchOptimizer: TypeAlias = Callable[[Any], torch.optim.Optimizer]
"""Parameters -> any optimizer of torch.optim."""


def experts_run(
    name: str,
    layers: Mapping[str, Sequence[int]],
    *,
    width: int,
    floor_s: float = 2.0,
    **settings: Any,
) -> RunSpec:
    """Return a run for scripts that host and ask experts.

    Args:
      layers: the grid of each layer, such as `{"ffn": (16, 16)}`; an expert there is named `ffn.3.7`.
      width: an expert maps (rows, width) to (rows, width).
      floor_s: no call has less time than this, however quick a host has been.
      settings: of the `[moe]` table, such as `refresh_s` and `announced_s`.
    Raises:
      SchemaError: names what is wrong.
    """
    return run_from_plain(
        {
            "name": name,
            "mode": MODE,
            "data": {"kind": "script"},
            "model": {
                "kind": "script-experts",
                "width": width,
                "layers": {layer: list(sizes) for layer, sizes in layers.items()},
            },
            "training": {"evaluate_every": 0},
            "deadlines": {"floor_s": floor_s},
            MODE: settings,
        }
    )


def grid_of(run: RunSpec, layer: str) -> Grid:
    """Return a layer's grid. Raises ValueError."""
    assert isinstance(run.model, ScriptExpertsSpec)
    sizes = run.model.layers.get(layer)
    if sizes is None:
        raise ValueError(
            f"the run {run.name} has no layer {layer!r}, only {', '.join(run.model.layers)}"
        )
    return Grid(layer, sizes)


def uid_of(run: RunSpec, text: str) -> ExpertUID:
    """Return the expert that is named so. Raises ValueError when the run has no such place."""
    uid = ExpertUID.from_text(text)
    grid = grid_of(run, uid.layer)
    if uid not in grid:
        raise ValueError(f"expert {text} is outside of the grid of {uid.layer}, {list(grid.sizes)}")
    return uid


def flat_optimizer(make: MakeTorchOptimizer) -> tuple[MakeOptimizer, float]:
    """Return what makes such an optimizer for a vector, and the learning rate that it was given."""
    groups = make([nn.Parameter(torch.zeros(1))]).param_groups
    rate = float(groups[0]["lr"])

    def with_rate(parameters: Any, lr: float) -> torch.optim.Optimizer:
        optimizer = make(parameters)
        for group in optimizer.param_groups:
            group["lr"] = lr
        return optimizer

    def flat(vector: Tensor, decayed_elements: int) -> FlatOptimizer:
        return TorchOptimizer(vector, with_rate)

    return flat, rate


@dataclass(frozen=True, slots=True)
class Hosting:
    """What a server is to host."""

    modules: Mapping[ExpertUID, nn.Module]
    optimizer: MakeOptimizer
    rate: Callable[[int], float]
    device: str


class ScriptExperts:
    """One script's part in a run of experts. Its methods are for the script's threads, but for those of the mode."""

    def __init__(self) -> None:
        self._hosting: Hosting | None = None
        self._hosted: dict[ExpertUID, Expert] = {}
        self._peer: ExpertPeer | None = None
        self._token: trio.lowlevel.TrioToken | None = None
        self._up = threading.Event()
        self._ended = threading.Event()
        self.reason = ""
        """Why the node has ended."""
        self.width = 0
        self.epoch = 0
        """Of what is hosted; both are the mode's to say before it serves."""

    # --- the script's threads ---

    def host(self, hosting: Hosting, *, wait_s: float) -> None:
        """Host these modules from now on. Raises RuntimeError, and what a module raises on a row of zeros."""
        peer = self._wait_for_peer(wait_s)
        self._hosting = hosting
        trio.from_thread.run(self._host_all, peer, trio_token=self._token)

    def network(self, grid: Grid, *, wait_s: float) -> ExpertNetwork:
        """Return what a layer asks. Raises RuntimeError when the network is not up in time."""
        peer = self._wait_for_peer(wait_s)
        self._in_loop(lambda: peer.watch([grid]))
        return _Network(self)

    def alive(self, grid: Grid) -> Sequence[ExpertUID]:
        """Return the experts of a layer that are known to be alive."""
        found: Sequence[ExpertUID] = self._in_loop(
            lambda: self.peer.view.alive(grid, trio.current_time())
        )
        return found

    def wait_ended(self, timeout_s: float | None) -> bool:
        return self._ended.wait(timeout_s)

    @property
    def hosted(self) -> Mapping[ExpertUID, Expert]:
        return self._hosted

    @property
    def peer(self) -> ExpertPeer:
        """Raises RuntimeError when the network has ended."""
        if self._peer is None:
            raise RuntimeError(f"the network has ended: {self.reason or 'it starts again'}")
        return self._peer

    def end(self, reason: str) -> None:
        """The node has ended."""
        self.reason = reason
        self._peer = None
        self._ended.set()
        self._up.set()

    def _wait_for_peer(self, wait_s: float) -> ExpertPeer:
        if not self._up.wait(wait_s):
            raise RuntimeError(f"the run could not be entered within {wait_s:.0f} s")
        return self.peer

    def _in_loop(self, fn: Callable[[], Any]) -> Any:
        return trio.from_thread.run_sync(fn, trio_token=self._token)

    # --- the event loop ---

    def rate(self, version: int) -> float:
        return self._hosting.rate(version) if self._hosting is not None else 0.0

    async def serve(self, peer: ExpertPeer) -> None:
        """Be this peer's, until cancelled; what was hosted before goes on where it was."""
        self._token = trio.lowlevel.current_trio_token()
        for expert in self._hosted.values():
            peer.server.put(expert)
        if self._hosted:
            peer.announce()
        self._peer = peer
        self._up.set()
        try:
            await trio.sleep_forever()
        finally:
            self._up.clear()
            self._peer = None

    async def _host_all(self, peer: ExpertPeer) -> None:
        hosting = self._hosting
        assert hosting is not None
        for uid, module in hosting.modules.items():
            self._hosted[uid] = await peer.host(
                uid,
                lambda module=module: module,  # type: ignore[misc]
                hosting.optimizer,
                row=(self.width,),
                epoch=self.epoch,
                device=hosting.device,
            )


class _Network:
    """The network of whichever peer is up."""

    def __init__(self, part: ScriptExperts) -> None:
        self._part = part

    def find(
        self, grid: Grid, scores: Sequence[Sequence[float]], *, beam: int
    ) -> Sequence[ExpertUID]:
        return self._part.peer.network.find(grid, scores, beam=beam)

    def forward(
        self, requests: Sequence[tuple[ExpertUID, Tensor]], *, out_row: tuple[int, ...]
    ) -> Sequence[Answered | None]:
        return self._part.peer.network.forward(requests, out_row=out_row)

    def backward(
        self, requests: Sequence[tuple[Answered, Tensor, Tensor]]
    ) -> Sequence[Tensor | None]:
        return self._part.peer.network.backward(requests)

    def wrong(self, answered: Answered, reason: str) -> None:
        self._part.peer.network.wrong(answered, reason)


class ScriptExpertsMode:
    """A run of experts that live in scripts, on this script's node."""

    name = MODE
    batch_max = ROWS_MAX

    def __init__(self, context: RunContext, part: ScriptExperts) -> None:
        assert isinstance(context.run.model, ScriptExpertsSpec)
        self._context = context
        self._model = context.run.model
        self._part = part
        part.width = self._model.width
        self._peer: ExpertPeer | None = None
        self._presence = Presence(context.host, context.directory, context.run.run_id, MODE)

    @property
    def limits(self) -> Limits:
        rows_bytes = ROWS_MAX * self._model.width * 8
        return Limits(
            header_bytes_max=64 * 1024, body_bytes_max=min(1 << 28, 2 * rows_bytes), tensors_max=2
        )

    def wire(self) -> Mapping[str, Endpoint]:
        return self._peer.wire() if self._peer is not None else {}

    async def run(
        self, resources: Resources, *, task_status: TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        context = self._context
        self._part.epoch = int(context.unix_s() * 1000)
        peer = self._peer = ExpertPeer(
            me=context.me,
            run=context.run.run_id,
            directory=context.directory,
            caller=resources.caller,
            compute=resources.compute,
            unix_s=context.unix_s,
            rate=self._part.rate,
            settings=PeerSettings.of_run(context.run, clip_norm=CLIP_NORM),
        )
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._presence.run)
            self._presence.announce(b"\x80")  # an empty map
            await nursery.start(peer.run)
            task_status.started()
            context.life.has_state(self.name, "hosting and asking experts")
            await self._part.serve(peer)

    async def drain(self, deadline_s: float) -> None:
        """Withdraw what is announced; calls under way are answered."""
        if self._peer is None:
            return
        with trio.move_on_after(deadline_s):
            self._peer.announcer.announce({})
            await self._peer.announcer.write()
            await self._presence.withdraw()

    def progress(self) -> Progress:
        hosted = self._part.hosted
        return Progress(
            in_run=self._peer is not None, role=f"{len(hosted)} experts", resting=not hosted
        )

    def detail(self) -> dict[str, Any]:
        peer = self._peer
        if peer is None:
            return {}
        now_s = trio.current_time()
        grids = [Grid(layer, sizes) for layer, sizes in self._model.layers.items()]
        return {
            "experts": sum(map(len, grids)),
            "experts_alive": sum(len(peer.view.alive(grid, now_s)) for grid in grids),
            "experts_hosted": len(peer.server.experts),
            **call_figures(peer),
        }

    def parts(self) -> Sequence[Part]:
        return ()

    async def export(self, path: Path, options: Mapping[str, Any]) -> dict[str, Any]:
        raise ExportRefusedError("a script's experts are its own modules: it saves them itself")
