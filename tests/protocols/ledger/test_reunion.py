"""Two histories of one run meet: which one ends, whom that is believed of, and what is of a history at all."""

from __future__ import annotations

import dataclasses
import random

import pytest

from protocols.core import Tick
from protocols.ids import PeerID
from protocols.ledger.epoch import begun_alone, history_of, shown
from protocols.ledger.events import LedgerSettings
from protocols.ledger.restart import Disk, Heard, Join, Phase, Restart, Tell
from protocols.ledger.restart_messages import (
    Back,
    Claim,
    Decided,
    Running,
    decode_restart_untrusted,
    encode_restart,
)
from protocols.ledger.reunion import CALL_SILENCES, Ask, Call, GiveWay, Reunion, gives_way
from protocols.ledger.view import (
    BEGAN_MAX,
    FORK_ABSENT_MAX,
    Beginning,
    Fork,
    Member,
    Record,
    began_with,
    is_of_history,
    is_overtaken,
    shape_problem,
)
from tests.protocols.ledger.swarm import peer_ids

IDS = peer_ids(6)
STRANGER = IDS[5]
LEFT, RIGHT = begun_alone(0, random.Random(1)), begun_alone(0, random.Random(2))
"""What two operators begin who do not know of each other."""


def record(epoch: int, step: int, *numbers: int, forks: tuple[Fork, ...] = ()) -> Record:
    members = tuple(Member(IDS[k], 7, k % 2, 0) for k in numbers)
    return Record(
        index=9, epoch=epoch, forks=forks, step=step, lead=members[0].peer, members=members
    )


def fork(epoch: int, *absent: int, after: int = 0, step: int = 100) -> Fork:
    return Fork(epoch=epoch, after=after, step=step, absent=tuple(IDS[k] for k in absent))


def left(step: int) -> Record:
    return record(LEFT, step, 0, 1, forks=(fork(LEFT, 2, 3),))


def right(step: int) -> Record:
    return record(RIGHT, step, 2, 3, forks=(fork(RIGHT, 0, 1),))


def reunion() -> Reunion:
    return Reunion(IDS[0], 1.0, 2, now_s=0.0)


# --- which one stays ---


def test_the_shorter_history_gives_way_and_the_longer_does_not() -> None:
    assert gives_way(left(120), right(121), speaker=IDS[2])
    assert not gives_way(right(121), left(120), speaker=IDS[0])


def test_of_two_that_are_as_long_the_nonce_decides() -> None:
    assert gives_way(left(120), right(120), speaker=IDS[2]) == (LEFT < RIGHT)
    assert gives_way(right(120), left(120), speaker=IDS[0]) == (RIGHT < LEFT)


def test_what_members_have_agreed_on_never_gives_way_and_the_word_always_does() -> None:
    agreed = record(1, 101, 2, 3)
    assert gives_way(left(900), agreed, speaker=IDS[2])
    assert not gives_way(agreed, left(900), speaker=IDS[0])


def test_a_run_of_which_no_operator_said_anything_gives_way_to_nothing() -> None:
    ours = record(0, 5, 0, 1)
    for theirs in (left(900), right(900), record(3, 900, 2, 3)):
        assert not gives_way(ours, theirs, speaker=IDS[2])


def test_histories_that_have_agreed_since_are_compared_as_well() -> None:
    later = dataclasses.replace(right(300), epoch=RIGHT + 4)
    assert gives_way(left(200), later, speaker=IDS[2])
    assert not gives_way(later, left(200), speaker=IDS[0])


def test_a_later_epoch_of_the_same_history_is_no_other_history() -> None:
    later = dataclasses.replace(left(500), epoch=LEFT + 1)
    assert not gives_way(left(200), later, speaker=IDS[0])


# --- who is believed ---


def test_a_stranger_and_a_member_of_our_own_run_are_not_believed() -> None:
    liars = (STRANGER, IDS[1])
    for liar in liars:
        member = Member(liar, 1, 0, 0)
        theirs = dataclasses.replace(right(10**6), members=(member,), lead=liar)
        told = reunion().told(0.0, left(120), liar, theirs, majority=True)
        assert told in ([], [Call(liar)])  # at most it is told of ours, as everybody is who asks


def test_who_is_no_member_of_the_run_it_tells_of_is_not_believed() -> None:
    theirs = record(RIGHT, 10**6, 3, forks=(fork(RIGHT, 0, 1),))
    assert reunion().told(0.0, left(120), IDS[2], theirs, majority=True) == []


def test_a_record_that_cannot_be_one_of_this_run_is_not_believed() -> None:
    theirs = dataclasses.replace(right(10**6), epoch=LEFT)
    assert "another history" in (shape_problem(theirs, stages=2) or "")
    assert reunion().told(0.0, left(120), IDS[2], theirs, majority=True) == []


def test_who_is_believed_is_followed() -> None:
    assert reunion().told(0.0, left(120), IDS[2], right(121), majority=True) == [
        GiveWay(right(121))
    ]


def test_a_run_without_a_majority_follows_those_that_it_knew_only() -> None:
    ours = record(0, 900, 0, 1, 2)
    theirs = record(1, 100, 1, 2)
    assert reunion().told(0.0, ours, IDS[1], theirs, majority=False) == [GiveWay(theirs)]
    unknown = record(1, 100, 4)
    assert reunion().told(0.0, ours, IDS[4], unknown, majority=False) == []
    assert reunion().told(0.0, ours, IDS[1], ours, majority=False) == []


# --- how they meet ---


def test_a_history_calls_those_that_it_began_without_now_and_then() -> None:
    core = reunion()
    assert core.tick(0.0, left(120), majority=True) == [Call(IDS[2]), Call(IDS[3])]
    assert core.tick(CALL_SILENCES - 0.1, left(120), majority=True) == []
    assert core.tick(CALL_SILENCES, left(120), majority=True) == [Call(IDS[2]), Call(IDS[3])]


def test_who_has_come_in_is_not_called_and_an_ordinary_run_calls_nobody() -> None:
    ours = dataclasses.replace(left(120), members=record(0, 0, 0, 1, 2).members)
    assert reunion().tick(0.0, ours, majority=True) == [Call(IDS[3])]
    assert reunion().tick(0.0, record(4, 120, 0, 1), majority=True) == []


def test_a_run_without_a_majority_asks_all_that_it_knew() -> None:
    asked = reunion().tick(0.0, left(120), majority=False)
    assert asked == [Ask(IDS[1]), Ask(IDS[2]), Ask(IDS[3])]


def test_the_longer_one_tells_the_shorter_but_not_without_end() -> None:
    core = reunion()
    assert core.told(0.0, left(120), IDS[2], right(90), majority=True) == [Call(IDS[2])]
    assert core.told(0.1, left(120), IDS[2], right(91), majority=True) == []
    assert core.told(0.1, left(120), IDS[3], right(91), majority=True) == [Call(IDS[3])]
    assert core.told(0.5, left(120), IDS[2], right(92), majority=True) == [Call(IDS[2])]


# --- what is of a history ---


def test_only_what_was_done_before_a_word_is_of_the_history_that_it_begins() -> None:
    newest = record(LEFT + 1, 130, 0, 1, forks=(fork(LEFT, after=2, step=100),))
    assert is_of_history(newest, LEFT, 120)
    assert is_of_history(newest, 2, 100)
    assert not is_of_history(newest, 2, 101)
    assert not is_of_history(newest, 3, 90)  # the others agreed on that one, elsewhere
    assert not is_of_history(newest, RIGHT, 90)
    assert not is_of_history(newest, RIGHT + 1, 90)


def test_a_history_goes_through_several_words() -> None:
    again = begun_alone(LEFT + 1, random.Random(3))
    forks = (fork(LEFT, after=0, step=100), fork(again, after=LEFT + 1, step=150))
    newest = record(again, 160, 0, 1, forks=forks)
    assert shape_problem(newest, stages=2) is None
    assert is_of_history(newest, LEFT, 150)
    assert is_of_history(newest, 0, 100)
    assert not is_of_history(newest, LEFT + 2, 150)
    assert not is_of_history(newest, 0, 101)


def test_a_step_is_overtaken_by_any_later_epoch_that_began_before_it() -> None:
    began: tuple[Beginning, ...] = ()
    newest = record(0, 10, 0, 1)
    for epoch, step in ((1, 6), (2, 12), (3, 9)):
        newest = dataclasses.replace(newest, epoch=epoch, began=began_with(newest, epoch, step))
        began = newest.began
    assert began == (Beginning(1, 6), Beginning(3, 9)), "the second is replaced by the third"
    assert is_overtaken(newest, 0, 7)
    assert not is_overtaken(newest, 0, 6)
    assert is_overtaken(newest, 2, 10)
    assert not is_overtaken(newest, 1, 9)
    assert not is_overtaken(newest, 3, 400)


def test_what_is_older_than_the_beginnings_that_are_kept_counts_as_overtaken() -> None:
    newest = record(0, 0, 0, 1)
    for epoch in range(1, BEGAN_MAX + 2):
        newest = dataclasses.replace(newest, epoch=epoch, began=began_with(newest, epoch, epoch))
    assert len(newest.began) == BEGAN_MAX
    assert is_overtaken(newest, 1, 0)
    assert not is_overtaken(newest, 2, 2)


@pytest.mark.parametrize(
    ("epoch", "forks"),
    [
        (LEFT, ()),
        (1, (fork(LEFT),)),
        (RIGHT, (fork(LEFT),)),
        (RIGHT, (fork(max(LEFT, RIGHT)), fork(min(LEFT, RIGHT)))),
        (LEFT, (fork(LEFT, after=LEFT),)),
    ],
)
def test_a_record_says_by_which_words_its_epoch_came(epoch: int, forks: tuple[Fork, ...]) -> None:
    assert shape_problem(record(epoch, 100, 0, 1, forks=forks), stages=2) is not None


def test_an_epoch_is_shown_as_a_person_can_read_it() -> None:
    assert shown(3) == "3"
    assert shown(LEFT + 2) == f"2 of history 1-{LEFT >> 20 & (1 << 30) - 1:08x}"
    assert history_of(LEFT + 2) == history_of(LEFT) != history_of(RIGHT)
    assert begun_alone(LEFT + 2, random.Random(4)) > LEFT + 2


# --- a node that is back from its disk ---

SETTINGS = LedgerSettings(stages=2, microbatches=4, steps=10**6, silence_s=1.0)


def back(newest: Record, *claims: Claim, new_epoch: bool = False, gives: bool = False) -> Restart:
    disk = Disk(newest=newest, claims=claims)
    return Restart(
        IDS[0], 8, SETTINGS, disk, random.Random(5), now_s=0.0, new_epoch=new_epoch, gives_way=gives
    )


def test_an_operators_word_begins_an_epoch_with_a_nonce_and_names_who_was_not_there() -> None:
    settings = dataclasses.replace(SETTINGS, stages=1)
    held = Claim(0, 90, 0, bytes(32), bytes(32))
    disk = Disk(newest=record(0, 95, 0, 1, 2), claims=(held,), before=(IDS[4],))
    begun = []
    for seed in (1, 2):
        core = Restart(IDS[0], 8, settings, disk, random.Random(seed), now_s=0.0, new_epoch=True)
        told = [e for k in range(40) for e in core.handle(Tick(k / 4)) if isinstance(e, Tell)]
        begun += [tell.message.record for tell in told[-1:] if isinstance(tell.message, Decided)]
    a, b = begun
    assert a.epoch != b.epoch
    assert (a.forks[0].after, a.forks[0].step) == (0, 90)
    assert a.forks[0].absent == tuple(sorted((IDS[1], IDS[2], IDS[4])))
    assert shape_problem(a, stages=1) is None


def test_a_node_that_waits_in_a_shorter_history_joins_the_longer_one_that_runs() -> None:
    core = back(left(120))
    assert core.handle(Heard(0.0, IDS[2], Running(right(119)))) == []
    assert core.handle(Heard(0.0, STRANGER, Running(right(900)))) == []
    assert core.handle(Heard(0.0, IDS[2], Running(right(121)))) == [Join(True)]


def test_who_has_given_way_and_is_not_let_in_comes_back_from_its_disk() -> None:
    core = back(left(120), gives=True)
    assert core.phase is Phase.JOINING
    assert Join(False) in [effect for k in range(30) for effect in core.handle(Tick(float(k)))]
    assert core.phase.name == "WAITING"


def test_checkpoints_of_another_history_never_count() -> None:
    own = Claim(0, 110, LEFT, bytes(32), bytes(32))
    other = Claim(1, 110, RIGHT, bytes(32), bytes(32))
    core = back(left(120), own)
    core.handle(Heard(0.0, IDS[1], Back(8, left(120), (other,))))
    core.handle(Tick(1.0))
    assert "of step 110 nobody who is back has stages [1]" in core.waiting_because


def test_a_fork_on_the_wire_names_a_bounded_number_of_peers() -> None:
    many = peer_ids(FORK_ABSENT_MAX + 1)
    wrong = dataclasses.replace(fork(RIGHT), absent=tuple(sorted(many)))
    data = encode_restart(Running(record(RIGHT, 9, 2, 3, forks=(wrong,))))
    with pytest.raises(Exception, match="must have 0 to 16 items"):
        decode_restart_untrusted(data)


def test_a_peer_is_told_by_its_identity_not_by_what_it_says() -> None:
    """The same record counts from who is in it and was there, and not from another."""
    ours, theirs = left(120), right(121)
    followed: list[PeerID] = [
        peer
        for peer in IDS
        if GiveWay(theirs) in reunion().told(0.0, ours, peer, theirs, majority=True)
    ]
    assert followed == [IDS[2], IDS[3]]
