"""Every peer ends with a partition of its own, or shares when there are too few."""

import random
from collections import Counter

import pytest

from protocols.claims import choose_partition
from tests.protocols.gossip.peers import peer


@pytest.mark.parametrize(("peers", "partitions"), [(8, 8), (5, 8), (20, 8), (1, 1), (50, 50)])
def test_claims_settle(peers: int, partitions: int) -> None:
    names = [peer(i) for i in range(peers)]
    claims = {name: choose_partition(name, {}, partitions, held=None) for name in names}
    rng = random.Random(1)
    for _ in range(4 * peers):  # one looks in the directory at a time, in any order
        name = rng.choice(names)
        claims[name] = choose_partition(name, claims, partitions, held=claims[name])
    for name in names:
        claims[name] = choose_partition(name, claims, partitions, held=claims[name])
    settled = {n: choose_partition(n, claims, partitions, held=claims[n]) for n in names}
    assert settled == claims
    assert len(set(claims.values())) == min(peers, partitions)
    assert max(Counter(claims.values()).values()) <= max(1, peers - partitions + 1)


def test_the_smaller_peer_keeps_what_two_claim() -> None:
    claims = {peer(1): 3, peer(2): 3}
    assert choose_partition(peer(1), claims, 8, held=3) == 3
    assert choose_partition(peer(2), claims, 8, held=3) != 3


def test_a_newcomer_shares_the_partition_with_the_fewest() -> None:
    claims = {peer(1): 0, peer(2): 0, peer(3): 1}
    assert choose_partition(peer(9), claims, 2, held=None) == 1


def test_claims_out_of_range_are_nobodys() -> None:
    assert choose_partition(peer(9), {peer(1): 5, peer(2): -1}, 1, held=7) == 0
