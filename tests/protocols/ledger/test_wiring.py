"""Which replica gets the next request."""

from __future__ import annotations

import random
from collections import Counter

import pytest

from protocols.ids import PeerID
from protocols.ledger.view import Member, View
from protocols.ledger.wiring import Wiring, neighbours

FAST, SLOW, NEW = (PeerID(name) for name in (b"fast", b"slow", b"new"))
MOST = 32


def wiring(*peers: PeerID) -> Wiring:
    made = Wiring(random.Random(1), most=MOST, floor_s=2.0, ceiling_s=60.0)
    made.update(view(*peers), 0)
    return made


def view(*peers: PeerID, stage: int = 0) -> View:
    return View(Member(peer, 1, stage, 0) for peer in peers)


def run(made: Wiring, seconds: dict[PeerID, float], requests: int) -> Counter[PeerID]:
    """Send requests one after the other, each answered after its replica's time."""
    chosen: Counter[PeerID] = Counter()
    now_s = 0.0
    for _ in range(requests):
        peer = made.choose(now_s, 1.0)
        assert peer is not None
        now_s += seconds[peer]
        made.succeeded(now_s, peer, 1.0, now_s - seconds[peer])
        made.ended(peer)
        chosen[peer] += 1
    return chosen


def test_a_replica_gets_work_in_proportion_to_its_speed() -> None:
    chosen = run(wiring(FAST, SLOW), {FAST: 1.0, SLOW: 3.0}, 400)
    assert chosen[FAST] / chosen[SLOW] == pytest.approx(3.0, rel=0.1)


def test_a_newcomer_is_tried_at_once_and_not_given_everything() -> None:
    made = wiring(FAST, SLOW)
    run(made, {FAST: 1.0, SLOW: 3.0}, 100)
    made.update(view(FAST, SLOW, NEW), 0)
    chosen = run(made, {FAST: 1.0, SLOW: 3.0, NEW: 1.0}, 70)
    assert 20 <= chosen[NEW] <= 40


def test_of_many_replicas_some_are_known_and_those_that_leave_are_replaced() -> None:
    many = [PeerID(b"%03d" % number) for number in range(4 * MOST)]
    made = wiring(*many)
    first = {made.choose(0.0, 1.0) for _ in range(10 * MOST)}
    assert len(first) == MOST
    remaining = [peer for peer in many if peer not in list(first)[: MOST // 2]]
    made.update(view(*remaining), 0)
    second = {made.choose(0.0, 1.0) for _ in range(10 * MOST)}
    assert len(second) == MOST
    assert len(first & second) == MOST // 2


def test_the_more_stages_a_run_has_the_fewer_replicas_of_each_a_trainer_works_with() -> None:
    assert [neighbours(stages) for stages in (1, 8, 32, 512)] == [256, 32, 8, 8]


def test_a_replica_that_moved_to_another_stage_is_not_asked() -> None:
    made = wiring(FAST)
    made.update(view(FAST, stage=1), 0)
    assert made.choose(0.0, 1.0) is None


def test_a_barred_replica_is_left_alone_for_a_while() -> None:
    made = wiring(FAST, SLOW)
    made.bar(0.0, FAST, 1.0)
    assert {made.choose(0.5, 1.0) for _ in range(10)} == {SLOW}
    assert FAST in {made.choose(1.5, 1.0) for _ in range(10)}


def test_a_replica_that_keeps_failing_is_left_alone_longer_up_to_a_bound() -> None:
    made = wiring(FAST)
    waits = []
    for _ in range(6):
        made.bar(0.0, FAST, 0.1)
        waits.append(made.next_able_s())
    assert waits == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.0, 1.0])


def test_nobody_is_chosen_when_all_are_barred() -> None:
    made = wiring(FAST, SLOW)
    made.bar(0.0, FAST, 1.0)
    made.bar(0.0, SLOW, 1.0)
    assert made.choose(0.5, 1.0) is None


def test_a_replica_that_times_out_gets_half_as_much_at_once_and_twice_the_time() -> None:
    made = wiring(FAST)
    run(made, {FAST: 1.0}, 5)
    patience_s = made.deadline_s(FAST)
    for _ in range(8):
        made.choose(10.0, 1.0)
    made.timed_out(FAST)
    assert made.deadline_s(FAST) == pytest.approx(2 * patience_s)
    for _ in range(4):
        made.ended(FAST)
    assert made.choose(10.0, 1.0) is None  # four are still outstanding
    made.ended(FAST)
    assert made.choose(10.0, 1.0) == FAST


def test_an_answer_ends_the_mistrust() -> None:
    made = wiring(FAST)
    run(made, {FAST: 1.0}, 5)
    made.timed_out(FAST)
    run(made, {FAST: 1.0}, 1)
    assert made.deadline_s(FAST) < 60.0


def test_a_deadline_follows_what_is_observed_within_its_bounds() -> None:
    made = wiring(FAST)
    assert made.deadline_s(FAST) == 60.0  # nothing is known yet
    run(made, {FAST: 0.01}, 20)
    assert made.deadline_s(FAST) == 2.0
    run(made, {FAST: 10.0}, 20)
    assert 20.0 <= made.deadline_s(FAST) <= 60.0
    run(made, {FAST: 100.0}, 20)
    assert made.deadline_s(FAST) == 60.0


def test_answers_of_replicas_that_left_change_nothing() -> None:
    made = wiring(FAST)
    for late in (made.ended, made.timed_out):
        late(SLOW)
    made.succeeded(1.0, SLOW, 1.0, 0.0)
    made.bar(1.0, SLOW, 1.0)
    assert made.choose(1.0, 1.0) == FAST
