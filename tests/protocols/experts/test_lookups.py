from __future__ import annotations

import random

from protocols.experts.announcements import Announcements
from protocols.experts.epoch import CHANGES_MAX, next_epoch, plausible
from protocols.experts.lookups import AGAIN_S, LATE_S, LOOKS_AT_ONCE, TOLD_S, LookUps
from protocols.experts.messages import Stated
from protocols.experts.search import BeamSearch, Found, LookUp
from protocols.experts.uid import ExpertUID, Grid, Prefix
from protocols.experts.view import UNUSED_S, Claim, HostStatement, PrefixView
from protocols.ids import PeerID

GRID = Grid("f", (40, 4))
PREFIXES = list(GRID.prefixes())
RNG = random.Random(1)
HOST, LIAR = PeerID(b"host"), PeerID(b"liar")


def test_what_a_search_waits_for_comes_before_what_is_due_and_few_are_under_way_at_once() -> None:
    view = PrefixView(fresh_s=2.0)
    looks = LookUps(view)
    view.want(PREFIXES)
    looks.hurry([PREFIXES[30], PREFIXES[30]], 0.0)
    begun = looks.begin(0.0)
    assert begun[0] == PREFIXES[30]
    assert len(begun) == LOOKS_AT_ONCE == len(set(begun))
    assert looks.begin(0.0) == []
    looks.ended(begun[1], [], asked_s=0.0, now_s=0.0)
    assert looks.begin(0.0) == [PREFIXES[15]]


def test_a_look_that_is_late_holds_up_no_other_and_its_answer_does_not_overtake() -> None:
    view, prefix, uid = PrefixView(fresh_s=2.0), PREFIXES[0], ExpertUID("f", (0, 1))
    looks = LookUps(view)
    view.want([prefix])
    assert looks.begin(0.0) == [prefix]
    assert looks.begin(LATE_S - 0.1) == []
    assert looks.begin(LATE_S) == [prefix]
    looks.ended(prefix, [], asked_s=0.0, now_s=LATE_S)
    looks.ended(prefix, [statement(HOST, 1)], asked_s=LATE_S, now_s=LATE_S)
    looks.ended(prefix, [], asked_s=1.0, now_s=LATE_S)
    assert view.hosts(uid, LATE_S) == [Claim(1, HOST)]


def test_late_answers_of_earlier_looks_do_not_hurry_the_next_after_one_that_failed() -> None:
    view, prefix = PrefixView(fresh_s=2.0), PREFIXES[0]
    looks = LookUps(view)
    view.want([prefix])
    for now_s in (0.0, LATE_S, 2 * LATE_S):
        assert looks.begin(now_s) == [prefix]
    looks.ended(prefix, None, asked_s=2 * LATE_S, now_s=11.0)
    assert looks.begin(11.0) == [prefix]
    looks.ended(prefix, None, asked_s=11.0, now_s=11.1)
    looks.ended(prefix, None, asked_s=LATE_S, now_s=11.1)
    assert looks.begin(11.1) == [], "the latest look has failed only now"
    looks.ended(prefix, [], asked_s=0.0, now_s=11.2)
    assert looks.begin(11.2) == []
    assert looks.begin(11.0 + AGAIN_S) == [prefix]


def test_the_first_answer_counts_for_searches_while_nothing_else_is_known_and_for_nothing_else() -> (
    None
):
    grid = Grid("f", (1, 4))
    view, prefix = PrefixView(fresh_s=2.0), Prefix("f", (0,))
    looks = LookUps(view)
    wanted = BeamSearch(grid, [[0.0], [0.0] * 4], beam=2, until_s=9.0)
    assert wanted.proceed(view, 0.0) == LookUp((prefix,))
    looks.hurry([prefix], 0.0)
    assert looks.begin(0.0) == [prefix]
    looks.began_to_answer(prefix, [statement(LIAR, 7)], asked_s=0.0)
    assert wanted.proceed(view, 0.1) == Found((ExpertUID("f", (0, 1)),), 1)
    assert not view.complete([grid]), "others may hold more: nobody may take an expert for lost"
    assert looks.begin(0.1) == [], "the look is still under way"
    looks.ended(prefix, [statement(HOST, 1)], asked_s=0.0, now_s=0.5)
    assert view.complete([grid])
    looks.began_to_answer(prefix, [statement(LIAR, 9)], asked_s=1.0)
    assert view.hosts(ExpertUID("f", (0, 1)), 1.0) == [Claim(1, HOST)]


def test_a_failed_look_is_made_again_after_a_pause() -> None:
    view = PrefixView(fresh_s=2.0)
    looks = LookUps(view)
    view.want(PREFIXES[:1])
    assert looks.begin(0.0) == PREFIXES[:1]
    looks.ended(PREFIXES[0], None, asked_s=0.0, now_s=0.1)
    assert looks.begin(0.1) == []
    assert looks.begin(0.5) == PREFIXES[:1]


def test_what_is_known_is_told_though_some_look_is_always_under_way() -> None:
    looks = LookUps(PrefixView(fresh_s=2.0))
    looks.hurry(PREFIXES[:4], 0.0)
    a, b, c, d = looks.begin(0.0)
    assert looks.ended(a, [], asked_s=0.0, now_s=0.1)
    assert not looks.ended(b, [], asked_s=0.0, now_s=TOLD_S)
    assert looks.ended(c, [], asked_s=0.0, now_s=0.1 + TOLD_S)
    assert looks.ended(d, [], asked_s=0.0, now_s=0.2 + TOLD_S), "none is under way any more"


def test_a_prefix_that_no_search_wants_any_more_is_forgotten() -> None:
    view = PrefixView(fresh_s=2.0)
    view.use(PREFIXES[0], 0.0)
    view.learn(PREFIXES[0], [], asked_s=0.0)
    assert view.due(UNUSED_S) == PREFIXES[:1]
    assert view.due(UNUSED_S + 1) == []
    assert view.children(PREFIXES[0], UNUSED_S + 1) is None


def test_an_answer_that_was_overtaken_changes_nothing() -> None:
    view, prefix, uid = PrefixView(fresh_s=2.0), PREFIXES[0], ExpertUID("f", (0, 1))
    view.learn(prefix, [statement(HOST, 1)], asked_s=2.0)
    view.learn(prefix, [], asked_s=1.0)
    assert view.hosts(uid, 3.0) == [Claim(1, HOST)]


def statement(peer: PeerID, epoch: int) -> HostStatement:
    return HostStatement(peer, (Stated(1, epoch),), 100.0, 0.0)


def test_an_epoch_that_no_expert_can_come_to_does_not_count() -> None:
    view, uid, first = PrefixView(fresh_s=2.0), ExpertUID("f", (0, 1)), next_epoch(0, RNG)
    view.learn(PREFIXES[0], [statement(HOST, first), statement(LIAR, (1 << 53) - 1)], asked_s=1.0)
    assert view.claims(uid, 1.0) == [Claim(first, HOST)]


def test_epochs_grow_are_never_alike_and_stay_plausible() -> None:
    epoch = 0
    for _ in range(5):
        assert epoch < (epoch := next_epoch(epoch, RNG))
    last = (CHANGES_MAX << 32) + 1
    assert plausible(next_epoch(last, RNG))
    assert not plausible((CHANGES_MAX + 1) << 32)
    assert next_epoch(3, RNG) != next_epoch(3, RNG)


def test_only_what_changed_is_written_and_records_of_an_earlier_life_are_withdrawn() -> None:
    announcements, uid = Announcements(), ExpertUID("f", (0, 1))
    announcements.announce({uid: 3})
    ((prefix, value),) = announcements.changes()
    assert prefix == Prefix("f", (0,))
    assert value is not None
    announcements.wrote(prefix, value)
    assert announcements.changes() == []
    assert not announcements.found(prefix)
    assert announcements.found(PREFIXES[7])
    assert announcements.changes() == [(PREFIXES[7], None)]
    announcements.announce({})
    assert {prefix for prefix, _ in announcements.changes()} == {prefix, PREFIXES[7]}


def test_replicas_are_asked_beside_the_host_and_instead_of_it_when_it_answers_no_more() -> None:
    grid, uid = Grid("f", (1, 4)), ExpertUID("f", (0, 1))
    view, prefix, replica = PrefixView(fresh_s=2.0), Prefix("f", (0,)), PeerID(b"replica")
    named = HostStatement(HOST, (Stated(1, 3, (replica,)),), 100.0, 1.0)
    view.learn(prefix, [named], asked_s=1.0)
    assert view.answering(uid, 1.0) == [Claim(3, HOST), Claim(3, replica)]
    assert view.claims(uid, 1.0) == [Claim(3, HOST)], "a replica claims nothing"
    view.doubt(HOST)
    assert view.claims(uid, 1.0) == []
    assert view.answering(uid, 1.0) == [Claim(3, replica)]
    assert view.alive(grid, 1.0) == [uid]
    adopted = HostStatement(LIAR, (Stated(1, 4),), 100.0, 2.0)
    view.learn(prefix, [named, adopted], asked_s=2.0)
    assert view.answering(uid, 2.0) == [Claim(4, LIAR)], "the replica's epoch is over"
    view.learn(prefix, [named], asked_s=3.0)
    assert view.answering(uid, 100.0) == [], "nor for longer than the host's record lives"


def test_the_replicas_of_our_own_experts_are_known_without_the_directory() -> None:
    uid, replica = ExpertUID("f", (0, 1)), PeerID(b"replica")
    view = PrefixView(fresh_s=2.0)
    view.own(HOST, {uid: 3}, {uid: (replica,)})
    assert view.answering(uid, 1.0) == [Claim(3, HOST), Claim(3, replica)]
