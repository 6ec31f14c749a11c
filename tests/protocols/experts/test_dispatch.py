from __future__ import annotations

import math
import random
from collections import Counter

from protocols.experts.dispatch import AVOIDED_FIRST_S, AVOIDED_MAX_S, Dispatch, absurd
from protocols.experts.view import Claim
from protocols.ids import PeerID

A, B = PeerID(b"aa"), PeerID(b"bb")


def test_a_deadline_follows_what_answers_took_within_its_bounds() -> None:
    dispatch = Dispatch(floor_s=0.1, ceiling_s=10.0)
    assert dispatch.deadline_s(A, "forward") == 10.0, "nothing is known yet"
    for _ in range(50):
        dispatch.answered(A, "forward", 0.2)
    assert 0.2 < dispatch.deadline_s(A, "forward") < 0.4
    assert dispatch.deadline_s(A, "forward") < dispatch.deadline_s(B, "forward") < 10.0
    assert dispatch.deadline_s(A, "backward") == 10.0, "another kind of call takes another time"
    for _ in range(50):
        dispatch.answered(A, "forward", 0.001)
    assert dispatch.deadline_s(A, "forward") == 0.1


def test_a_peer_that_fails_is_left_alone_for_longer_each_time_and_one_answer_clears_it() -> None:
    dispatch = Dispatch(floor_s=0.1, ceiling_s=10.0)
    claims = [Claim(1, A), Claim(1, B)]
    now_s, pauses = 0.0, []
    for _ in range(12):
        dispatch.failed(A, now_s)
        assert dispatch.usable(claims, now_s) == [Claim(1, B)]
        until_s = now_s
        while dispatch.avoided(A, until_s):
            until_s += 0.25
        pauses.append(until_s - now_s)
        now_s = until_s
    assert pauses[0] == AVOIDED_FIRST_S
    assert pauses[1] == 2 * AVOIDED_FIRST_S
    assert pauses[-1] == AVOIDED_MAX_S
    dispatch.failed(A, now_s)
    dispatch.answered(A, "forward", 0.1)
    assert not dispatch.avoided(A, now_s)


def test_calls_that_fail_together_count_once_and_a_wrong_answer_counts_more_than_a_late_one() -> (
    None
):
    late, wrong = Dispatch(floor_s=0.1, ceiling_s=1.0), Dispatch(floor_s=0.1, ceiling_s=1.0)
    for _ in range(8):
        late.failed(A, 0.0)
    wrong.failed(A, 0.0, wrong=True)
    assert not late.avoided(A, AVOIDED_FIRST_S)
    assert wrong.avoided(A, AVOIDED_FIRST_S)
    assert wrong.standings(0.0)[A].wrong == 1


def test_a_second_host_is_asked_only_where_there_is_one_and_the_first_is_later_than_usual() -> None:
    dispatch = Dispatch(floor_s=0.1, ceiling_s=10.0)
    both = [Claim(1, A), Claim(1, B)]
    assert dispatch.hedge_after_s(both, "forward") is None
    for _ in range(30):
        dispatch.answered(A, "forward", 0.2)
    after_s = dispatch.hedge_after_s(both, "forward")
    assert after_s is not None
    assert 0.2 <= after_s < dispatch.deadline_s(A, "forward")
    assert dispatch.hedge_after_s(both[:1], "forward") is None


def test_outputs_far_larger_than_the_others_are_absurd() -> None:
    assert absurd([1.0, 2.0, 1e6], 1.0) == [2]
    assert absurd([1.0, 1e6], 1.0) == [1]
    assert absurd([1e6], 1.0) == [0]
    assert absurd([1.0, math.nan], 1.0) == [1]
    assert absurd([0.0, 0.0], 1.0) == []
    assert absurd([50.0, 0.001], 1.0) == []
    assert absurd([], 1.0) == []


def test_percentiles_are_of_the_latest_answers() -> None:
    dispatch = Dispatch(floor_s=0.1, ceiling_s=10.0)
    assert dispatch.percentiles_s() is None
    for took_s in range(1, 101):
        dispatch.answered(A, "forward", float(took_s))
    found = dispatch.percentiles_s()
    assert found is not None
    assert 50 <= found[0] <= 51
    assert 95 <= found[1] <= 96


def test_calls_are_shared_among_an_experts_hosts_by_how_fast_they_answer() -> None:
    dispatch, rng = Dispatch(floor_s=0.1, ceiling_s=9.0), random.Random(1)
    fast, slow = Claim(1, PeerID(b"fast")), Claim(1, PeerID(b"slow"))
    assert dispatch.spread([slow], "f/1", rng) == [slow]
    for _ in range(20):
        dispatch.answered(fast.peer, "f/1", 0.1)
        dispatch.answered(slow.peer, "f/1", 0.4)
    first = Counter(dispatch.spread([slow, fast], "f/1", rng)[0] for _ in range(2000))
    assert 0.75 < first[fast] / 2000 < 0.85, "four times as fast, so asked four times as often"
    mine = [dispatch.spread([fast, slow], "f/1", rng, me=slow.peer)[0] for _ in range(50)]
    assert set(mine) == {slow}, "what is here costs no call"
