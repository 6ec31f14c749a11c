"""Links that are slow, cut and restored, between real nodes that know each other's relayed addresses only."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from protocols.ids import PeerID
from tests.processes.links import Links, open_links
from tests.processes.swarm import ProcessSwarm, pipeline, process_swarm

pytestmark = pytest.mark.process

NAMES = ("first", "second", "third", "fourth")


@pytest.fixture(scope="module")
def links() -> Iterator[Links]:
    with open_links() as opened:
        yield opened


@pytest.fixture(scope="module")
def swarm(links: Links, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ProcessSwarm]:
    with process_swarm(tmp_path_factory.mktemp("links")) as started:
        for name in NAMES:
            links.attach(name, started.start(name, *links.flags_for(name)))
        started.wait_whole()
        yield started
        assert started.check_history() > 0


def test_all_that_nodes_say_to_each_other_comes_by_the_relay(
    swarm: ProcessSwarm, links: Links
) -> None:
    assert links.ways_around() == set()
    before = {name: sum(link.bytes_relayed for link in links.of(name)) for name in NAMES}
    swarm.wait_steps(3, seen_by=swarm.nodes["first"])
    for name in NAMES:
        assert sum(link.bytes_relayed for link in links.of(name)) > before[name]


def test_a_slow_link_slows_and_nobody_is_expelled(swarm: ProcessSwarm, links: Links) -> None:
    slow = swarm.nodes["third"]
    expulsions = pipeline(slow)["expulsions"]
    for link in links.of("third"):
        link.delay_s, link.bytes_per_s = 0.1, 400_000
    try:
        relayed = sum(link.bytes_relayed for link in links.of("third"))
        swarm.wait_steps(5, seen_by=slow)
        assert sum(link.bytes_relayed for link in links.of("third")) > relayed
        assert len(pipeline(slow)["members"]) == len(NAMES)
    finally:
        for link in links.of("third"):
            link.delay_s, link.bytes_per_s = 0.0, 0.0
    swarm.wait_steps(3, seen_by=slow)
    assert pipeline(slow)["expulsions"] == expulsions


def test_a_node_that_is_cut_off_decides_nothing_and_is_back_when_its_links_are(
    swarm: ProcessSwarm, links: Links
) -> None:
    first, victim = swarm.nodes["first"], swarm.nodes["fourth"]
    expulsions = pipeline(victim)["expulsions"]
    links.cut("fourth")
    try:
        swarm.wait_members(3, seen_by=first)
        alone = swarm.records(victim)[-1].index
        swarm.wait_steps(5, seen_by=first)
        assert swarm.records(victim)[-1].index == alone
        assert links.ways_around() == set()
    finally:
        links.restore("fourth")
    swarm.wait_whole()
    assert pipeline(victim)["expulsions"] > expulsions


def test_the_lead_cut_off_is_replaced_and_comes_back_as_a_member(
    swarm: ProcessSwarm, links: Links
) -> None:
    lead = swarm.lead()
    (name,) = [name for name, node in swarm.nodes.items() if node is lead]
    witness = swarm.living(lead)[0]
    links.cut(name)
    try:
        swarm.wait_members(3, seen_by=witness)
        swarm.wait_steps(3, seen_by=witness)
    finally:
        links.restore(name)
    swarm.wait_whole()


def test_of_two_halves_one_goes_on_and_the_other_waits(swarm: ProcessSwarm, links: Links) -> None:
    """Both could: each has a node of each stage. Half with the smallest PeerID among them may decide."""
    members = {
        member["peer_id"]: member["stage"] for member in pipeline(swarm.living()[0])["members"]
    }
    names = {node.ask("id")["peer_id"]: name for name, node in swarm.nodes.items()}
    smallest, *others = sorted(members, key=lambda peer: PeerID.from_text(peer))
    partner = next(peer for peer in others if members[peer] != members[smallest])
    going = [names[smallest], names[partner]]
    waiting = [name for name in names.values() if name not in going]
    halves = [links.between(a, b) for a in going for b in waiting]
    for link in halves:
        link.is_cut = True
    try:
        witness = swarm.nodes[going[0]]
        swarm.wait_members(2, seen_by=witness)
        newest = {name: swarm.records(swarm.nodes[name])[-1].index for name in waiting}
        swarm.wait_steps(5, seen_by=witness)
        for name in waiting:
            assert swarm.records(swarm.nodes[name])[-1].index == newest[name]
        # Which of the two it is depends on who led: a lead waits to be heard or accepted, the other for promises.
        reasons = re.compile("majority|accepts from")
        swarm.wait(
            lambda: any(
                reasons.search(str(pipeline(swarm.nodes[name])["waiting_for"])) for name in waiting
            )
        )
    finally:
        for link in halves:
            link.is_cut = False
    swarm.wait_whole()
    assert swarm.check_history() > 0
