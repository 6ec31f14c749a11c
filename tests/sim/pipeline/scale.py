"""One large swarm: `python -m tests.sim.scale --json`. Ten thousand peers, an hour of their time, all checkers watching.

Every tenth peer goes within the hour, half of them without a word, and another comes for each. Members announce themselves
every half minute. What is slow here would be slow in a large swarm: a core that walks through all members at every message
cannot finish this in time. `--curve` runs a thousand, three thousand and ten thousand peers, and draws what each costs.
"""

from __future__ import annotations

import argparse
import gc
import json
import multiprocessing
import os
import random
import resource
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from node.limits import processor
from protocols.ledger.events import LedgerSettings
from tests.sim.pipeline.faults import Faults
from tests.sim.pipeline.peer import SimPeer
from tests.sim.pipeline.world import World

HOUR_S: Final = 3600.0
CHURN: Final = 0.1
"""Share of the peers that goes within an hour, and is replaced."""
ANNOUNCE_S: Final = 30.0
SILENCE_S: Final = 240.0
"""Hearts beat every quarter of it."""
COMPUTE_S: Final = 0.5
"""What a forward through one stage takes, on an average peer."""
REDUCE_S: Final = 2.0
TRAINERS: Final = 0.05
"""One peer in twenty has data, and memory for one microbatch at a time; the others host."""
DEADLINES_S: Final = (10.0, 40.0)
WEATHER: Final = Faults(loss=0.0002, reordering=1.0, heavy_tail=0.0005)
SLOWEST_STEP_S: Final = 1200.0
"""A swarm that commits fewer steps than this has stopped working; the checker of liveness says so."""
CURVE: Final = (1_000, 3_000, 10_000)
PLOT: Final = Path(__file__).parents[3] / "docs" / "plots" / "scale.svg"
_SCALE: Final = SILENCE_S / 2
"""The standard run suspects after two seconds."""


@dataclass(frozen=True, slots=True)
class Size:
    """How large, and how long."""

    peers: int
    stages: int
    microbatches: int
    """Of one step."""
    seconds: float


def build(size: Size, seed: int) -> World:
    """Make the world; its clock has not begun."""
    settings = LedgerSettings(
        stages=size.stages,
        microbatches=size.microbatches,
        steps=100_000,
        silence_s=SILENCE_S,
        reduce_s=4 * SILENCE_S,
        lease_s=5 * SILENCE_S,
    )
    return World(
        seed,
        settings,
        size.peers,
        WEATHER,
        scale=_SCALE,
        delay_s=0.05,
        reduce_s=REDUCE_S / _SCALE,
        compute_s=COMPUTE_S / _SCALE,
        announce_s=ANNOUNCE_S,
        trainers=TRAINERS,
        in_flight=1,
        deadlines_s=DEADLINES_S,
    )


def plan_churn(world: World, size: Size, rng: random.Random) -> None:
    """Have peers go and come, spread evenly over the time."""
    for number, peer in enumerate(
        rng.sample(list(world.peers.values()), round(CHURN * size.peers))
    ):
        world.clock.after(rng.uniform(0, size.seconds), _go, peer, number % 2 == 0)
        world.clock.after(rng.uniform(0, size.seconds), world.add_peer)


def _go(peer: SimPeer, without_a_word: bool) -> None:
    if without_a_word:
        peer.crash()
    else:
        peer.drain()


def run(size: Size, seed: int) -> dict[str, Any]:
    """Run one swarm in this process; return its figures. Raises ViolationError."""
    gc.disable()  # nothing that grows here is a cycle, and looking for some takes longer than all the rest
    started_s = time.monotonic()
    world = build(size, seed)
    plan_churn(world, size, random.Random(f"churn/{seed}"))
    world.begin()
    told_s = started_s
    for minute in range(1, round(size.seconds / 60) + 1):
        world.clock.run_until(60.0 * minute)
        if time.monotonic() - told_s > 10:
            told_s = time.monotonic()
            tell(f"{size.peers} peers, minute {minute}: step {world.step}")
    world.watch.looked()
    world.goal = int(size.seconds / SLOWEST_STEP_S)
    world.watch.ended()
    record = world.newest_record
    assert record is not None
    return {
        "peers": size.peers,
        "stages": size.stages,
        "virtual_hours": size.seconds / HOUR_S,
        "members": len(record.members),
        "came": len(world.peers) - size.peers,
        "went": sum(not peer.up for peer in world.peers.values()),
        "records": record.index,
        "steps": record.step,
        "microbatches": record.step * size.microbatches,
        "events": world.handled,
        "seconds": round(time.monotonic() - started_s, 1),
        "cpu_seconds": round(time.process_time(), 1),
        "max_rss_gib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
    }


def run_alone(size: Size, seed: int) -> dict[str, Any]:
    """Run one swarm in a process of its own, on one core."""
    with multiprocessing.get_context("spawn").Pool(1, _take_one_core) as pool:
        return pool.apply(run, (size, seed))


def _take_one_core() -> None:
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})


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


def main(arguments: Sequence[str] | None = None) -> int:
    """Print what a large swarm costs to simulate; a broken promise ends it with the checker's words."""
    parser = argparse.ArgumentParser(prog="python -m tests.sim.scale", description=__doc__)
    parser.add_argument("--peers", type=int, default=10_000)
    parser.add_argument("--stages", type=int, default=32)
    parser.add_argument("--microbatches", type=int, help="of one step (default: 0.7 for each peer)")
    parser.add_argument("--hours", type=float, default=1.0, help="of virtual time")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--curve", action="store_true", help=f"also run smaller ones, draw {PLOT.name}")  # fmt: skip
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    options = parser.parse_args(arguments)
    rows = []
    for peers in CURVE if options.curve else (options.peers,):
        microbatches = options.microbatches or max(1, peers * 7 // 10)
        size = Size(peers, options.stages, microbatches, options.hours * HOUR_S)
        rows.append(run_alone(size, options.seed))
        tell(json.dumps(rows[-1]))
    result = {**rows[-1], **processor()}
    if options.curve:
        draw(rows, PLOT)
        result["curve"] = {row["peers"]: row["seconds"] for row in rows}
    if options.json:
        print(json.dumps(result))  # noqa: T201 - the result
    return 0


def tell(text: str) -> None:
    """Write progress to stderr: stdout is for the result."""
    sys.stderr.write(text + "\n")


if __name__ == "__main__":
    sys.exit(main())
