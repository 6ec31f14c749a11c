"""Clock skew: the median over peers, so that no single one decides it."""

from __future__ import annotations

import pytest

from node.clock import PEERS_MAX, ClockSkew
from tests.fakes.signer import SeededSigner

PEERS = [SeededSigner(seed).peer_id for seed in range(PEERS_MAX + 3)]


def observe(skew: ClockSkew, index: int, offset_s: float) -> None:
    skew.observe(
        PEERS[index], sent_unix_s=100.0, answered_unix_s=102.0, their_unix_s=101.0 + offset_s
    )


def test_before_anybody_answered_nothing_is_claimed() -> None:
    assert ClockSkew().seconds is None
    assert ClockSkew().problem is None


def test_half_the_round_trip_is_taken_off() -> None:
    skew = ClockSkew()
    observe(skew, 0, 0.0)
    assert skew.seconds == pytest.approx(0)


def test_one_peer_that_lies_does_not_decide() -> None:
    skew = ClockSkew()
    for index, offset_s in enumerate((0.1, 0.2, 3600.0)):
        observe(skew, index, offset_s)
    assert skew.seconds == pytest.approx(0.2)
    assert skew.problem is None


def test_a_clock_that_is_off_is_a_problem_with_its_direction() -> None:
    skew = ClockSkew()
    observe(skew, 0, 2.5)
    assert skew.problem is not None
    assert "2.5 s behind" in skew.problem
    observe(skew, 0, -2.5)
    assert skew.problem is not None
    assert "2.5 s ahead of" in skew.problem


def test_only_the_latest_peers_count() -> None:
    skew = ClockSkew()
    for index in range(len(PEERS)):
        observe(skew, index, float(index))
    assert skew.seconds == pytest.approx(3 + (PEERS_MAX - 1) / 2)
