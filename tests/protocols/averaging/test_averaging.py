"""The core by hand: what a simulated shell never does, and what needs more peers than a simulated run has."""

from __future__ import annotations

import random
from typing import Any

import pytest

from protocols.averaging.averaging import Averaging
from protocols.averaging.events import (
    ExchangeFailed,
    FetchMean,
    MeanReady,
    RoundAborted,
    RoundCancelled,
    RoundFinished,
    RoundWanted,
    StartExchange,
)
from protocols.averaging.messages import (
    Begin,
    Form,
    Have,
    Join,
    Member,
    Noted,
    Prepare,
    Promise,
    Result,
)
from protocols.averaging.settings import AveragingSpec
from protocols.core import Blame, ContactsFound, PeerDown, Received, Send, Tick
from protocols.errors import LocalProtocolError
from protocols.ids import PeerID
from protocols.schema import SchemaError

LAYOUT = b"l" * 32
A, B, C = (PeerID(b"peer-%d" % index) for index in range(3))


class Net:
    """Cores that hear each other at once; whatever else they want is kept."""

    def __init__(self, *peers: PeerID, **settings: Any) -> None:
        self.now_s = 0.0
        spec = AveragingSpec(**settings)
        self.cores = {peer: Averaging(peer, spec, rng=random.Random(peer)) for peer in peers}
        self.done: dict[PeerID, list[Any]] = {peer: [] for peer in peers}
        for peer, core in self.cores.items():
            self.perform(peer, core.start(0.0))
            self.tell(peer, ContactsFound(0.0, peers))

    def tell(self, peer: PeerID, event: Any) -> None:
        self.perform(peer, self.cores[peer].handle(event))

    def perform(self, peer: PeerID, effects: list[Any]) -> None:
        for effect in effects:
            if isinstance(effect, Send):
                if effect.peer in self.cores:
                    self.tell(effect.peer, Received(self.now_s, peer, effect.message))
            else:
                self.done[peer].append(effect)

    def want(self, peer: PeerID, version: int = 1, weight: float = 1.0) -> None:
        self.tell(peer, RoundWanted(self.now_s, "model", version, LAYOUT, weight))

    def wait(self, seconds: float) -> None:
        for _ in range(round(seconds * 10)):
            self.now_s += 0.1
            for peer in list(self.cores):
                self.tell(peer, Tick(self.now_s))

    def last(self, peer: PeerID, kind: type) -> Any:
        return next(effect for effect in reversed(self.done[peer]) if isinstance(effect, kind))

    def deliver(self, peer: PeerID, digest: bytes = b"d") -> None:
        """Finish the exchange that a peer began last."""
        start = self.last(peer, StartExchange)
        digests = (digest * 32,) * len(start.members)
        self.tell(peer, MeanReady(self.now_s, start.round_id, start.exchange, digests))

    def begun(self) -> bytes:
        """Have all want a round, and let it begin."""
        for peer in self.cores:
            self.want(peer)
        self.wait(0.2)
        round_id: bytes = self.last(next(iter(self.cores)), StartExchange).round_id
        return round_id


def test_a_group_begins_as_soon_as_all_are_there_whom_the_directory_names() -> None:
    net = Net(A, B, C)
    net.begun()
    for peer in (A, B, C):
        assert [member.peer for member in net.last(peer, StartExchange).members] == [A, B, C]


def test_it_counts_when_more_than_half_hold_it() -> None:
    net = Net(A, B, C)
    net.begun()
    net.deliver(A)
    assert not [e for e in net.done[A] if isinstance(e, RoundFinished)]
    net.deliver(B)
    assert net.last(A, RoundFinished).members == net.last(B, RoundFinished).members
    net.deliver(C)
    assert net.last(C, RoundFinished).left_out == ()
    assert net.cores[A].accounts["model"].healthy


def test_without_one_member_the_others_exchange_again() -> None:
    net = Net(A, B, C)
    round_id = net.begun()
    del net.cores[B]
    net.tell(A, PeerDown(net.now_s, B))
    net.tell(C, PeerDown(net.now_s, B))
    net.tell(A, ExchangeFailed(net.now_s, round_id, 1, B))
    net.wait(12)
    for peer in (A, C):
        again = net.last(peer, StartExchange)
        assert (again.exchange > 1, [m.peer for m in again.members]) == (True, [A, C])
    net.deliver(A)
    net.deliver(C)
    assert net.last(A, RoundFinished).left_out == (B,)
    assert net.last(A, RoundFinished).exchange == net.last(C, RoundFinished).exchange


def test_who_has_promised_says_have_in_no_earlier_attempt_and_what_it_holds_is_taken_over() -> None:
    net = Net(A, B, C)
    round_id = net.begun()
    others = {peer: net.cores.pop(peer) for peer in (A, C)}
    net.tell(B, Received(net.now_s, A, Prepare(round_id, 2)))
    net.deliver(B)
    net.cores.update(others)
    assert not [e for e in net.done[B] if isinstance(e, RoundFinished)]
    here = net.cores[B]._wants["model"].round
    assert here is not None
    assert here._accepted == 0
    net.tell(A, ExchangeFailed(net.now_s, round_id, 1, C))  # A prepares attempt 2 now
    fetch = net.last(A, FetchMean)
    assert (fetch.exchange, fetch.holders) == (1, (B,))
    assert here._accepted == 2
    net.tell(A, MeanReady(net.now_s, round_id, 1, fetch.digests))
    assert net.last(A, RoundFinished).members == net.last(B, RoundFinished).members


def test_a_member_that_cannot_keep_up_gives_the_round_up_by_itself() -> None:
    net = Net(A, B, C)
    round_id = net.begun()
    net.tell(A, ExchangeFailed(net.now_s, round_id, 1, A))
    assert net.last(A, RoundAborted).reason == "this node is too slow"
    assert net.last(A, RoundAborted).begun


def test_a_version_that_has_begun_is_not_wanted_again() -> None:
    net = Net(A, B)
    net.begun()
    for peer in (A, B):
        net.deliver(peer)
    with pytest.raises(LocalProtocolError):
        net.want(A, 1)
    net.want(A, 2)
    with pytest.raises(LocalProtocolError):
        net.want(A, 3)  # one at a time


def test_a_round_that_was_cancelled_after_it_began_is_not_wanted_again() -> None:
    net = Net(A, B, C)
    net.begun()
    net.tell(A, RoundCancelled(net.now_s, "model"))
    with pytest.raises(LocalProtocolError):
        net.want(A, 1)  # our vector may be in the others' mean
    net.want(A, 2)


def test_a_round_that_was_cancelled_before_may_be_wanted_again() -> None:
    net = Net(A, B)
    net.want(A)
    net.tell(A, RoundCancelled(net.now_s, "model"))
    net.want(A)


@pytest.mark.parametrize("weight", [0.0, -1.0, 1e7, float("nan")])
def test_a_weight_that_is_none_is_ours_to_refuse_or_our_peers_to_be_blamed_for(
    weight: float,
) -> None:
    net = Net(A, B)
    with pytest.raises(LocalProtocolError):
        net.want(A, weight=weight)
    net.tell(A, Received(0.0, B, Join("model", 1, LAYOUT, weight, 0.0)))
    assert net.last(A, Blame).peer == B


def test_a_mean_that_nobody_asked_for_is_a_bug_here() -> None:
    net = Net(A, B)
    round_id = net.begun()
    with pytest.raises(LocalProtocolError):
        net.tell(A, MeanReady(net.now_s, round_id, 9, (b"d" * 32,) * 2))


def test_meetings_and_what_others_say_are_bounded() -> None:
    net = Net(A)
    core = net.cores[A]
    net.want(A)
    strangers = [PeerID(b"peer%06d" % index) for index in range(3000)]
    net.tell(A, ContactsFound(0.0, tuple(strangers)))
    for version, peer in enumerate(strangers):
        net.tell(A, Received(0.0, peer, Join("model", 1, LAYOUT, 1.0, 0.0)))
        net.tell(A, Received(0.0, peer, Join(f"key {version}", version, LAYOUT, 1.0, 0.0)))
    assert core.held < 64 + 1024 + 256 + 10


def test_two_lists_of_members_under_one_number_are_two_rounds() -> None:
    net = Net(A, B, C)
    net.want(A)
    place = net.cores[A]._wants["model"].place
    members = tuple(Member(peer, 1.0, 0.0) for peer in (A, B))
    others = tuple(Member(peer, 1.0, 0.0) for peer in (A, C))
    one = Form("model", 1, LAYOUT, 5, 0.0, members)
    two = Form("model", 1, LAYOUT, 5, 0.0, others)
    net.tell(A, Received(0.0, place, one))
    first = net.cores[A]._wants["model"].round
    net.tell(A, Received(0.0, place, two))
    second = net.cores[A]._wants["model"].round
    assert first is not None
    assert second is not None
    assert first.round_id != second.round_id


@pytest.mark.parametrize(
    "group", [(0, 1), (0, 0, 1), (0, 1, 3)], ids=["not all", "one twice", "one that is none"]
)
def test_a_begin_that_makes_no_sense_is_blamed(group: tuple[int, ...]) -> None:
    net = Net(A, B, C)
    round_id = net.begun()
    place = net.cores[A]._wants["model"].round
    assert place is not None
    net.tell(A, Received(net.now_s, place.meeting, Begin(round_id, 1, group)))
    assert net.last(A, Blame).peer == place.meeting


def test_who_begins_an_attempt_of_another_member_is_blamed() -> None:
    net = Net(A, B, C)
    round_id = net.begun()
    net.tell(A, Received(net.now_s, C, Begin(round_id, 3, (0, 1, 2))))  # B's
    assert net.last(A, Blame).peer == C


def test_a_promise_of_what_cannot_be_is_blamed() -> None:
    net = Net(A, B, C)
    round_id = net.begun()
    del net.cores[B], net.cores[C]
    net.tell(A, ExchangeFailed(net.now_s, round_id, 1, B))  # A owns attempt 2
    result = Result(7, (0, 1), (b"d" * 32,) * 2)
    net.tell(A, Received(net.now_s, C, Promise(round_id, 2, 0, result)))
    assert net.last(A, Blame).peer == C


def test_settings_that_contradict_each_other_are_refused() -> None:
    with pytest.raises(SchemaError):
        AveragingSpec(gather_floor_s=5.0, gather_ceiling_s=1.0)
    with pytest.raises(SchemaError):
        AveragingSpec(exchange_floor_s=500.0, exchange_ceiling_s=100.0)


RESULTS_THAT_CANNOT_BE = pytest.mark.parametrize(
    "result",
    [
        Result(1, (9, 0, 1), (b"d" * 32,) * 3),
        Result(1, (0, 1, 2), (b"d" * 32,) * 2),
        Result(1, (1, 1), (b"d" * 32,) * 2),
        Result(1, (2,), (b"d" * 32,)),
        Result(2, (0, 1), (b"d" * 32,) * 2),
    ],
    ids=["of who is none", "without a digest", "one twice", "of one alone", "of what follows"],
)


@RESULTS_THAT_CANNOT_BE
def test_a_promise_of_a_result_that_cannot_be_is_not_taken_over(result: Result) -> None:
    net = Net(A, B, C)
    round_id = net.begun()
    del net.cores[B], net.cores[C]
    net.tell(A, ExchangeFailed(net.now_s, round_id, 1, B))  # A owns attempt 2
    net.tell(A, Received(net.now_s, C, Promise(round_id, 2, 1, result)))
    net.wait(11)
    assert net.last(A, Blame).peer == C
    assert not [e for e in net.done[A] if isinstance(e, FetchMean)]


@RESULTS_THAT_CANNOT_BE
def test_who_says_to_have_what_cannot_be_is_blamed(result: Result) -> None:
    net = Net(A, B, C)
    round_id = net.begun()
    del net.cores[B], net.cores[C]
    for liar in (B, C):
        net.tell(A, Received(net.now_s, liar, Have(round_id, 1, result)))
        assert net.last(A, Blame).peer == liar
    assert not [e for e in net.done[A] if isinstance(e, FetchMean)]


def test_a_mean_that_takes_long_to_fetch_is_not_begun_anew() -> None:
    net = Net(A, B, C, answer_s=1.0)
    round_id = net.begun()
    del net.cores[B], net.cores[C]
    net.tell(A, Received(net.now_s, B, Begin(round_id, 3, (1, 2))))  # we are left out
    result = Result(3, (1, 2), (b"d" * 32,) * 2)
    for peer in (B, C):
        net.tell(A, Received(net.now_s, peer, Have(round_id, 3, result)))
    net.wait(60)
    assert len([e for e in net.done[A] if isinstance(e, FetchMean)]) == 1


def test_one_peer_cannot_take_all_the_room_for_meetings() -> None:
    net = Net(A, B)
    stranger = PeerID(b"stranger")
    for index in range(200):
        net.tell(A, Received(0.0, stranger, Join(f"key {index}", 1, LAYOUT, 1.0, 0.0)))
    effects = net.cores[A].handle(Received(0.0, B, Join("model", 1, LAYOUT, 1.0, 0.0)))
    assert [type(e.message) for e in effects if isinstance(e, Send) and e.peer == B] == [Noted]
    net.want(A)
    net.want(B)
    net.wait(5)
    assert net.last(B, StartExchange).key == "model"
