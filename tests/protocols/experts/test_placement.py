from __future__ import annotations

import random
from collections import Counter

import pytest

from protocols.core import DrainWanted, Tick
from protocols.experts.assignment import assign, preference
from protocols.experts.epoch import changes, next_epoch
from protocols.experts.events import (
    Adopt,
    AnswerHandOver,
    ClaimsSeen,
    Create,
    Drop,
    FindSnapshots,
    HandedOver,
    HandOverOffered,
    HandOverTo,
    Hosted,
    HostFailed,
    Left,
    LookAgain,
    NewerEpoch,
    NodesSeen,
    OffersFound,
    Probed,
    SnapshotKept,
    TakeSnapshot,
)
from protocols.experts.messages import Seen, SnapshotOffer
from protocols.experts.placement import Placement
from protocols.experts.roster import HAND_OVER_AGAIN_S
from protocols.experts.uid import Grid
from protocols.experts.view import Claim
from protocols.ids import PeerID
from tests.protocols.experts.world import World

UIDS = list(Grid("ffn0", (4, 4)).uids())
ME, OTHER = PeerID(b"me"), PeerID(b"other")
UID = UIDS[0]


def world(*, nodes: int = 5, seed: int = 1, room: int = 99, keepers: int = 1) -> World:
    return World(nodes, UIDS, seed=seed, room=room, keepers=keepers)


def assert_each_has_one_host(w: World) -> None:
    assert {uid: len(nodes) for uid, nodes in w.hosts().items()} == dict.fromkeys(UIDS, 1)


def test_nodes_that_start_together_share_the_grid_out() -> None:
    w = world()
    w.run(15)
    assert_each_has_one_host(w)
    loads = Counter(nodes[0].name for nodes in w.hosts().values())
    assert sorted(loads.values()) == [3, 3, 3, 3, 4]
    assert sum(node.core.gave_way for node in w.nodes.values()) == 0
    assert not w.lost


def test_experts_of_a_killed_node_are_adopted_with_what_their_last_snapshot_knew() -> None:
    w = world()
    w.run(30)
    dead = w.kill("n2")
    had = dict(dead.experts)
    assert had
    w.run(15)
    assert_each_has_one_host(w)
    assert not w.lost
    assert sum(node.core.adopted for node in w.nodes.values()) == len(had)
    for uid, (epoch, steps) in had.items():
        host = w.hosts()[uid][0]
        assert host.experts[uid][0] > epoch
        assert host.experts[uid][1] >= steps - 12, (
            "at most what was learned since the last snapshot"
        )


def test_a_returning_host_finds_out_and_gives_way() -> None:
    w = world()
    w.run(30)
    paused = w.nodes[PeerID(b"n1")]
    had = set(paused.experts)
    paused.paused = True
    w.run(30)
    paused.paused = False
    w.run(12)
    assert_each_has_one_host(w)
    assert paused.core.gave_way == len(had)
    for (_, epoch), who in w.stepped.items():
        assert len(who) == 1, f"two hosts stepped epoch {epoch} of one expert"


def test_a_draining_node_hands_everything_over_before_it_leaves() -> None:
    w = world()
    w.run(20)
    node = w.drain("n3")
    had = {uid: steps for uid, (_, steps) in node.experts.items()}
    w.run(15)
    assert node.left
    assert node.core.handed_over == len(had)
    assert_each_has_one_host(w)
    assert not w.lost
    for uid, steps in had.items():
        assert w.hosts()[uid][0].experts[uid][1] >= steps, "nothing is forgotten on the way"


def test_the_last_node_leaves_though_nobody_takes_its_experts() -> None:
    w = world(nodes=1)
    w.run(10)
    assert len(w.nodes[PeerID(b"n0")].experts) == 16
    assert w.drain("n0").left


def test_a_newcomer_gets_its_share_from_those_who_have_more() -> None:
    w = world(nodes=2)
    w.run(15)
    w.join("n9")
    w.run(60)
    assert_each_has_one_host(w)
    loads = Counter(nodes[0].name for nodes in w.hosts().values())
    assert loads[PeerID(b"n9")] >= 4
    assert not w.lost


def test_room_bounds_what_a_node_hosts() -> None:
    w = world(nodes=3, room=4)
    w.run(60)
    assert all(len(node.experts) <= 4 for node in w.nodes.values())
    assert sum(map(len, w.hosts().values())) == 12


@pytest.mark.parametrize("seed", range(20))
def test_no_expert_is_lost_whoever_comes_and_goes(seed: int) -> None:
    """Kills, pauses, drains and joins at random; calm in between, so that a snapshot of each expert exists."""
    w = world(seed=seed, keepers=2)
    w.run(25)
    rng = random.Random(seed)
    for index in range(4):
        live = [node for node in w.nodes.values() if node.live]
        what = rng.choice(["kill", "pause", "drain", "join"])
        victim = rng.choice(live)
        name = bytes(victim.name).decode()
        if what == "join" or len(live) < 4:
            w.join(f"j{index}")
        elif what == "kill":
            w.kill(name)
        elif what == "drain":
            w.drain(name)
        else:
            victim.paused = True
            w.after(rng.uniform(1, 25), lambda victim=victim: setattr(victim, "paused", False))  # type: ignore[misc]
        w.run(rng.uniform(18, 30))
    w.run(60)
    assert_each_has_one_host(w)
    assert not w.lost


def core(*, room: int = 99, nodes_to_start: int = 1) -> Placement:
    made = Placement(ME, tuple(UIDS), room, 1, 2.0, random.Random(1), nodes_to_start=nodes_to_start)
    made.start(0.0)
    return made


def offer(epoch: int, version: int, host: PeerID) -> SnapshotOffer:
    root = b"%016d%016d" % (epoch, version)
    return SnapshotOffer(str(UID), epoch, version, root, host, bytes(64))


def test_a_snapshot_of_the_host_that_was_seen_is_believed_before_a_newer_one_of_a_stranger() -> (
    None
):
    liar, keeper = PeerID(b"liar"), PeerID(b"keeper")
    placement = core()
    placement.handle(NodesSeen(0.0, {}))
    placement.handle(ClaimsSeen(0.0, {UID: [Claim(3, OTHER)]}))
    placement.handle(ClaimsSeen(1.0, {}))
    placement.handle(Tick(4.0))
    offers = (
        (liar, offer((1 << 53) - 1, 9, liar)),
        (keeper, offer(3, 40, OTHER)),
        (keeper, offer(2, 70, OTHER)),
    )
    (adopt,) = placement.handle(OffersFound(5.0, UID, offers))
    assert isinstance(adopt, Adopt)
    assert (adopt.offer, adopt.donors) == (offer(3, 40, OTHER), (keeper,))
    assert changes(adopt.epoch) == 1, "the made-up epoch of the stranger does not count"


def missing(*seen: Claim) -> Placement:
    """Return a core that has seen these as the host of UID, one after the other, and then nobody."""
    placement = core()
    for claim in seen:
        placement.handle(ClaimsSeen(0.0, {UID: [claim]}))
    placement.handle(ClaimsSeen(1.0, {}))
    return placement


def test_what_a_stranger_signed_counts_for_nothing_though_there_be_nothing_else() -> None:
    liar = PeerID(b"liar")
    for placement in (missing(Claim(3, OTHER)), missing()):
        offers = ((liar, offer(4, 9, liar)), (liar, offer(3, 9, liar)))
        word = ((liar, Seen(4, liar)), (PeerID(b"third"), Seen(4, OTHER)))
        for now_s, gives_up in ((4.0, False), (62.0, False), (182.0, True)):
            placement.handle(Tick(now_s))
            effects = placement.handle(OffersFound(now_s, UID, offers, seen=word))
            assert [type(effect) for effect in effects] == [Create] * gives_up


def test_a_strangers_newer_snapshot_leaves_half_a_minute_for_those_who_know_its_signer() -> None:
    stranger, keeper = PeerID(b"stranger"), PeerID(b"keeper")
    placement = missing(Claim(4, PeerID(b"gone")), Claim(3, OTHER))
    offers = ((keeper, offer(3, 40, OTHER)), (keeper, offer(5, 1, stranger)))
    for now_s, adopts in ((4.0, False), (32.0, True)):
        placement.handle(Tick(now_s))
        effects = placement.handle(OffersFound(now_s, UID, offers))
        assert [effect.offer.host for effect in effects if isinstance(effect, Adopt)] == (
            [OTHER] * adopts
        )


@pytest.mark.parametrize("seen", [(), (Claim(2, PeerID(b"gone")),)], ids=["nobody", "another"])
def test_what_somebody_else_than_its_signer_witnesses_counts_when_nothing_else_does(
    seen: tuple[Claim, ...],
) -> None:
    third, only = PeerID(b"third"), offer(3, 4, OTHER)
    for keeper, word, believed in (
        (third, (), True),
        (OTHER, ((third, Seen(3, OTHER)),), True),
        (OTHER, ((OTHER, Seen(3, OTHER)), (third, Seen(4, OTHER)), (third, Seen(3, third))), False),
    ):
        placement = missing(*seen)
        for now_s, late in ((4.0, False), (32.0, True)):
            placement.handle(Tick(now_s))
            found = OffersFound(now_s, UID, ((keeper, only),), seen=word)
            assert bool(placement.handle(found)) == (late and believed)


def test_who_claims_an_expert_beside_its_rightful_host_is_no_host() -> None:
    liar = PeerID(b"liar")
    placement = core()
    placement.handle(ClaimsSeen(0.0, {UID: [Claim(3, OTHER), Claim(2, liar)]}))
    placement.handle(Hosted(0.0, UIDS[1], 5))
    placement.handle(ClaimsSeen(0.5, {UIDS[1]: [Claim(4, liar)]}))
    assert placement.seen(UID) == [Seen(3, OTHER)]
    assert placement.seen(UIDS[1]) == [Seen(5, ME)]


def test_what_we_keep_or_signed_ourselves_was_a_hosts() -> None:
    third = PeerID(b"third")
    for found in (
        (ME, offer(4, 7, third)),
        (third, offer(4, 7, ME)),
    ):  # or signed in an earlier life
        placement = missing(Claim(3, OTHER))
        placement.handle(Tick(4.0))
        (adopt,) = placement.handle(OffersFound(4.0, UID, (found,)))
        assert isinstance(adopt, Adopt)
        assert adopt.offer == found[1]


def test_the_latest_hosts_are_remembered() -> None:
    seen = [Claim(epoch, PeerID(b"h%d" % epoch)) for epoch in range(1, 11)]
    placement = missing(*seen)
    assert placement.seen(UID) == [Seen(claim.epoch, claim.peer) for claim in seen[2:]]


def test_who_is_full_and_had_an_expert_that_nobody_adopts_makes_room_for_it() -> None:
    placement = core(room=1)
    placement.handle(NodesSeen(0.0, {OTHER: 9}))
    placement.handle(Hosted(0.0, UID, 2))
    placement.handle(ClaimsSeen(1.0, {UID: [Claim(3, OTHER)]}))
    placement.handle(Hosted(2.0, UIDS[1], 2))
    placement.handle(ClaimsSeen(3.0, {}))
    give_away = HandOverTo(UIDS[1], 2, OTHER)
    assert give_away not in placement.handle(Tick(32.0))
    assert give_away in placement.handle(Tick(34.0))
    placement.handle(HandedOver(35.0, UIDS[1], 2, taken=True))
    placement.handle(ClaimsSeen(35.0, {uid: [Claim(3, OTHER)] for uid in UIDS[1:]}))
    found = [placement.handle(Tick(now_s)) for now_s in (36.0, 42.0)]
    assert FindSnapshots(UID, (OTHER,)) in [effect for effects in found for effect in effects]


def test_an_expert_without_any_snapshot_begins_anew_and_counts_as_lost() -> None:
    placement, epoch = core(), next_epoch(0, random.Random(2))
    placement.handle(ClaimsSeen(0.0, {UID: [Claim(epoch, OTHER)]}))
    placement.handle(ClaimsSeen(1.0, {}))
    placement.handle(Tick(4.0))
    (create,) = placement.handle(OffersFound(5.0, UID, ()))
    assert create == Create(UID, next_epoch(0, random.Random(1)), lost=True)
    placement.handle(Hosted(6.0, UID, create.epoch))
    assert placement.lost == 1


def test_of_two_hosts_with_equal_epochs_the_smaller_peer_keeps_the_expert() -> None:
    for other, gives_way in ((PeerID(b"aa"), True), (PeerID(b"zz"), False)):
        placement = core()
        placement.handle(Hosted(0.0, UID, 2))
        effects = placement.handle(ClaimsSeen(1.0, {UID: [Claim(2, other)]}))
        assert (Drop(UID, "superseded") in effects) == gives_way
        assert (UID in placement.hosting) != gives_way


def test_a_caller_that_knows_a_newer_epoch_makes_a_host_look_and_takes_nothing_by_its_word() -> (
    None
):
    placement = core()
    placement.handle(Hosted(0.0, UID, 2))
    assert not placement.handle(NewerEpoch(1.0, UID, 2))
    assert placement.handle(NewerEpoch(1.0, UID, 3)) == [LookAgain(UID)]
    assert not placement.handle(NewerEpoch(1.5, UID, 4)), "one look a second, however many ask"
    assert UID in placement.hosting


def test_an_expert_begins_anew_only_when_nobody_is_silent_any_more_or_after_minutes() -> None:
    placement = core()
    placement.handle(NodesSeen(0.0, {OTHER: 0}))
    placement.handle(ClaimsSeen(0.0, {UID: [Claim(3, PeerID(b"gone"))]}))
    placement.handle(ClaimsSeen(1.0, {}))
    for now_s, gives_up in ((4.0, False), (62.0, False), (182.0, True)):
        assert FindSnapshots(UID, (OTHER,)) in placement.handle(Tick(now_s))
        effects = placement.handle(OffersFound(now_s, UID, (), silent=(OTHER,)))
        assert bool(effects) == gives_up


def test_who_is_down_may_have_a_snapshot_for_a_minute() -> None:
    for now_s, gives_up in ((4.0, False), (62.0, True)):
        placement = core()
        placement.handle(NodesSeen(0.0, {OTHER: 0}))
        placement.handle(ClaimsSeen(0.0, {UID: [Claim(3, OTHER)]}))
        placement.handle(Probed(1.0, OTHER, alive=False))
        placement.handle(ClaimsSeen(1.0, {UID: [Claim(3, OTHER)]}))
        assert FindSnapshots(UID, ()) in placement.handle(Tick(now_s))
        assert bool(placement.handle(OffersFound(now_s, UID, ()))) == gives_up


def test_who_was_down_when_all_were_asked_and_is_back_may_have_a_snapshot() -> None:
    placement = core()
    placement.handle(NodesSeen(0.0, {OTHER: 0}))
    placement.handle(ClaimsSeen(0.0, {UID: [Claim(3, PeerID(b"gone"))]}))
    placement.handle(Probed(1.0, OTHER, alive=False))
    placement.handle(ClaimsSeen(1.0, {}))
    assert FindSnapshots(UID, ()) in placement.handle(Tick(4.0))
    placement.handle(Probed(4.1, OTHER, alive=True))
    assert placement.handle(OffersFound(4.2, UID, ())) == ()
    assert FindSnapshots(UID, (OTHER,)) in placement.handle(Tick(4.5))
    (create,) = placement.handle(OffersFound(5.0, UID, ()))
    assert isinstance(create, Create)


def test_a_newcomer_that_was_not_asked_may_have_a_snapshot() -> None:
    placement = core()
    placement.handle(ClaimsSeen(0.0, {UID: [Claim(3, PeerID(b"gone"))]}))
    placement.handle(ClaimsSeen(1.0, {}))
    assert FindSnapshots(UID, ()) in placement.handle(Tick(4.0))
    placement.handle(NodesSeen(4.1, {OTHER: 0}))
    assert placement.handle(OffersFound(4.2, UID, ())) == ()


def test_a_snapshot_that_could_not_be_fetched_is_tried_again_for_minutes() -> None:
    placement, only = core(), ((PeerID(b"keeper"), offer(3, 40, OTHER)),)
    placement.handle(ClaimsSeen(0.0, {UID: [Claim(3, OTHER)]}))
    placement.handle(ClaimsSeen(1.0, {}))
    for now_s, expected in ((4.0, Adopt), (62.0, Adopt), (182.0, Create)):
        placement.handle(Tick(now_s))
        (effect,) = placement.handle(OffersFound(now_s, UID, only))
        assert isinstance(effect, expected)
        placement.handle(HostFailed(now_s, UID))


def test_who_is_down_is_waited_for_for_minutes_when_a_snapshot_was_offered_once() -> None:
    placement, only = core(), ((OTHER, offer(3, 40, OTHER)),)
    placement.handle(NodesSeen(0.0, {OTHER: 0}))
    placement.handle(ClaimsSeen(0.0, {UID: [Claim(3, OTHER)]}))
    placement.handle(ClaimsSeen(1.0, {}))
    placement.handle(Tick(4.0))
    placement.handle(OffersFound(4.0, UID, only))
    placement.handle(HostFailed(5.0, UID))
    placement.handle(Probed(6.0, OTHER, alive=False))
    for now_s, gives_up in ((62.0, False), (182.0, True)):
        placement.handle(Tick(now_s))
        assert bool(placement.handle(OffersFound(now_s, UID, ()))) == gives_up


def test_who_has_offered_an_older_snapshot_and_is_down_now_is_waited_for_for_minutes() -> None:
    placement, third = core(), PeerID(b"third")
    placement.handle(NodesSeen(0.0, {OTHER: 0, third: 0}))
    placement.handle(ClaimsSeen(0.0, {UID: [Claim(4, third)]}))
    placement.handle(ClaimsSeen(0.5, {UID: [Claim(3, OTHER)]}))
    placement.handle(ClaimsSeen(1.0, {}))
    placement.handle(Tick(4.0))
    only = ((OTHER, offer(3, 40, OTHER)),)
    assert not placement.handle(OffersFound(4.0, UID, only, silent=(third,)))
    placement.handle(Probed(6.0, OTHER, alive=False))
    for now_s, gives_up in ((62.0, False), (182.0, True)):
        placement.handle(Tick(now_s))
        assert bool(placement.handle(OffersFound(now_s, UID, ()))) == gives_up


def test_who_leaves_keeps_no_snapshot_and_takes_no_expert_for_a_while() -> None:
    placement, third = core(), PeerID(b"third")
    placement.handle(NodesSeen(0.0, {OTHER: 9, third: 9}))
    placement.handle(Hosted(0.0, UID, 2))
    first, second = preference(UID, (OTHER, third))
    (take,) = placement.handle(Tick(10.0))
    assert take == TakeSnapshot(UID, 2, (first,))
    placement.handle(SnapshotKept(10.1, UID, 0, leaving=(first,)))
    assert placement.handle(Tick(11.5)) == [TakeSnapshot(UID, 2, (second,))]
    assert first not in placement.spare()
    placement.handle(SnapshotKept(11.6, UID, 1))
    assert placement.handle(Tick(20.5)) == [TakeSnapshot(UID, 2, (first,))]


def test_a_snapshot_that_takes_long_holds_up_the_next_one() -> None:
    placement = core()
    placement.handle(NodesSeen(0.0, {OTHER: 0}))
    placement.handle(Hosted(0.0, UID, 2))
    take = TakeSnapshot(UID, 2, (OTHER,))
    assert take in placement.handle(Tick(10.0))
    assert take not in placement.handle(Tick(20.0))
    placement.handle(SnapshotKept(20.1, UID, 1))
    assert take in placement.handle(Tick(20.5))


def test_who_leaves_waits_for_a_snapshot_that_is_under_way_and_has_the_last_one_kept() -> None:
    placement = core()
    placement.handle(NodesSeen(0.0, {OTHER: 0}))
    placement.handle(Hosted(0.0, UID, 2))
    take = TakeSnapshot(UID, 2, (OTHER,))
    assert take in placement.handle(Tick(10.0))
    assert placement.handle(DrainWanted(10.1)) == []
    placement.handle(SnapshotKept(10.2, UID, 1))
    assert placement.handle(Tick(10.5)) == [take]
    placement.handle(SnapshotKept(10.6, UID, 1))
    assert placement.handle(Tick(11.0)) == [Left()]


def test_what_could_not_be_fetched_comes_after_what_can() -> None:
    placement = core()
    placement.handle(ClaimsSeen(0.0, {UID: [Claim(3, OTHER)]}))
    placement.handle(ClaimsSeen(1.0, {}))
    newest, older = offer(3, 40, OTHER), offer(3, 30, OTHER)
    offers = ((PeerID(b"k1"), newest), (PeerID(b"k2"), older))
    for expected in (newest, older):
        placement.handle(Tick(4.0))
        (adopt,) = placement.handle(OffersFound(5.0, UID, offers))
        assert isinstance(adopt, Adopt)
        assert adopt.offer == expected
        placement.handle(HostFailed(6.0, UID))


def test_who_leaves_has_what_nobody_has_room_for_kept_first() -> None:
    placement = core()
    placement.handle(NodesSeen(0.0, {OTHER: 0}))
    placement.handle(Hosted(0.0, UID, 2))
    assert placement.handle(DrainWanted(1.0)) == [TakeSnapshot(UID, 2, (OTHER,))]
    assert placement.handle(Tick(1.5)) == []
    placement.handle(SnapshotKept(2.0, UID, 1))
    assert placement.handle(Tick(2.5)) == [Left()]


def test_a_late_answer_to_a_hand_over_does_not_drop_the_expert_that_has_come_back() -> None:
    made = core()
    made.handle(Hosted(0.0, UID, 2))
    made.handle(NodesSeen(0.0, {OTHER: 9}))
    effects = made.handle(DrainWanted(1.0))
    assert HandOverTo(UID, 2, OTHER) in effects
    made.handle(Hosted(2.0, UID, 7))  # the successor had it, and has given it back
    assert HandOverTo(UID, 7, OTHER) in made.handle(Tick(2.5))
    assert made.handle(HandedOver(3.0, UID, 2, taken=True)) == ()
    assert made.hosting == {UID: 7}
    assert Drop(UID, "handed over") in made.handle(HandedOver(4.0, UID, 7, taken=True))


def test_who_refused_is_not_asked_again_at_once_though_the_expert_has_come_and_gone_meanwhile() -> (
    None
):
    made = core()
    made.handle(NodesSeen(0.0, {OTHER: 9}))
    made.handle(Hosted(0.0, UID, 2))
    assert HandOverTo(UID, 2, OTHER) in made.handle(DrainWanted(1.0))
    made.handle(ClaimsSeen(1.1, {UID: [Claim(7, PeerID(b"third"))]}))
    made.handle(ClaimsSeen(1.2, {}))
    made.handle(Hosted(1.2, UID, 9))
    made.handle(HandedOver(1.5, UID, 2, taken=False))
    assert made.handle(Tick(2.0)) == []
    assert HandOverTo(UID, 9, OTHER) in made.handle(Tick(1.5 + HAND_OVER_AGAIN_S))


def test_an_expert_that_somebody_else_got_meanwhile_is_not_hosted() -> None:
    placement = core()
    placement.handle(ClaimsSeen(0.0, {UID: [Claim(4, OTHER)]}))
    assert placement.handle(Hosted(1.0, UID, 3)) == [Drop(UID, "superseded")]
    assert UID not in placement.hosting


def test_an_expert_is_taken_over_only_from_its_own_host_and_only_with_room() -> None:
    full = core(room=0)
    assert full.handle(HandOverOffered(0.0, OTHER, offer(1, 5, OTHER), UID)) == [
        AnswerHandOver(UID)
    ]
    free = core()
    free.handle(ClaimsSeen(0.0, {UID: [Claim(1, OTHER)]}))
    assert free.handle(HandOverOffered(0.0, ME, offer(1, 5, OTHER), UID)) == [AnswerHandOver(UID)]
    third = PeerID(b"third")
    assert free.handle(HandOverOffered(0.0, third, offer(9, 5, third), UID)) == [
        AnswerHandOver(UID)
    ]
    (adopt,) = free.handle(HandOverOffered(0.0, OTHER, offer(1, 5, OTHER), UID))
    assert adopt == Adopt(UID, next_epoch(1, random.Random(1)), offer(1, 5, OTHER), (OTHER,))


def test_everybody_computes_the_same_assignment() -> None:
    rooms = {PeerID(b"n%d" % i): 8 for i in range(4)}
    backwards = dict(reversed(rooms.items()))
    first = assign(UIDS, rooms, {}, total=16)
    assert first == assign(reversed(UIDS), backwards, {}, total=16)
    assert set(Counter(order[0] for order in first.values()).values()) == {4}
    assert preference(UID, rooms) == preference(UID, backwards)


def test_nothing_is_created_before_enough_nodes_are_known() -> None:
    placement = core(nodes_to_start=2)
    placement.handle(ClaimsSeen(0.0, {}))
    assert not placement.handle(Tick(60.0))
    placement.handle(NodesSeen(60.0, {OTHER: 8}))
    assert placement.handle(Tick(61.0))
