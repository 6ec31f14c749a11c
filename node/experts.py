"""`murmura.Server` and `murmura.RemoteMixtureOfExperts`: experts of a script's own, hosted and asked.

with murmura.join(invite) as swarm:
    server = murmura.Server(swarm, {"ffn.0.1": module}, optimizer=functools.partial(torch.optim.Adam, lr=1e-3))
    layer = murmura.RemoteMixtureOfExperts(swarm, "ffn", k=4)
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Final, Literal

import torch
from torch import nn

from moe import layer as moe_layer
from moe.script import (
    Hosting,
    MakeTorchOptimizer,
    ScriptExperts,
    ScriptExpertsMode,
    flat_optimizer,
    grid_of,
    uid_of,
)
from node.embedded import Swarm
from node.errors import ConfigError, NodeError
from protocols.experts.uid import Grid
from protocols.run import RunSpec, ScriptExpertsSpec

WAIT_S: Final = 60.0
_LOOK_S: Final = 0.1


class Server:
    """Hosts modules as experts until the swarm is left. They compute, and learn, on a thread of the node's.

    Each is taken over: its parameters are moved into one block of memory, which torch does not notice. It steps after each
    batch of gradients; the gradient is clipped to a norm of 1. Read a module's parameters whenever you like; change them only
    after the swarm was left.

    Args:
      swarm: entered already.
      experts: name, such as `ffn.3.17`, to a module that maps (rows, width) to (rows, width). One host for each name: of two,
        callers use whoever began later.
      optimizer: makes one of torch.optim from parameters, e.g. `functools.partial(torch.optim.Adam, lr=1e-3)`.
      schedule: times the optimizer's rate, by the number of the expert's step; 1 always by default.
    Raises:
      NodeError: the run has no such experts, the optimizer or a module cannot be used, or the run cannot be entered.
    """

    def __init__(
        self,
        swarm: Swarm,
        experts: Mapping[str, nn.Module],
        *,
        optimizer: MakeTorchOptimizer,
        schedule: Callable[[int], float] = lambda step: 1.0,
        device: str = "cpu",
        wait_s: float = WAIT_S,
    ) -> None:
        run = _run_of(swarm)
        try:
            modules = {uid_of(run, name): module for name, module in experts.items()}
            make, rate = flat_optimizer(optimizer)
        except (ValueError, TypeError) as error:
            raise ConfigError(str(error)) from error
        self._part = _part_of(swarm)
        if self._part.hosted:
            raise NodeError("this script has a server already", "give one server all experts")
        try:
            self._part.host(
                Hosting(modules, make, lambda step: rate * schedule(step), device), wait_s=wait_s
            )
        except (RuntimeError, ValueError, TypeError) as error:
            raise NodeError(f"the experts cannot be hosted: {error}") from error
        _check_shapes(self._part, run)

    def wait(self, seconds: float | None = None) -> None:
        """Serve until the time is over, or the node ends; Ctrl-C ends it too."""
        self._part.wait_ended(seconds)

    @property
    def steps(self) -> dict[str, int]:
        """Optimizer steps of each expert."""
        return {str(uid): expert.hosted.version for uid, expert in self._part.hosted.items()}


class RemoteMixtureOfExperts(moe_layer.RemoteMixtureOfExperts):
    """A layer whose experts live in other people's scripts: an ordinary module, used in the script's own threads.

    Its parameters are the gate's: train them with the rest of your model. `layer.balance` is the load-balancing loss of the last
    forward pass: add it, weighted (0.01), to yours. A forward pass in which rows find fewer than `k_min` experts raises
    `moe.errors.TooFewExpertsError`; it is worth a retry, since hosts come back.

    Args:
      swarm: entered already.
      name: of the layer.
      k: experts for each row.
      wait_for: experts to wait for before the first batch; a layer begins with those that it has found.
      wait_s: how long to wait for them.
      others: as for `moe.layer.RemoteMixtureOfExperts`.
    Raises:
      NodeError: the run has no such layer, or nobody hosts an expert of it.
    """

    def __init__(
        self,
        swarm: Swarm,
        name: str,
        *,
        k: int = 4,
        k_min: int = 1,
        route: Literal["token", "sample"] = "token",
        scores: Literal["product", "cosine"] = "product",
        noise: float = 0.0,
        generator: torch.Generator | None = None,
        wait_for: int = 1,
        wait_s: float = WAIT_S,
    ) -> None:
        run = _run_of(swarm)
        assert isinstance(run.model, ScriptExpertsSpec)
        try:
            grid = grid_of(run, name)
        except ValueError as error:
            raise ConfigError(str(error)) from error
        part = _part_of(swarm)
        try:
            network = part.network(grid, wait_s=wait_s)
            _wait_for_experts(part, grid, max(k_min, wait_for), wait_s)
        except RuntimeError as error:
            raise NodeError(str(error)) from error
        super().__init__(
            network, grid, run.model.width,
            k=k, k_min=k_min, route=route, scores=scores, noise=noise, generator=generator,
        )  # fmt: skip


def _run_of(swarm: Swarm) -> RunSpec:
    run = swarm.run
    if not isinstance(run.model, ScriptExpertsSpec):
        raise ConfigError(
            f"the run {run.name} is of mode {run.mode} with a {run.model.kind} model: its experts are no scripts'",
            "murmura.experts_run(name, layers, width=...) makes a run for scripts that host experts",
        )
    return run


def _part_of(swarm: Swarm) -> ScriptExperts:
    def make() -> ScriptExperts:
        part = ScriptExperts()
        swarm.take_part(lambda context: ScriptExpertsMode(context, part), on_end=part.end)
        return part

    return swarm.part(ScriptExperts, make)


def _wait_for_experts(part: ScriptExperts, grid: Grid, count: int, wait_s: float) -> None:
    until_s = time.monotonic() + wait_s
    while len(part.alive(grid)) < count:
        if time.monotonic() > until_s:
            raise RuntimeError(
                f"nobody hosts {count} experts of the layer {grid.layer}, as far as could be found in {wait_s:.0f} s"
            )
        time.sleep(_LOOK_S)


def _check_shapes(part: ScriptExperts, run: RunSpec) -> None:
    assert isinstance(run.model, ScriptExpertsSpec)
    for uid, expert in part.hosted.items():
        if expert.out_row != (run.model.width,) or expert.dtype != run.model.dtype:
            raise NodeError(
                f"expert {uid} makes rows of {list(expert.out_row)} {expert.dtype}, "
                f"those of the run {run.name} have [{run.model.width}] {run.model.dtype}"
            )
