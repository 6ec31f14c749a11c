"""One large swarm: `python -m tests.sim.scale --json`. Ten thousand peers, an hour of their time, all checkers watching.

Every tenth peer goes within the hour, half of them without a word, and another comes for each. Messages are lost, repeated
and late at a low rate. What is slow here would be slow in a large swarm: a core that walks through all members at every
message cannot finish this in time.
"""

from __future__ import annotations

import argparse
import gc
import json
import random
import resource
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from protocols.ledger.events import LedgerSettings
from tests.sim.checkers import ALL
from tests.sim.faults import Faults
from tests.sim.world import World

HOUR_S: Final = 3600.0
CHURN: Final = 0.1
"""Share of the peers that goes within an hour, and is replaced."""
ANNOUNCE_S: Final = 30.0
SILENCE_S: Final = 120.0
COMPUTE_S: Final = 0.5
"""What a forward through one stage takes, on an average peer."""
TELL_S: Final = 300.0
FAULTS: Final = Faults(loss=0.0002, reordering=1.0, heavy_tail=0.0005)


@dataclass(frozen=True, slots=True)
class Size:
    """How large, and how long."""

    peers: int
    stages: int
    microbatches: int
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
        FAULTS,
        scale=SILENCE_S / 2,
        delay_s=0.05,
        reduce_s=5.0 / (SILENCE_S / 2),
        compute_s=COMPUTE_S / (SILENCE_S / 2),
        deadlines_s=(10.0, 40.0),
        announce_s=ANNOUNCE_S,
        checkers=ALL,
    )


def plan_churn(world: World, size: Size, rng: random.Random) -> int:
    """Have peers go and come, spread evenly; return how many go."""
    leavers = rng.sample(list(world.peers.values()), round(CHURN * size.peers))
    for number, peer in enumerate(leavers):
        go = peer.drain if number % 2 else peer.crash
        world.clock.after(rng.uniform(0, size.seconds), _if_up, peer, go)
        world.clock.after(rng.uniform(0, size.seconds), world.add_peer)
    return len(leavers)


def _if_up(peer, go) -> None:  # type: ignore[no-untyped-def]
    if peer.up and not peer.draining:
        go()


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.sim.scale", description=__doc__)
    parser.add_argument("--peers", type=int, default=10_000)
    parser.add_argument("--stages", type=int, default=32)
    parser.add_argument("--microbatches", type=int, default=2048, help="of one step")
    parser.add_argument("--hours", type=float, default=1.0, help="of virtual time")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    options = parser.parse_args(arguments)
    size = Size(options.peers, options.stages, options.microbatches, options.hours * HOUR_S)
    gc.disable()
    started_s = time.process_time()
    world = build(size, options.seed)
    plan_churn(world, size, random.Random(f"churn/{options.seed}"))
    for peer in list(world.peers.values()):
        peer.start()
    world.look()
    at = 0.0
    while at < size.seconds:
        at = min(at + 60, size.seconds)
        world.clock.run_until(at)
        rec = world.newest_record
        print(
            f"{at} wall {time.process_time() - started_s:.1f} handled {world.handled} heap {len(world.clock._heap)} record {rec.index if rec else None} step {world.step} members {len(rec.members) if rec else 0}",
            file=sys.stderr,
            flush=True,
        )
    world.watch.looked()
    print(world.handled, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)
    return 0


if __name__ == "__main__":
    sys.exit(main())
