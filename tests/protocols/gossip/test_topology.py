"""Both ends find the same graph, it is regular, connected, and hardly changes when a peer leaves."""

import pytest

from protocols.gossip.topology import Kind, Topology
from protocols.ids import PeerID
from tests.protocols.gossip.peers import peer

KINDS: tuple[Kind, ...] = ("random", "ring", "exponential", "full")


def graph(kind: Kind, peers: list[PeerID], degree: int = 8) -> dict[PeerID, frozenset[PeerID]]:
    """Each peer computes its own neighbours, with a Topology of its own."""
    return {
        own: Topology(kind, degree=degree, seed=3).neighbours(own, set(peers) - {own})
        for own in peers
    }


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", [1, 2, 3, 5, 8, 9, 10, 23])
def test_both_ends_find_the_same_edges(kind: Kind, count: int) -> None:
    edges = graph(kind, [peer(i) for i in range(count)])
    for own, neighbours in edges.items():
        assert own not in neighbours
        assert all(own in edges[other] for other in neighbours)


@pytest.mark.parametrize("degree", [2, 3, 4, 8])
def test_the_random_graph_is_nearly_regular_and_connected(degree: int) -> None:
    edges = graph("random", [peer(i) for i in range(50)], degree)
    sizes = [len(neighbours) for neighbours in edges.values()]
    assert max(sizes) == degree
    assert sum(size < degree for size in sizes) <= 2
    reached = {peer(0)}
    while more := {other for own in reached for other in edges[own]} - reached:
        reached |= more
    assert len(reached) == 50


def test_a_few_peers_are_all_neighbours_of_each_other() -> None:
    edges = graph("random", [peer(i) for i in range(9)], 8)
    assert all(len(neighbours) == 8 for neighbours in edges.values())


def test_when_a_peer_leaves_few_edges_change_and_mostly_those_of_its_neighbours() -> None:
    peers = [peer(i) for i in range(50)]
    before = graph("random", peers)
    changed = []
    for gone in peers[:20]:
        after = graph("random", [p for p in peers if p != gone])
        new = sum(len(after[p] - before[p]) for p in after) / 2
        lost = sum(len(before[p] - after[p] - {gone}) for p in after) / 2
        changed.append(new + lost)
    # Four rings close with an edge each; the rest is what fills up where two rings share an edge. Of 200 edges.
    assert sum(changed) / len(changed) <= 12
    assert max(changed) <= 30


def test_another_run_has_another_graph() -> None:
    others = {peer(i) for i in range(1, 50)}
    first = Topology("random", degree=8, seed=1).neighbours(peer(0), others)
    assert first != Topology("random", degree=8, seed=2).neighbours(peer(0), others)


def test_the_exponential_graph_has_logarithmic_degree() -> None:
    edges = graph("exponential", [peer(i) for i in range(32)])
    assert {len(neighbours) for neighbours in edges.values()} == {9}  # +-1, 2, 4, 8 and 16
