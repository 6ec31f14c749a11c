"""One large swarm of a mode, in a process and on a core of its own: what it costs in seconds and memory.

What is slow here would be slow in a large swarm: a core that walks through all peers at every message cannot finish in time.
"""

from __future__ import annotations

import gc
import importlib
import importlib.util
import multiprocessing
import os
import random
import resource
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tests.sim.engine.peer import SimPeer
from tests.sim.engine.runner import tell
from tests.sim.engine.world import World

HOUR_S: Final = 3600.0
CHURN: Final = 0.1
"""Share of the peers that goes within the time, and is replaced."""


@dataclass(frozen=True, slots=True)
class Size:
    """How large, and how long; and what else a mode asks for."""

    peers: int
    seconds: float
    options: Mapping[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """A mode's large swarm.

    Args:
      options: whole numbers that the command line takes, by name, with their help; absent ones are not in `Size.options`.
      build: makes the world; its clock has not begun.
      goal: the progress that the run shall have made at the end.
      figures: what the mode tells of the world at the end.
      curve: the sizes that `--curve` draws.
    """

    options: Mapping[str, str]
    build: Callable[[Size, int], World[Any]]
    goal: Callable[[Size], int]
    figures: Callable[[World[Any], Size], dict[str, Any]]
    curve: tuple[int, ...] = (1_000, 3_000, 10_000)


def scale_of(mode: str) -> Scale | None:
    """Return a mode's large swarm, if it has one."""
    name = f"tests.sim.{mode}.scale"
    if importlib.util.find_spec(name) is None:
        return None
    return getattr(importlib.import_module(name), "SCALE", None)


def measure_of(mode: str) -> Callable[[int], dict[str, Any]] | None:
    """Return what a mode measures in place of one large swarm, by seed: figures of several sizes."""
    name = f"tests.sim.{mode}.scale"
    if importlib.util.find_spec(name) is None:
        return None
    return getattr(importlib.import_module(name), "measure", None)


def drawing_of(mode: str) -> Callable[[dict[str, Any], Path], None]:
    """Return what draws those figures."""
    draw: Callable[[dict[str, Any], Path], None] = importlib.import_module(
        f"tests.sim.{mode}.plots"
    ).draw
    return draw


def run_alone(mode: str, size: Size, seed: int) -> dict[str, Any]:
    """Run one swarm in a process of its own, on one core; return its figures. Raises ViolationError."""
    with multiprocessing.get_context("spawn").Pool(1, _take_one_core) as pool:
        return pool.apply(_run, (mode, size, seed))


def _take_one_core() -> None:
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})


def _run(mode: str, size: Size, seed: int) -> dict[str, Any]:
    gc.disable()  # nothing that grows here is a cycle, and looking for some takes longer than all the rest
    scale = scale_of(mode)
    assert scale is not None
    started_s = told_s = time.monotonic()
    world = scale.build(size, seed)
    _plan_churn(world, size, random.Random(f"churn/{seed}"))
    world.begin()
    for minute in range(1, round(size.seconds / 60) + 1):
        world.clock.run_until(60.0 * minute)
        if time.monotonic() - told_s > 10:
            told_s = time.monotonic()
            tell(f"{size.peers} peers, minute {minute}: {world.progress} {world.unit}")
    world.watch.looked()
    world.goal = scale.goal(size)
    world.watch.ended()
    return {
        "peers": size.peers,
        "virtual_hours": size.seconds / HOUR_S,
        "came": len(world.peers) - size.peers,
        "went": sum(not peer.up for peer in world.peers.values()),
        world.unit: world.progress,
        **scale.figures(world, size),
        "events": world.handled,
        "seconds": round(time.monotonic() - started_s, 1),
        "cpu_seconds": round(time.process_time(), 1),
        "max_rss_gib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
    }


def _plan_churn(world: World[Any], size: Size, rng: random.Random) -> None:
    """Have peers go and come, spread evenly over the time; every other one goes without a word."""
    leavers = rng.sample(list(world.peers.values()), round(CHURN * size.peers))
    for number, peer in enumerate(leavers):
        world.clock.after(rng.uniform(0, size.seconds), _go, peer, number % 2 == 0)
        world.clock.after(rng.uniform(0, size.seconds), world.add_peer)


def _go(peer: SimPeer, without_a_word: bool) -> None:
    if without_a_word:
        peer.crash()
    else:
        peer.drain()


def draw(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Plot what each size costs, per virtual hour."""
    from matplotlib.figure import Figure  # only who draws needs it

    peers = [row["peers"] for row in rows]
    figure = Figure(figsize=(8, 3.2), layout="constrained")
    seconds, memory = figure.subplots(1, 2)
    seconds.plot(peers, [row["seconds"] for row in rows], marker="o")
    linear = [rows[0]["seconds"] * count / peers[0] for count in peers]
    seconds.plot(peers, linear, linestyle=":", color="grey", label="in proportion")
    seconds.set(title="An hour of the swarm, simulated", ylabel="seconds on one core")
    seconds.legend()
    memory.plot(peers, [row["max_rss_gib"] for row in rows], marker="o")
    memory.set(title="Memory", ylabel="GiB")
    for axes in (seconds, memory):
        axes.set(xscale="log", yscale="log", xlabel="peers")
        axes.set_xticks(peers, [f"{count:,}" for count in peers])
        axes.grid(alpha=0.3)
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, metadata={"Date": None})
