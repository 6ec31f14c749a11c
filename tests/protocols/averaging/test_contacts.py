"""Where peers meet, and how they are dealt into groups."""

from __future__ import annotations

import itertools
import random

import pytest

from protocols.averaging.contacts import PEERS_PER_PLACE, Contacts, draw_groups
from protocols.ids import PeerID


def peers(count: int) -> list[PeerID]:
    return [PeerID(b"peer%05d" % index) for index in range(count)]


@pytest.mark.parametrize("count", [2, 3, 17, 300])
def test_peers_that_know_each_other_meet_at_few_places(count: int) -> None:
    everybody = peers(count)
    places = set()
    for own in everybody:
        contacts = Contacts(own)
        contacts.found(everybody)
        places.add(contacts.place(0.0, "model", 7))
    assert len(places) <= -(-count // PEERS_PER_PLACE)


def test_a_place_expects_those_who_come_to_it() -> None:
    everybody = peers(200)
    views = {own: Contacts(own) for own in everybody}
    for view in views.values():
        view.found(everybody)
    comers: dict[PeerID, set[PeerID]] = {}
    for own, view in views.items():
        comers.setdefault(view.place(0.0, "model", 1), set()).add(own)
    for place, came in comers.items():
        assert views[place].expected(0.0, "model", 1) == came


def test_no_peer_is_the_place_for_long() -> None:
    everybody = peers(20)
    contacts = Contacts(everybody[0])
    contacts.found(everybody)
    places = [contacts.place(0.0, "model", version) for version in range(200)]
    assert max(places.count(peer) for peer in everybody) < 25


def test_who_cannot_be_reached_is_left_out_for_a_while() -> None:
    here, there = peers(2)
    contacts = Contacts(here)
    contacts.found([there])
    contacts.down(0.0, there)
    assert contacts.live(1.0) == []
    assert contacts.live(31.0) == [there]
    contacts.down(40.0, there)
    contacts.heard(there)
    assert contacts.live(41.0) == [there]


def test_peers_that_only_wrote_to_us_are_bounded() -> None:
    own, *others = peers(1000)
    contacts = Contacts(own)
    for peer in others:
        contacts.heard(peer)
    assert len(contacts) <= 256


@pytest.mark.parametrize(
    ("count", "group_max"), [*itertools.product((2, 3, 7, 16, 33), (2, 3, 4, 16))]
)
def test_groups_are_even_and_nobody_is_alone(count: int, group_max: int) -> None:
    groups = draw_groups(peers(count), "model", 3, group_max)
    assert sorted(peer for group in groups for peer in group) == peers(count)
    sizes = [len(group) for group in groups]
    assert min(sizes) >= 2
    assert max(sizes) <= group_max + 1
    assert max(sizes) - min(sizes) <= 1
    assert all(group == sorted(group) for group in groups)


def test_the_spread_between_peers_falls_by_what_random_groups_give() -> None:
    """16 peers in groups of 4: the expected share of the variance that is left is (16 - 4) / (4 (16 - 1)) = 0.2."""
    everybody = peers(16)
    rng = random.Random(1)
    shares = []
    for trial in range(60):
        values = {peer: rng.gauss(0, 1) for peer in everybody}
        for version in range(3):
            before = variance(values)
            for group in draw_groups(everybody, f"model {trial}", version, 4):
                mean = sum(values[peer] for peer in group) / len(group)
                values.update(dict.fromkeys(group, mean))
            shares.append(variance(values) / before)
    assert sum(shares) / len(shares) == pytest.approx(0.2, abs=0.03)


def variance(values: dict[PeerID, float]) -> float:
    mean = sum(values.values()) / len(values)
    return sum((value - mean) ** 2 for value in values.values())
