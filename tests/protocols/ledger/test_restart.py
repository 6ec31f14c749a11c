"""A run that lost all its members goes on: once, on the newest whole step, in any order of return."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import random
from collections import deque

import pytest

from protocols.core import Tick
from protocols.ids import PeerID
from protocols.ledger.events import LedgerSettings
from protocols.ledger.restart import (
    Begin,
    Disk,
    Effect,
    Heard,
    Join,
    NoteEpoch,
    Phase,
    Restart,
    Tell,
    Vote,
    VoteWritten,
    WriteVote,
)
from protocols.ledger.restart_messages import (
    Back,
    Claim,
    Decided,
    GoBack,
    RestartAccepted,
    RestartMessage,
    RestartPromise,
    Running,
    decode_restart_untrusted,
    encode_restart,
)
from protocols.ledger.view import Ballot, Beginning, Member, Record
from tests.protocols.ledger.swarm import peer_ids

SETTINGS = LedgerSettings(stages=2, microbatches=4, steps=1000, silence_s=1.0)
IDS = peer_ids(5)


def digest(*what: object) -> bytes:
    return hashlib.sha256(repr(what).encode()).digest()


def record(step: int = 125, *, members: int = 4, index: int = 130, epoch: int = 0) -> Record:
    """The record with which the run stood still: replicas 0 and 2 of stage 0, 1 and 3 of stage 1."""
    found = tuple(Member(peer, 7, k % 2, 0) for k, peer in enumerate(IDS[:members]))
    return Record(index=index, epoch=epoch, step=step, lead=IDS[0], members=found)


def claim(k: int, step: int, *, epoch: int = 0, lineage: str = "", root: str = "") -> Claim:
    return Claim(k % 2, step, epoch, digest(step, epoch, lineage), digest(step, k % 2, root))


class World:
    """Nodes that come back, on a network that delivers at once, each with a disk that outlives it."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.disks = {
            peer: Disk(newest=record(), claims=(claim(k, 120), claim(k, 100)))
            for k, peer in enumerate(IDS[:4])
        }
        self.cores: dict[PeerID, Restart] = {}
        self.begun: dict[PeerID, Begin] = {}
        self.joining: set[PeerID] = set()
        self.full_disks: set[PeerID] = set()
        self.lost: set[type[RestartMessage]] = set()
        self._lives = itertools.count(100)
        self._mail: deque[tuple[PeerID, PeerID, RestartMessage]] = deque()

    def back(self, *numbers: int, new_epoch: bool = False) -> None:
        for peer in (IDS[k] for k in numbers):
            disk = self.disks[peer]
            if disk.incarnation is None:
                disk = self._waits_as(peer, next(self._lives))
            assert disk.incarnation is not None
            self.cores[peer] = Restart(
                peer, disk.incarnation, SETTINGS, disk, random.Random(1),
                now_s=self.now_s, new_epoch=new_epoch,
            )  # fmt: skip
            self.begun.pop(peer, None)

    def gone(self, *numbers: int) -> None:
        for k in numbers:
            del self.cores[IDS[k]]
            self.begun.pop(IDS[k], None)

    def pass_time(self, seconds: float) -> None:
        until_s = self.now_s + seconds
        while self.now_s < until_s:
            self.now_s += 0.25
            for peer, core in list(self.cores.items()):
                self._do(peer, core.handle(Tick(self.now_s)))
            while self._mail:
                sender, receiver, message = self._mail.popleft()
                self._deliver(sender, receiver, message)

    def _deliver(self, sender: PeerID, receiver: PeerID, message: RestartMessage) -> None:
        core = self.cores.get(receiver)
        if core is None or type(message) in self.lost:
            return
        decoded = decode_restart_untrusted(encode_restart(message))
        assert not isinstance(decoded, GoBack)
        message = decoded
        if receiver in self.begun:
            if isinstance(message, Back):
                self._mail.append((receiver, sender, Running(self.begun[receiver].record)))
        else:
            self._do(receiver, core.handle(Heard(self.now_s, sender, message)))

    def _do(self, peer: PeerID, effects: list[Effect]) -> None:
        for effect in effects:
            match effect:
                case Tell(receiver, message):
                    self._mail.append((peer, receiver, message))
                case WriteVote(vote):
                    ok = peer not in self.full_disks
                    if ok:
                        self.disks[peer] = dataclasses.replace(self.disks[peer], vote=vote)
                    self._do(peer, self.cores[peer].handle(VoteWritten(self.now_s, ok)))
                case NoteEpoch(found):
                    self._note(peer, found)
                case Begin(found, _):
                    self._note(peer, found)
                    self._waits_as(peer, None)
                    self.begun[peer] = effect
                case Join(wanted):
                    (self.joining.add if wanted else self.joining.discard)(peer)

    def _note(self, peer: PeerID, found: Record) -> None:
        self.disks[peer] = dataclasses.replace(self.disks[peer], newest=found)

    def _waits_as(self, peer: PeerID, incarnation: int | None) -> Disk:
        self.disks[peer] = dataclasses.replace(self.disks[peer], incarnation=incarnation)
        return self.disks[peer]

    def the_record(self) -> Record:
        found = {begin.record.digest(): begin.record for begin in self.begun.values()}
        assert len(found) == 1, "two histories"
        return next(iter(found.values()))


@pytest.mark.parametrize("order", list(itertools.permutations(range(4))))
def test_in_any_order_of_return_all_go_on_from_the_newest_whole_step_once(
    order: tuple[int, ...],
) -> None:
    world = World()
    for k in order:
        world.back(k)
        world.pass_time(1.0)
    world.pass_time(10.0)
    agreed = world.the_record()
    assert (agreed.epoch, agreed.step) == (1, 120)
    assert set(world.begun) | world.joining == set(IDS[:4])
    assert agreed.index > 130
    for peer, begin in world.begun.items():
        assert agreed.view.find(peer) is not None
        assert begin.claim.step == 120


def test_a_minority_waits_and_says_for_whom() -> None:
    world = World()
    world.back(1)
    world.pass_time(60.0)
    assert not world.begun
    world.back(3)
    world.pass_time(60.0)
    assert not world.begun  # both of stage 1: no step is complete
    assert "stages [0]" in world.cores[IDS[1]].waiting_because
    world.back(2)
    world.pass_time(20.0)
    assert world.the_record().step == 120


def test_without_a_majority_the_reason_names_the_way_out() -> None:
    world = World()
    world.back(1, 2)
    world.pass_time(30.0)
    assert not world.begun
    assert "--new-epoch" in world.cores[IDS[1]].waiting_because


def all_left(*, let_go: int) -> Record:
    """The last record of a run that its nodes have left in good order, the last of them together."""
    return dataclasses.replace(record(index=131), members=(), let_go=tuple(IDS[:let_go]))


def test_a_run_that_all_have_left_goes_on_when_those_who_left_last_are_back() -> None:
    world = World()
    for peer in IDS[:2]:
        world.disks[peer] = dataclasses.replace(world.disks[peer], newest=all_left(let_go=2))
    world.back(2, 3)  # they left before, when nobody had let go of the run yet
    world.pass_time(5.0)
    world.gone(2, 3)
    world.back(0)
    world.pass_time(20.0)
    assert not world.begun
    world.back(1)
    world.pass_time(20.0)
    assert (world.the_record().epoch, world.the_record().step) == (1, 120)
    assert set(world.begun) == set(IDS[:2])


def test_who_left_alone_goes_on_alone() -> None:
    world = World()
    settings = dataclasses.replace(SETTINGS, stages=1)
    disk = Disk(newest=all_left(let_go=1), claims=(claim(0, 120),))
    core = Restart(IDS[0], 1, settings, disk, random.Random(1), now_s=0.0)
    world.cores[IDS[0]], world.disks[IDS[0]] = core, disk
    world.pass_time(10.0)
    assert world.the_record().step == 120


def test_an_operator_may_go_on_without_a_majority() -> None:
    world = World()
    world.back(2)
    world.back(1, new_epoch=True)
    world.pass_time(20.0)
    assert world.the_record().step == 120
    assert len(world.begun) == 2


def test_a_step_that_one_stage_lacks_is_not_taken() -> None:
    world = World()
    for k in (0, 2):
        world.disks[IDS[k]] = dataclasses.replace(world.disks[IDS[k]], claims=(claim(k, 100),))
    world.back(0, 1, 2, 3)
    world.pass_time(10.0)
    assert world.the_record().step == 100


def test_a_forked_file_is_outvoted_and_its_node_joins() -> None:
    world = World()
    world.disks[IDS[4]] = Disk(newest=record(members=5), claims=(claim(4, 120),))
    for k in range(4):
        world.disks[IDS[k]] = dataclasses.replace(world.disks[IDS[k]], newest=record(members=5))
    world.disks[IDS[2]] = dataclasses.replace(
        world.disks[IDS[2]], claims=(claim(2, 120, root="another"),)
    )
    world.back(0, 1, 2, 3, 4)
    world.pass_time(10.0)
    assert IDS[2] not in world.the_record().view
    assert world.joining == {IDS[2]}


def test_stages_of_two_histories_are_never_put_together() -> None:
    world = World()
    for k in (1, 3):
        world.disks[IDS[k]] = dataclasses.replace(
            world.disks[IDS[k]], claims=(claim(k, 120, lineage="another"), claim(k, 100))
        )
    world.back(0, 1, 2, 3)
    world.pass_time(10.0)
    assert world.the_record().step == 100


def test_what_was_overtaken_by_an_epoch_does_not_count_any_more() -> None:
    world = World()
    newest = dataclasses.replace(record(110, index=5000, epoch=1), began=(Beginning(1, 100),))
    for k in range(4):
        claims = (claim(k, 120), claim(k, 100))
        world.disks[IDS[k]] = Disk(newest=newest, claims=claims)
    world.back(0, 1, 2, 3)
    world.pass_time(10.0)
    assert (world.the_record().epoch, world.the_record().step) == (2, 100)


def test_a_step_from_the_future_is_not_taken() -> None:
    world = World()
    for k in range(4):
        world.disks[IDS[k]] = dataclasses.replace(
            world.disks[IDS[k]], claims=(claim(k, 1001), claim(k, 120))
        )
    world.back(0, 1, 2, 3)
    world.pass_time(10.0)
    assert world.the_record().step == 120


def test_who_cannot_write_its_vote_does_not_vote() -> None:
    world = World()
    world.full_disks = {IDS[0], IDS[1], IDS[2]}
    world.back(0, 1, 2, 3)
    world.pass_time(60.0)
    assert not world.begun
    world.full_disks.clear()
    world.pass_time(60.0)
    assert world.the_record().step == 120


def test_power_lost_again_in_the_middle_of_voting_makes_no_second_history() -> None:
    world = World()
    world.lost = {RestartAccepted, Decided}
    world.back(0, 1, 2, 3)
    world.pass_time(3.0)
    accepted = [disk.vote.accepted for disk in world.disks.values() if disk.vote is not None]
    assert any(accepted)
    world.gone(0, 1, 2, 3)
    world.lost = set()
    world.back(3, 2, 1)
    world.pass_time(40.0)
    # What may have been decided was decided; its members have begun nothing before, so they are still the same.
    assert (world.the_record().epoch, world.the_record().step) == (1, 120)
    assert world.the_record() in accepted


def test_power_lost_again_after_it_began_goes_on_in_the_next_epoch() -> None:
    world = World()
    world.back(0, 1, 2, 3)
    world.pass_time(10.0)
    first = world.the_record()
    world.gone(0, 1, 2, 3)
    world.back(1, 3, 0, 2)
    world.pass_time(20.0)
    again = world.the_record()
    assert (again.epoch, again.step) == (first.epoch + 1, 120)
    assert again.previous == first.digest()


def test_lost_promises_are_asked_for_again() -> None:
    world = World()
    world.lost = {RestartPromise}
    world.back(0, 1, 2, 3)
    world.pass_time(8.0)
    assert not world.begun
    world.lost = set()
    world.pass_time(20.0)
    assert world.the_record().step == 120


def test_a_late_node_with_an_older_step_joins_as_a_newcomer() -> None:
    world = World()
    world.disks[IDS[3]] = dataclasses.replace(world.disks[IDS[3]], claims=(claim(3, 100),))
    world.back(0, 1, 2)
    world.pass_time(10.0)
    agreed = world.the_record()
    world.back(3)
    world.pass_time(5.0)
    assert IDS[3] not in agreed.view
    assert world.joining == {IDS[3]}
    world.pass_time(30.0)
    assert world.cores[IDS[3]].phase in (Phase.WAITING, Phase.JOINING)


def test_a_stranger_is_not_listened_to() -> None:
    world = World()
    world.back(0)
    core = world.cores[IDS[0]]
    mine = dataclasses.replace(record(index=9999), members=(Member(IDS[4], 1, 0, 0),), lead=IDS[4])
    assert core.handle(Heard(0.0, IDS[4], Decided(mine))) == []
    assert core.members.find(IDS[4]) is None


@pytest.mark.parametrize(("epoch", "index"), [(2**63 - 1, 9999), (1, 2**30)])
def test_a_member_cannot_use_up_the_numbers_of_epochs_and_records(epoch: int, index: int) -> None:
    world = World()
    world.back(0, 1, 2)
    core = world.cores[IDS[0]]
    # Its members could agree on what follows, and nobody could read it: not even they, from their own votes.
    last = record(members=2, epoch=epoch, index=index)
    for message in (Decided(last), Back(9, last, ()), Running(last)):
        assert core.handle(Heard(0.0, IDS[3], message)) == []
    world.pass_time(30.0)
    assert world.the_record().epoch == 1
    assert world.begun.keys() == {*IDS[:3]}


def test_a_promise_is_kept_over_a_loss_of_power() -> None:
    world = World()
    vote = Vote(epoch=1, promised=Ballot(9, IDS[3]))
    world.disks[IDS[1]] = dataclasses.replace(world.disks[IDS[1]], vote=vote)
    world.back(0, 1, 2, 3)
    world.pass_time(40.0)
    assert world.the_record().step == 120
    kept = world.disks[IDS[1]].vote
    assert kept is not None
    assert kept.promised >= vote.promised


def test_who_cannot_read_its_vote_does_not_vote_and_goes_on_with_the_others() -> None:
    world = World()
    world.disks[IDS[1]] = dataclasses.replace(world.disks[IDS[1]], may_vote=False)
    world.back(1, 2, 3)
    world.pass_time(20.0)
    assert not world.begun  # two of four can vote, and the smallest is not among them
    world.back(0)
    world.pass_time(20.0)
    assert world.the_record().step == 120
    assert IDS[1] in world.begun
    assert world.disks[IDS[1]].vote is None


def test_who_cannot_read_its_vote_is_no_part_of_a_majority_and_the_reason_says_so() -> None:
    world = World()
    for k in (0, 1):
        world.disks[IDS[k]] = dataclasses.replace(world.disks[IDS[k]], may_vote=False)
    world.back(0, 1, 2)
    world.pass_time(20.0)
    assert not world.begun
    reason = world.cores[IDS[2]].waiting_because
    assert "1 of 4 members are missing, 2 cannot read what they have voted" in reason


def test_who_lost_power_between_its_word_and_the_decision_is_still_who_is_named() -> None:
    """Node 3 is named by the record that is being decided when it goes; nobody else has its stage."""
    world = World()
    world.disks[IDS[1]] = dataclasses.replace(world.disks[IDS[1]], claims=(claim(0, 120),))
    world.lost = {RestartAccepted}
    world.back(0, 1, 2, 3)
    world.pass_time(3.0)
    waited_as = world.cores[IDS[3]]._incarnation
    world.gone(3)
    world.lost = set()
    world.pass_time(20.0)
    agreed = world.the_record()
    member = agreed.view.find(IDS[3])
    assert member is not None
    assert member.incarnation == waited_as
    assert IDS[3] not in world.begun
    world.back(3)
    world.pass_time(5.0)
    assert world.begun[IDS[3]].record == agreed


def test_who_has_begun_is_somebody_else_in_its_next_life() -> None:
    world = World()
    world.back(0, 1, 2, 3)
    world.pass_time(10.0)
    first = world.the_record().view.find(IDS[3])
    assert first is not None
    world.gone(3)
    world.back(3)
    assert world.cores[IDS[3]]._incarnation != first.incarnation
    world.pass_time(5.0)
    assert world.joining == {IDS[3]}


def test_a_late_word_from_an_earlier_life_does_not_replace_a_newer_one() -> None:
    world = World()
    world.back(0, 1, 2)
    world.pass_time(0.5)
    core = world.cores[IDS[0]]
    _, back = core._backs[IDS[2]]
    old = dataclasses.replace(back, incarnation=back.incarnation - 1)
    core.handle(Heard(world.now_s, IDS[2], old))
    assert core._backs[IDS[2]][1] == back


def test_who_joins_waits_again_when_the_one_that_told_it_of_the_run_is_back_from_its_disk() -> None:
    core = Restart(IDS[0], 1, SETTINGS, Disk(newest=record()), random.Random(1), now_s=0.0)
    assert core.handle(Heard(0.0, IDS[1], Running(record(126, index=131)))) == [Join(True)]
    others = Back(incarnation=8, newest=record(), claims=())
    assert core.handle(Heard(0.1, IDS[2], others)) == []
    assert core.handle(Heard(0.2, IDS[1], others)) == [Join(False)]
    assert core.phase is Phase.WAITING
