"""Runs with faults drawn from a seed: peers that die, come late, are slow or cut off, rounds that some miss. In the end all that
are there have one outer state, and nobody's step is in it twice."""

from __future__ import annotations

import random

import pytest

from protocols.collective.settings import CollectiveSpec
from tests.protocols.collective.world import World

FAULTS_S = 150.0
"""Then everything is healed."""
END_S = 1500.0


def drawn(seed: int) -> World:
    """Return a run with its faults, played to the end."""
    rng = random.Random(seed)
    fragments = rng.randint(1, 4)
    overlap = rng.randint(0, 3)
    spec = CollectiveSpec(
        local_steps=rng.choice((8, 12, 20)),
        fragments=fragments,
        overlap_steps=overlap,
        overlap_steps_max=rng.choice((0, overlap + 2)),
        early_share=rng.choice((0.1, 0.25, 1.0)),
    )
    world = World(spec, steps=rng.choice((100, 160)), seed=seed)
    for number in range(rng.randint(2, 6)):
        add(world, rng, number)
    for _ in range(rng.randint(0, 8)):
        world.run(world.now_s + rng.uniform(1.0, FAULTS_S / 8))
        rng.choice((kill, come, cut, heal, miss, come))(world, rng)
    heal(world, rng)
    world.missing = lambda who, fragment, version: False
    world.run(END_S)
    return world


def add(world: World, rng: random.Random, number: int) -> None:
    world.add(
        number,
        founds=number == 0,
        step_s=rng.choice((0.5, 1.0, 1.0, 1.0, 2.5)),
        exchange_s=rng.choice((0.1, 0.5, 3.0)),
    )


def come(world: World, rng: random.Random) -> None:
    add(world, rng, len(world.nodes))


def kill(world: World, rng: random.Random) -> None:
    live = [who for who, node in world.nodes.items() if node.alive]
    if len(live) > 2:
        world.nodes[rng.choice(live)].alive = False
        world.later(rng.uniform(0.0, 30.0), world.tell_contacts)


def cut(world: World, rng: random.Random) -> None:
    side = {who for who in world.nodes if rng.random() < 0.5}
    world.apart = lambda one, other: (one in side) != (other in side)
    world.tell_contacts()


def heal(world: World, rng: random.Random) -> None:
    world.apart = lambda one, other: False
    world.tell_contacts()


def miss(world: World, rng: random.Random) -> None:
    """Some peers miss some rounds that others finish; their steps may count in them all the same."""
    share, salt = rng.uniform(0.05, 0.5), rng.random()
    world.misses_the_end = rng.random() < 0.5
    world.missing = lambda who, fragment, version: (
        random.Random(f"{salt}:{who}:{fragment}:{version}").random() < share
    )


@pytest.mark.parametrize("seed", range(50))
def test_all_end_with_one_state_and_no_step_is_in_it_twice(seed: int) -> None:
    world = drawn(seed)
    present = [node for node in world.nodes.values() if node.alive]
    assert all(node.core.finished for node in present)
    states = {tuple(fragment.line for fragment in node.core.fragments) for node in present}
    assert len(states) == 1
    for node in present:
        for work in node.work:
            for who, steps in work.items():
                assert steps <= world.nodes[who].trained + extra(world)
    assert not any(node.blamed for node in present)


def extra(world: World) -> int:
    """Who joins the rounds after the last step with nothing to hand in counts for a step in each."""
    return 10
