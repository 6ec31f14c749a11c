"""A node that comes back: what it had last it takes back, the rest it leaves to those who had it."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

from protocols.core import DrainWanted, Tick
from protocols.experts.epoch import changes, next_epoch
from protocols.experts.events import (
    Adopt,
    ClaimsSeen,
    Create,
    Drop,
    Effect,
    FindSnapshots,
    HandedOver,
    Hosted,
    HostFailed,
    NodesSeen,
    OffersFound,
)
from protocols.experts.messages import Seen, SnapshotOffer
from protocols.experts.placement import Placement
from protocols.experts.returning import RETURN_S
from protocols.experts.uid import ExpertUID, Grid
from protocols.experts.view import Claim
from protocols.ids import PeerID

UIDS = list(Grid("ffn0", (2, 1)).uids())
UID, LATER = UIDS
ME, OTHER = PeerID(b"me"), PeerID(b"other")
RNG = random.Random(5)
FIRST = next_epoch(0, RNG)
SECOND = next_epoch(FIRST, RNG)


def offer(version: int, *, host: PeerID = ME, epoch: int = SECOND) -> SnapshotOffer:
    root = bytes([version]) * 32
    return SnapshotOffer(str(UID), epoch, version, root, host, bytes(64))


def back(
    offers: Mapping[ExpertUID, SnapshotOffer],
    seen: Mapping[ExpertUID, Sequence[Seen]] | None = None,
    *,
    claims: Sequence[Claim] = (),
    room: int = 9,
) -> Placement:
    core = Placement(ME, UIDS, room, 1, 10.0, random.Random(1))
    core.restore(0.0, seen or {UID: [Seen(SECOND, ME)]}, offers)
    core.start(0.0)
    core.handle(NodesSeen(0.0, {OTHER: 9}))
    core.handle(ClaimsSeen(0.1, {UID: claims} if claims else {}))
    return core


def find(core: Placement, now_s: float = 0.5) -> list[ExpertUID]:
    return [e.uid for e in core.handle(Tick(now_s)) if isinstance(e, FindSnapshots)]


def found(core: Placement, *offers: tuple[PeerID, SnapshotOffer]) -> Sequence[Effect]:
    return core.handle(OffersFound(0.6, UID, offers))


def test_what_it_had_last_is_taken_back_from_the_newest_copy_at_once() -> None:
    core = back({UID: offer(3)})
    assert find(core) == [UID]
    (adopt,) = found(core, (ME, offer(3)), (OTHER, offer(7)))
    assert isinstance(adopt, Adopt)
    assert (adopt.offer.version, adopt.donors) == (7, (OTHER,))
    assert changes(adopt.epoch) == 3
    core.handle(Hosted(1.0, UID, adopt.epoch))
    assert (core.taken_back, core.adopted, core.created, core.lost) == (1, 0, 0, 0)
    assert core.hosting == {UID: adopt.epoch}


def test_a_newer_copy_that_cannot_be_had_comes_second() -> None:
    core = back({UID: offer(3)})
    find(core)
    found(core, (ME, offer(3)), (OTHER, offer(7)))
    core.handle(HostFailed(1.0, UID))
    assert find(core, 1.5) == [UID]
    (adopt,) = found(core, (ME, offer(3)), (OTHER, offer(7)))
    assert isinstance(adopt, Adopt)
    assert adopt.offer.version == 3


def test_what_another_node_has_gone_on_with_stays_there() -> None:
    third = next_epoch(SECOND, RNG)
    core = back({UID: offer(3)}, claims=[Claim(third, OTHER)])
    assert not find(core)
    assert core.taken_back == 0


def test_what_another_node_goes_on_with_while_copies_are_looked_for_stays_there() -> None:
    core = back({UID: offer(3)})
    assert find(core) == [UID]
    core.handle(ClaimsSeen(0.55, {UID: [Claim(next_epoch(SECOND, RNG), OTHER)]}))
    assert not found(core, (ME, offer(3)))
    assert not find(core, 1.0)


def test_what_was_begun_anew_meanwhile_is_taken_back() -> None:
    anew = next_epoch(0, random.Random(9))
    core = back({UID: offer(3)}, claims=[Claim(anew, OTHER)])
    assert find(core) == [UID]
    (adopt,) = found(core, (ME, offer(3)), (OTHER, offer(1, host=OTHER, epoch=anew)))
    assert isinstance(adopt, Adopt)
    assert adopt.offer.version == 3
    assert changes(adopt.epoch) == 3
    assert not [e for e in core.handle(Hosted(1.0, UID, adopt.epoch)) if isinstance(e, Drop)]


def test_a_first_host_takes_back_what_was_begun_anew_in_a_larger_epoch() -> None:
    anew = FIRST + 1
    seen = {UID: [Seen(FIRST, ME)]}
    core = back({UID: offer(3, epoch=FIRST)}, seen, claims=[Claim(anew, OTHER)])
    assert find(core) == [UID]
    (adopt,) = found(core, (ME, offer(3, epoch=FIRST)))
    assert isinstance(adopt, Adopt)
    assert changes(adopt.epoch) == 2


def test_what_it_had_handed_over_it_does_not_take_back() -> None:
    seen = {UID: [Seen(FIRST, ME), Seen(SECOND, OTHER)]}
    core = back({UID: offer(3, epoch=FIRST)}, seen)
    assert not find(core)


def test_it_takes_back_no_more_than_it_has_room_for() -> None:
    assert not find(back({UID: offer(3)}, room=0))


def test_what_others_had_is_left_to_them_for_a_minute_and_nothing_is_begun_anew() -> None:
    seen = {UID: [Seen(SECOND, OTHER)]}
    core = back({UID: offer(3, host=OTHER)}, seen)
    for second in range(1, int(RETURN_S)):
        assert not find(core, second)
    assert UID in [uid for k in range(20) for uid in find(core, RETURN_S + 1 + k)]
    (adopt,) = found(core, (ME, offer(3, host=OTHER)))
    assert isinstance(adopt, Adopt)


def test_what_somebody_had_since_is_taken_as_ever_when_it_is_orphaned() -> None:
    core = back({}, {UID: [Seen(FIRST, OTHER)]}, claims=[Claim(SECOND, OTHER)])
    core.handle(ClaimsSeen(3.0, {}))
    assert UID in [uid for k in range(20) for uid in find(core, 5.5 + k)]


def test_a_node_that_was_never_there_waits_for_nobody() -> None:
    core = Placement(ME, UIDS, 9, 1, 10.0, random.Random(1))
    core.restore(0.0, {}, {})
    core.start(0.0)
    core.handle(NodesSeen(0.0, {}))
    core.handle(ClaimsSeen(0.1, {}))
    assert find(core, 2.5) == UIDS
    assert [type(e) for e in found(core)] == [Create]


def test_a_record_of_who_died_as_well_does_not_make_its_expert_an_orphan_at_once() -> None:
    kept = offer(3, host=OTHER)
    core = back({UID: kept}, {UID: [Seen(SECOND, OTHER)]}, claims=[Claim(SECOND, OTHER)])
    core.handle(ClaimsSeen(3.0, {}))  # it does not answer: it comes back later than we do
    for second in range(4, int(RETURN_S)):
        assert not find(core, second)
    assert UID in [uid for k in range(20) for uid in find(core, RETURN_S + 1 + k)]


def test_who_has_taken_an_expert_over_is_remembered_before_the_directory_says_so() -> None:
    core = back({UID: offer(3)})
    find(core)
    (adopt,) = found(core, (ME, offer(3)))
    assert isinstance(adopt, Adopt)
    core.handle(Hosted(1.0, UID, adopt.epoch))
    core.handle(DrainWanted(2.0))
    successor = next_epoch(adopt.epoch, RNG)
    before = core.sightings
    core.handle(HandedOver(3.0, UID, adopt.epoch, True, successor))
    assert core.seen(UID)[-1] == Seen(successor, OTHER)
    assert core.sightings > before


def test_an_absurd_epoch_of_a_successor_is_not_remembered() -> None:
    core = back({UID: offer(3)})
    find(core)
    (adopt,) = found(core, (ME, offer(3)))
    assert isinstance(adopt, Adopt)
    core.handle(Hosted(1.0, UID, adopt.epoch))
    core.handle(DrainWanted(2.0))
    core.handle(HandedOver(3.0, UID, adopt.epoch, True, (1 << 53) - 1))
    assert core.seen(UID)[-1] == Seen(adopt.epoch, ME)


def test_who_adopted_it_meanwhile_takes_it_back_from_a_former_host_who_could_not_know() -> None:
    for _ in range(50):
        late = next_epoch(FIRST, RNG, taken_back=True)
        adopted = next_epoch(FIRST, RNG)
        core = back(
            {UID: offer(9, epoch=adopted)}, {UID: [Seen(adopted, ME)]}, claims=[Claim(late, OTHER)]
        )
        assert find(core) == [UID]
        late_again = back(
            {UID: offer(3, epoch=FIRST)}, {UID: [Seen(FIRST, ME)]}, claims=[Claim(adopted, OTHER)]
        )
        assert not find(late_again)
