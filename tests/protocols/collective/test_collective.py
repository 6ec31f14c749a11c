"""The core: several of them in virtual time. What is trained is averaged once, whoever is late, slow, new or cut off."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from protocols.collective.collective import Collective
from protocols.collective.events import BeginRound, Trained
from protocols.collective.fragments import Schedule
from protocols.collective.messages import RoundBegins
from protocols.collective.rounds import FIRST_LINE, Fragment
from protocols.collective.settings import CollectiveSpec
from protocols.core import Received
from protocols.ids import PeerID
from tests.protocols.collective.world import Node, World, peer


def lines(world: World) -> set[tuple[bytes, ...]]:
    """Return the outer states that there are: one, where all agree."""
    return {tuple(f.line for f in node.core.fragments) for node in present(world)}


def present(world: World) -> list[Node]:
    return [node for node in world.nodes.values() if node.alive and not node.left]


def work(world: World) -> Counter[PeerID]:
    """Return whose steps are in the outer state of fragment 0, which is everybody's."""
    (first, *others) = [node.work for node in present(world)]
    assert all(other == first for other in others)
    return first[0]


def started(spec: CollectiveSpec, *, peers: int, steps: int, step_s: dict[int, float] | None = None) -> World:  # fmt: skip
    world = World(spec, steps=steps)
    for number in range(peers):
        world.add(number, founds=number == 0, step_s=(step_s or {}).get(number, 1.0))
    return world


SPECS = [
    CollectiveSpec(local_steps=10),
    CollectiveSpec(local_steps=10, fragments=3, overlap_steps=1),
    CollectiveSpec(local_steps=10, fragments=2, overlap_steps=2, overlap_steps_max=6),
]


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("peers", [1, 2, 5])
def test_every_step_of_every_peer_is_averaged_once(spec: CollectiveSpec, peers: int) -> None:
    world = started(spec, peers=peers, steps=103)
    world.run(600.0)
    assert all(node.core.finished for node in present(world))
    assert len(lines(world)) == 1
    assert work(world) == Counter({peer(i): 103 for i in range(peers)})
    assert not any(node.core.missed for node in present(world))


def test_each_fragment_is_averaged_at_its_own_steps() -> None:
    world = started(SPECS[1], peers=2, steps=40)
    world.run(200.0)
    begun = [(b.version, b.fragment) for b in world.nodes[peer(0)].begun]
    assert begun[:6] == [(3, 0), (6, 1), (10, 2), (13, 0), (16, 1), (20, 2)]


def test_a_missed_round_changes_nothing_and_its_work_goes_into_the_next() -> None:
    world = started(SPECS[0], peers=3, steps=50)
    world.missing = lambda who, fragment, version: version == 20
    world.run(300.0)
    assert all(node.core.missed == 1 for node in present(world))
    assert [b.weight for b in world.nodes[peer(1)].begun] == [10, 10, 20, 10, 10]
    assert work(world) == Counter({peer(i): 50 for i in range(3)})


def test_who_alone_misses_a_round_takes_over_the_others_state_and_loses_no_work() -> None:
    world = started(SPECS[1], peers=4, steps=60)
    world.missing = lambda who, fragment, version: who == peer(2) and version == 26
    world.run(300.0)
    assert world.nodes[peer(2)].core.missed == 1
    assert world.nodes[peer(2)].core.whereabouts.adoptions == 1
    assert len(lines(world)) == 1
    assert work(world) == Counter({peer(i): 60 for i in range(4)})
    assert world.nodes[peer(2)].work[1][peer(2)] == 60


def test_steps_that_count_in_a_round_that_was_missed_are_not_handed_in_again() -> None:
    world = started(SPECS[1], peers=4, steps=60)
    world.missing = lambda who, fragment, version: who == peer(2) and version == 26
    world.misses_the_end = True
    world.run(300.0)
    missed = world.nodes[peer(2)]
    assert (missed.core.missed, missed.counted) == (1, 1)
    assert len(lines(world)) == 1
    assert [work[peer(2)] for work in missed.work] == [60, 60, 60]


def test_a_peer_three_times_slower_takes_part_in_every_round_with_what_it_has() -> None:
    world = started(SPECS[0], peers=3, steps=100, step_s={2: 3.0})
    world.run(400.0)
    slow = world.nodes[peer(2)]
    assert slow.core.finished
    assert slow.core.joined_early >= 9
    assert slow.core.missed == 0
    assert 30 <= slow.trained <= 45
    assert work(world) == Counter({peer(0): 100, peer(1): 100, peer(2): slow.trained})
    assert world.now_s >= 100


def test_a_peer_that_has_trained_too_little_joins_as_soon_as_it_has_enough() -> None:
    world = started(SPECS[0], peers=2, steps=1000)
    world.run(1.5)
    core = world.nodes[peer(0)].core
    world.feed(peer(0), Received(world.now_s, peer(1), RoundBegins(0, 10, FIRST_LINE)))
    world.run(2.5)
    assert (core.step, core.joined_early) == (2, 0)
    world.run(3.1)
    assert (core.step, core.joined_early) == (10, 1), "a quarter of the local steps"
    assert world.nodes[peer(0)].begun[0].weight == 3


def test_only_members_call_and_only_to_the_round_that_is_next() -> None:
    world = started(SPECS[0], peers=2, steps=1000)
    world.run(4.5)
    core = world.nodes[peer(0)].core
    world.feed(peer(0), Received(world.now_s, peer(1), RoundBegins(0, 500, FIRST_LINE)))
    world.feed(peer(0), Received(world.now_s, peer(9), RoundBegins(0, 10, FIRST_LINE)))
    world.run(5.5)
    assert core.step == 5
    world.feed(peer(0), Received(world.now_s, peer(1), RoundBegins(7, 10, FIRST_LINE)))
    assert world.nodes[peer(0)].blamed == [peer(1)]


def test_who_was_not_there_at_a_rounds_step_joins_it_later() -> None:
    world = started(SPECS[0], peers=2, steps=100)
    world.run(5.5)
    core = world.nodes[peer(0)].core
    world.feed(peer(0), Received(world.now_s, peer(1), RoundBegins(0, 3, FIRST_LINE)))
    world.run(6.1)
    assert [(begun.version, begun.weight) for begun in world.nodes[peer(0)].begun] == [(3, 6)]
    assert core.step == 6


def test_a_late_peer_begins_with_the_outer_state_and_is_in_the_next_rounds() -> None:
    world = started(SPECS[1], peers=2, steps=100)
    world.run(44.0)
    late = world.add(2)
    world.run(50.0)
    assert late.core.ready
    assert late.core.step >= 44
    world.run(300.0)
    assert len(lines(world)) == 1
    assert 50 <= late.trained <= 57
    counted = work(world)
    assert counted[peer(2)] == late.trained
    assert all(counted[peer(i)] == world.nodes[peer(i)].trained >= 99 for i in range(2))


def test_a_peer_that_dies_costs_its_own_steps_and_no_round() -> None:
    world = started(SPECS[1], peers=3, steps=80)
    world.run(37.5)
    world.kill(2)
    world.run(300.0)
    assert not any(node.core.missed for node in present(world))
    assert work(world)[peer(2)] == 33
    assert work(world)[peer(0)] == work(world)[peer(1)] == 80


def test_means_that_are_late_hold_up_one_peer_later_than_another() -> None:
    spec = SPECS[2]
    world = World(spec, steps=60)
    world.add(0, founds=True, exchange_s=0.1)
    slow = world.add(1, exchange_s=4.5)
    world.run(200.0)
    assert len(lines(world)) == 1
    assert work(world) == Counter({peer(0): 60, peer(1): 60})
    assert slow.core.missed == 0


def test_training_waits_when_a_mean_does_not_come() -> None:
    world = World(CollectiveSpec(local_steps=10, overlap_steps=2), steps=60)
    first = world.add(0, founds=True, exchange_s=1000.0)
    world.add(1, exchange_s=1000.0)
    world.run(100.0)
    assert first.core.step == 12
    assert first.core.waiting_for_mean


def test_two_sides_that_averaged_apart_become_one() -> None:
    world = started(SPECS[0], peers=5, steps=200)
    world.run(25.0)
    world.apart = lambda one, other: (one < peer(2)) != (other < peer(2))
    world.tell_contacts()
    world.run(65.0)
    assert len(lines(world)) == 2
    world.apart = lambda one, other: False
    world.tell_contacts()
    world.run(600.0)
    assert len(lines(world)) == 1
    assert all(node.core.finished for node in present(world))
    adopted = {number: world.nodes[peer(number)].core.whereabouts.adoptions for number in range(5)}
    assert {number for number, count in adopted.items() if count} == {0, 1}, "the smaller side"


def test_who_was_alone_for_a_while_follows_the_others() -> None:
    world = started(SPECS[0], peers=2, steps=200)
    world.run(25.0)
    world.apart = lambda one, other: one != other
    world.tell_contacts()
    world.run(65.0)
    world.apart = lambda one, other: False
    world.tell_contacts()
    world.run(600.0)
    assert len(lines(world)) == 1
    assert all(node.core.finished for node in present(world))


def test_work_that_missed_the_last_round_is_averaged_with_those_who_have_none_left() -> None:
    world = started(SPECS[1], peers=3, steps=40)
    world.missing = lambda who, fragment, version: who == peer(2) and version == 40
    world.run(300.0)
    assert all(node.core.finished for node in present(world))
    assert len(lines(world)) == 1
    assert all(work[peer(2)] >= 40 for work in world.nodes[peer(0)].work)


def test_everybody_goes_on_from_what_was_kept() -> None:
    world = World(SPECS[0], steps=60)
    kept = [Fragment(20, (b"b" * 16, b"a" * 16)), Fragment(10, (b"a" * 16,)), Fragment(20, (b"b" * 16, b"a" * 16))]  # fmt: skip
    for number, fragment in enumerate(kept):
        world.add(number, step=fragment.version, fragments=[fragment])
    world.run(300.0)
    assert len(lines(world)) == 1
    assert world.nodes[peer(1)].core.whereabouts.adoptions == 1
    assert all(node.core.finished for node in present(world))


def test_a_model_that_has_become_useless_goes_back_to_the_outer_parameters() -> None:
    world = started(SPECS[0], peers=2, steps=60)
    world.run(12.5)
    bad = world.nodes[peer(1)]
    bad.not_finite = True
    world.run(16.0)
    bad.not_finite = False
    world.run(300.0)
    assert bad.core.rollbacks == 1
    assert work(world)[peer(0)] == 60
    assert work(world)[peer(1)] < 60


def test_a_peer_that_leaves_waits_for_its_rounds_and_no_longer() -> None:
    world = started(CollectiveSpec(local_steps=10, overlap_steps=5), peers=3, steps=200)
    world.run(20.4)
    leaver = world.nodes[peer(1)]
    world.drain(1)
    world.run(32.0)
    assert leaver.left
    assert leaver.work[0][peer(1)] == 20
    world.run(500.0)
    assert work(world) == Counter({peer(0): 200, peer(1): 20, peer(2): 200})


def test_nobody_trains_before_there_are_enough() -> None:
    world = started(CollectiveSpec(local_steps=10, peers_to_start=3), peers=2, steps=50)
    world.run(30.0)
    assert [node.trained for node in present(world)] == [0, 0]
    assert world.nodes[peer(0)].core.waits_for_peers == 1
    world.add(2)
    world.run(200.0)
    assert work(world) == Counter({peer(i): 50 for i in range(3)})


def test_a_single_liar_moves_nobody() -> None:
    world = started(SPECS[0], peers=4, steps=60)
    world.run(15.0)
    liar = world.nodes[peer(3)].core
    liar.step = 10**6
    liar.fragments[0].lines = (b"x" * 16, *liar.fragments[0].lines)
    liar.fragments[0].version = 10**6
    world.nodes[peer(3)].not_finite = True
    world.missing = lambda who, fragment, version: version == 20
    world.run(300.0)
    honest = [world.nodes[peer(i)] for i in range(3)]
    assert all(node.core.finished for node in honest)
    assert all(b"x" * 16 not in node.core.fragments[0].lines for node in honest)


def test_who_has_trained_for_long_without_a_round_counts_as_much_as_anybody_may() -> None:
    core = Collective(
        peer(0),
        CollectiveSpec(local_steps=1 << 20),
        Schedule(1, 1 << 20, 1 << 21),
        rng=random.Random(0),
        founds=True,
    )
    core.start(0.0)
    core.step = core.fragments[0].trained = (1 << 20) - 1
    effects = core.handle(Trained(1.0, finite=True))
    (begun,) = [e for e in effects if isinstance(e, BeginRound)]
    assert 1e5 < begun.weight <= core._spec.averaging.weight_max
