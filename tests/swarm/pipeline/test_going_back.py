"""What a member does with those who come back from the disk, and with a lead that says to go back."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import trio
import trio.testing

from protocols.ids import PeerID
from protocols.ledger.events import LedgerSettings
from protocols.ledger.outlived import LOST_SILENCES
from protocols.ledger.restart_messages import Back, Claim, GoBack, Running, decode_restart_untrusted
from protocols.ledger.view import Member, Record
from swarm.pipeline.going_back import GoingBack

pytestmark = pytest.mark.trio

A, B, C, D = (PeerID(bytes([0, 1, letter])) for letter in b"abcd")
MEMBERS = tuple(Member(peer, 1, k % 2, 0) for k, peer in enumerate((A, B, C, D)))
RECORD = Record(index=9, step=4, lead=A, members=MEMBERS)


class Node:
    """Member C of the run, and what it casts."""

    def __init__(self) -> None:
        self.settings = LedgerSettings(stages=2, microbatches=4, steps=100, silence_s=1.0)
        self.draining = False
        self.lost: list[int] = []
        self.ledger: Any = SimpleNamespace(
            record=RECORD, member=MEMBERS[2], lead_peer=A, lead=None, lacks_majority=False
        )
        self.told: list[tuple[PeerID, Any]] = []
        caller: Any = SimpleNamespace(
            cast_nowait=lambda peer, service, data: self.told.append(
                (peer, decode_restart_untrusted(data))
            )
        )
        self.going_back = GoingBack(self, caller)

    def hear(self, peer: PeerID, message: Any) -> None:
        self.going_back.heard(peer, message, RECORD)

    @property
    def due(self) -> bool:
        return self.going_back.due.is_set()

    def lead_now(self) -> None:
        self.ledger.lead = SimpleNamespace(lost_stages=lambda: self.lost)


def back(*stages: int) -> Back:
    claims = tuple(Claim(stage, 4, 0, b"l" * 32, b"r" * 32) for stage in stages)
    return Back(incarnation=2, newest=RECORD, claims=claims)


def test_who_is_back_hears_that_the_run_goes_on_unless_it_does_not() -> None:
    node = Node()
    node.hear(D, back())
    assert node.told == [(D, Running(RECORD))]
    node.ledger.lacks_majority = True
    node.hear(D, back())
    assert len(node.told) == 1
    assert not node.due


def test_when_too_few_are_left_to_decide_this_life_ends() -> None:
    node = Node()
    node.hear(B, back())
    assert not node.due
    node.hear(A, back())
    assert node.due


def test_the_leads_word_ends_this_life_and_nobody_elses_nor_an_old_one() -> None:
    node = Node()
    node.hear(B, GoBack(9))
    node.hear(A, GoBack(8))
    assert not node.due
    node.hear(A, GoBack(9))
    assert node.due


def test_who_leaves_does_not_come_back() -> None:
    node = Node()
    node.draining = True
    for peer, message in ((A, GoBack(9)), (A, back()), (B, back()), (D, back())):
        node.hear(peer, message)
    assert not node.due


@pytest.mark.parametrize("lost", [[1], []])
def test_the_lead_has_all_go_back_when_a_stage_stays_lost(lost: list[int]) -> None:
    async def main() -> None:
        node = Node()
        node.lead_now()
        node.lost = lost
        node.hear(D, back(1))
        node.told.clear()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(node.going_back.run)
            await trio.sleep(LOST_SILENCES - 1)
            assert node.told == []
            await trio.sleep(5)
            assert node.told == ([(peer, GoBack(9)) for peer in (A, B, D)] if lost else [])
            assert node.due == bool(lost)
            nursery.cancel_scope.cancel()

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
