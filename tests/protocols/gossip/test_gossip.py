"""The gossip core alone: when it trains, pushes and averages, and what it refuses."""

import dataclasses
import math

import pytest

from protocols.core import Blame, ContactsFound, DrainWanted, PeerDown, Received, Send, Tick
from protocols.errors import LocalProtocolError
from protocols.gossip.events import (
    AdoptModel,
    AnswerPush,
    AskOffer,
    Averaged,
    AverageModels,
    DropModel,
    FetchModel,
    Left,
    LookForContacts,
    ModelFailed,
    ModelFetched,
    OfferAnswered,
    OfferFailed,
    PushAnswered,
    PushFailed,
    PushModel,
    RollBack,
    RolledBack,
    SnapshotTaken,
    TakeSnapshot,
    TrainBatch,
    Trained,
)
from protocols.gossip.inbox import REPLACED_MAX
from protocols.gossip.messages import Leaving, ModelOffer, PushAnswer, Verdict
from protocols.gossip.neighbourhood import OUT_S
from protocols.gossip.newcomer import CONTACTS_WAIT_S, ROUNDS_MAX
from protocols.gossip.settings import GossipSpec
from tests.protocols.gossip.peers import LAYOUT, QUARTERS, Driven, peer

SLOW = GossipSpec(average_after_batches=1000, buffer_share=1.0)


def offer(
    *, averages: int = 10, layout: bytes = LAYOUT.digest, root: bytes = b"r" * 32
) -> ModelOffer:
    return ModelOffer(5, 6, layout, trained=50, averages=averages, root=root, signature=b"")


# --- training and averaging ---


def test_a_founder_trains_at_once_and_training_never_waits_for_models() -> None:
    driven = Driven(others=0)
    assert driven.wanted(TrainBatch) == [TrainBatch()]
    for _ in range(20):
        assert driven.cycle() == []
    assert len(driven.wanted(TrainBatch)) == 20


def test_it_averages_when_every_live_neighbour_has_sent_a_model() -> None:
    driven = Driven(SLOW)
    for sender in (1, 2, 3):
        driven.arrive(peer(sender))
        assert driven.cycle() == []
    driven.arrive(peer(4))
    (average,) = driven.cycle()
    assert [sender for sender, _ in average.models] == [peer(i) for i in (1, 2, 3, 4)]
    assert driven.cycle() == [], "the buffer is empty again"


def test_a_share_of_the_neighbours_is_enough_when_the_run_says_so() -> None:
    driven = Driven(GossipSpec(average_after_batches=1000, buffer_share=0.5))
    driven.arrive(peer(1))
    assert driven.cycle() == []
    driven.arrive(peer(2))
    assert len(driven.cycle()) == 1


def test_it_averages_after_enough_batches_with_what_is_here() -> None:
    driven = Driven(GossipSpec(average_after_batches=3))
    driven.arrive(peer(1))
    assert [len(driven.cycle()) for _ in range(4)] == [0, 0, 1, 0]


def test_two_models_of_one_sender_are_one() -> None:
    driven = Driven(SLOW, others=2)
    assert driven.arrive(peer(1), sequence=1) == "taken"
    assert driven.arrive(peer(1), sequence=2) == "taken"
    assert driven.wanted(DropModel) == [DropModel(1)]
    assert driven.cycle() == []
    driven.arrive(peer(2))
    (average,) = driven.cycle()
    assert average.models == ((peer(1), 2), (peer(2), 3))


def test_each_part_is_averaged_by_itself() -> None:
    driven = Driven(
        GossipSpec(push_share=0.25, average_after_batches=1000, buffer_share=1.0),
        layout=QUARTERS,
        others=2,
    )
    driven.arrive(peer(1), part=2)
    driven.arrive(peer(2), part=1)
    assert driven.cycle() == []
    driven.arrive(peer(2), part=2, sequence=2)
    (average,) = driven.cycle()
    assert (average.part, len(average.models)) == (2, 2)


# --- pushes ---


def test_a_snapshot_follows_the_batches_and_goes_to_each_neighbour() -> None:
    driven = Driven(GossipSpec(batches=2))
    driven.cycle()
    assert driven.wanted(PushModel) == []
    driven.cycle()
    pushes = driven.wanted(PushModel)
    assert {push.peer for push in pushes} == {peer(i) for i in (1, 2, 3, 4)}
    assert {push.push.sequence for push in pushes} == {1}


def test_one_push_is_on_its_way_and_the_newest_snapshot_waits() -> None:
    driven = Driven(others=1)
    driven.cycle()
    (first,) = driven.wanted(PushModel)
    for _ in range(5):
        driven.cycle()
    assert driven.wanted(PushModel) == []
    driven.feed(PushAnswered(1.0, first.call, PushAnswer("taken")))
    (second,) = driven.wanted(PushModel)
    assert second.push.sequence == 6
    driven.feed(PushAnswered(1.0, second.call, PushAnswer("taken")))
    assert driven.wanted(PushModel) == [], "nothing new since"


def test_parts_take_turns() -> None:
    driven = Driven(GossipSpec(push_share=0.25), layout=QUARTERS, others=1)
    parts = []
    for _ in range(5):
        driven.cycle()
        (push,) = driven.wanted(PushModel)
        parts.append(push.push.part)
        driven.feed(PushAnswered(1.0, push.call, PushAnswer("taken")))
    assert parts == [0, 1, 2, 3, 0]


def test_a_peer_that_does_not_take_us_for_a_neighbour_is_asked_again_later() -> None:
    driven = Driven(others=1)
    driven.cycle()
    (push,) = driven.wanted(PushModel)
    driven.feed(PushAnswered(1.0, push.call, PushAnswer("no-neighbour")))
    driven.cycle()
    assert driven.wanted(PushModel) == []
    assert driven.core.wake_at_s == 6.0
    driven.feed(Tick(6.0))
    assert len(driven.wanted(PushModel)) == 1


def test_who_has_finished_is_neither_waited_for_nor_sent_to() -> None:
    driven = Driven(SLOW, others=2)
    driven.cycle()
    for push in driven.wanted(PushModel):
        verdict: Verdict = "finished" if push.peer == peer(1) else "taken"
        driven.feed(PushAnswered(1.0, push.call, PushAnswer(verdict)))
    driven.arrive(peer(2))
    assert len(driven.cycle()) == 1
    assert {push.peer for push in driven.wanted(PushModel)} == {peer(2)}


# --- what it refuses ---


def test_a_model_sent_again_or_older_is_refused_also_after_it_was_averaged() -> None:
    driven = Driven(SLOW, others=1)
    assert driven.arrive(peer(1), epoch=2, sequence=5) == "taken"
    assert driven.arrive(peer(1), epoch=2, sequence=5) == "old"
    assert len(driven.cycle()) == 1
    assert driven.arrive(peer(1), epoch=2, sequence=5) == "old"
    assert driven.arrive(peer(1), epoch=1, sequence=9) == "old"
    assert driven.arrive(peer(1), epoch=3, sequence=1) == "taken"


@pytest.mark.parametrize(
    "wrong",
    [
        {"layout": b"x" * 32},
        {"elements": 101},
        {"elements": 0},
        {"part": 1},
        {"dtype_right": False},
    ],
)
def test_a_model_of_another_shape_is_refused_and_its_sender_blamed(
    wrong: dict[str, object],
) -> None:
    driven = Driven()
    assert driven.arrive(peer(1), **wrong) == "bad"  # type: ignore[arg-type]
    assert [blame.peer for blame in driven.wanted(Blame)] == [peer(1)]
    assert driven.core.waiting == 0


def test_a_model_that_is_not_finite_is_refused_and_its_sender_blamed() -> None:
    driven = Driven()
    assert driven.arrive(peer(1), finite=False) == "non-finite"
    assert [blame.peer for blame in driven.wanted(Blame)] == [peer(1)]
    assert driven.core.waiting == 0


def test_a_stranger_is_refused_and_the_directory_is_looked_at_once() -> None:
    driven = Driven()
    assert not driven.core.takes_from(peer(99))
    assert driven.arrive(peer(99)) == "unknown"
    assert driven.arrive(peer(98)) == "unknown"
    assert driven.wanted(LookForContacts) == [LookForContacts()]
    assert driven.wanted(Blame) == []


def test_a_peer_of_the_run_that_is_no_neighbour_is_refused() -> None:
    driven = Driven(GossipSpec(degree=2), others=30)
    strangers = [peer(i) for i in range(1, 31) if not driven.core.takes_from(peer(i))]
    assert len(strangers) == 28
    assert {driven.arrive(stranger) for stranger in strangers} == {"no-neighbour"}


def test_a_thousand_models_of_one_sender_take_the_place_of_one_and_then_are_refused() -> None:
    driven = Driven(SLOW)
    verdicts = [driven.arrive(peer(1), sequence=i) for i in range(1000)]
    assert verdicts == ["taken"] * REPLACED_MAX + ["too-often"] * (1000 - REPLACED_MAX)
    assert driven.core.waiting == 1
    driven.cycle()
    assert driven.arrive(peer(1), sequence=1001) == "taken"


def test_the_buffer_never_has_more_than_one_model_per_part_and_neighbour() -> None:
    driven = Driven(
        GossipSpec(push_share=0.25, average_after_batches=1000, buffer_share=1.0), layout=QUARTERS
    )
    for sequence in range(10):
        for sender in range(1, 20):
            for part in range(4):
                driven.arrive(peer(sender), part=part, sequence=sequence)
    assert driven.core.waiting == 4 * 4


# --- neighbours that go ---


def test_a_neighbour_that_fails_twice_is_replaced_and_comes_back_when_heard() -> None:
    driven = Driven(GossipSpec(degree=2), others=10)
    before = set(driven.core.neighbourhood.current)
    gone = min(before)
    for _ in range(2):
        driven.cycle()
        for push in driven.wanted(PushModel):
            if push.peer == gone:
                driven.feed(PushFailed(1.0, push.call))
            else:
                driven.feed(PushAnswered(1.0, push.call, PushAnswer("taken")))
    after = set(driven.core.neighbourhood.current)
    assert gone not in after
    assert len(after) == 2
    assert driven.arrive(gone) == "taken"
    assert set(driven.core.neighbourhood.current) == before


def test_a_busy_neighbour_lives() -> None:
    driven = Driven(others=1)
    for _ in range(5):
        driven.cycle()
        (push,) = driven.wanted(PushModel)
        driven.feed(PushFailed(1.0, push.call, busy=True))
    assert set(driven.core.neighbourhood.current) == {peer(1)}


def test_the_time_out_of_a_dead_peer_ends_and_is_longer_the_next_time() -> None:
    driven = Driven(others=2)
    driven.feed(PeerDown(0.0, peer(1)))
    assert set(driven.core.neighbourhood.current) == {peer(2)}
    assert driven.core.wake_at_s == OUT_S
    driven.feed(Tick(OUT_S))
    assert set(driven.core.neighbourhood.current) == {peer(1), peer(2)}
    assert driven.core.wake_at_s == math.inf
    driven.cycle()
    (call,) = [push.call for push in driven.wanted(PushModel) if push.peer == peer(1)]
    driven.feed(PushFailed(OUT_S, call))
    assert set(driven.core.neighbourhood.current) == {peer(2)}, "on trial one failure is enough"
    assert driven.core.wake_at_s == 3 * OUT_S


def test_what_a_replaced_neighbour_sent_is_dropped() -> None:
    driven = Driven(SLOW, others=2)
    driven.arrive(peer(1))
    driven.feed(Received(1.0, peer(1), Leaving()))
    assert driven.wanted(DropModel) == [DropModel(1)]
    driven.arrive(peer(2))
    (average,) = driven.cycle()
    assert [sender for sender, _ in average.models] == [peer(2)]


def test_a_push_to_who_was_replaced_meanwhile_ends_without_harm() -> None:
    driven = Driven(others=2)
    driven.cycle()
    (call,) = [push.call for push in driven.wanted(PushModel) if push.peer == peer(1)]
    driven.feed(ContactsFound(1.0, (peer(2),)))
    driven.feed(ContactsFound(1.0, (peer(1), peer(2))))
    driven.cycle()
    assert peer(1) not in {push.peer for push in driven.wanted(PushModel)}, (
        "one is on its way still"
    )
    driven.feed(PushFailed(2.0, call))
    assert [push.peer for push in driven.wanted(PushModel)] == [peer(1)]


# --- our own model goes bad ---


def test_a_model_that_is_not_finite_is_rolled_back_and_never_spread() -> None:
    driven = Driven()
    driven.cycle()
    calls = driven.wanted(PushModel)
    assert driven.feed(Trained(1.0, False)) == [RollBack()]
    for push in calls:
        driven.feed(PushAnswered(1.0, push.call, PushAnswer("taken")))
    assert driven.wanted(PushModel) == []
    epoch = driven.core.standing.epoch
    assert driven.feed(RolledBack(2.0)) == [TrainBatch()]
    assert driven.core.standing.epoch == epoch + 1
    assert driven.core.offer is None
    driven.cycle()
    assert {push.push.age for push in driven.wanted(PushModel)} == {(epoch + 1, 2)}


def test_a_snapshot_that_is_not_finite_is_not_pushed() -> None:
    driven = Driven()
    (snapshot,) = driven.feed(Trained(1.0, True))
    assert isinstance(snapshot, TakeSnapshot)
    assert driven.feed(SnapshotTaken(1.0, snapshot.sequence, False)) == [RollBack()]


def test_an_average_that_is_not_finite_is_rolled_back() -> None:
    driven = Driven(SLOW, others=1)
    driven.arrive(peer(1))
    assert [type(effect) for effect in driven.feed(Trained(1.0, True))] == [AverageModels]
    assert driven.feed(Averaged(1.0, 0, (), False)) == [RollBack()]


def test_what_came_during_a_batch_is_averaged_before_the_push() -> None:
    driven = Driven(SLOW, others=1)
    driven.arrive(peer(1))
    driven.feed(Trained(1.0, True))
    assert driven.feed(Averaged(1.0, 0, (), True)) == [TakeSnapshot(1)]


def test_who_cannot_get_on_by_itself_asks_for_a_neighbours_model() -> None:
    driven = Driven()
    for _ in range(2):
        driven.feed(Trained(1.0, False))
        assert driven.feed(RolledBack(1.0)) == [TrainBatch()]
    driven.feed(Trained(1.0, False))
    asked = [effect for effect in driven.feed(RolledBack(1.0)) if isinstance(effect, AskOffer)]
    assert len(asked) == 3
    assert driven.core.starting


def test_an_answer_to_no_job_is_our_own_mistake() -> None:
    driven = Driven()
    with pytest.raises(LocalProtocolError):
        driven.feed(RolledBack(1.0))
    assert driven.feed(Trained(1.0, True)) == [TakeSnapshot(1)], "and changes nothing"


# --- the first model ---


def test_a_newcomer_starts_from_a_neighbours_model() -> None:
    driven = Driven(founds=False)
    asked = driven.wanted(AskOffer)
    assert len(asked) == 3
    for ask in asked:
        driven.feed(OfferAnswered(1.0, ask.peer, offer()))
    (fetch,) = driven.wanted(FetchModel)
    assert driven.wanted(TrainBatch) == []
    effects = driven.feed(ModelFetched(2.0, fetch.peer, 77, True, loss=0.5, own_loss=2.3))
    assert effects == [AdoptModel(77, offer().trained), TrainBatch()]
    assert driven.core.standing.trained == offer().trained
    assert driven.core.standing.epoch == 2


def test_one_liar_among_several_does_not_end_a_newcomers_training_before_it_began() -> None:
    driven = Driven(founds=False)
    for index, ask in enumerate(driven.wanted(AskOffer)):
        claims = dataclasses.replace(offer(), trained=10**9 if index == 0 else 40)
        driven.feed(OfferAnswered(1.0, ask.peer, claims))
    (fetch,) = driven.wanted(FetchModel)
    driven.feed(ModelFetched(2.0, fetch.peer, 77, True, loss=0.5, own_loss=2.3))
    assert driven.core.standing.trained == 40


def test_among_the_first_everybody_starts_independently() -> None:
    driven = Driven(founds=False)
    for ask in driven.wanted(AskOffer):
        driven.feed(OfferAnswered(1.0, ask.peer, offer(averages=1)))
    assert driven.wanted(FetchModel) == []
    assert driven.wanted(TrainBatch) == [TrainBatch()]


def test_a_newcomer_that_finds_nobody_starts_independently() -> None:
    driven = Driven(founds=False, others=0)
    assert driven.core.wake_at_s == CONTACTS_WAIT_S
    driven.feed(Tick(CONTACTS_WAIT_S))
    assert driven.wanted(TrainBatch) == [TrainBatch()]


@pytest.mark.parametrize(
    ("finite", "loss"), [(False, 0.1), (True, 99.0), (True, math.nan), (True, math.inf)]
)
def test_a_newcomer_refuses_a_model_worse_than_none_and_takes_anothers(
    finite: bool, loss: float
) -> None:
    driven = Driven(founds=False)
    for ask in driven.wanted(AskOffer):
        driven.feed(OfferAnswered(1.0, ask.peer, offer()))
    (first,) = driven.wanted(FetchModel)
    driven.feed(ModelFetched(2.0, first.peer, 77, finite, loss, own_loss=2.3))
    assert driven.wanted(DropModel) == [DropModel(77)]
    (second,) = driven.wanted(FetchModel)
    assert second.peer != first.peer


def test_a_model_of_another_layout_or_without_a_hash_is_not_fetched() -> None:
    driven = Driven(founds=False)
    first, second, third = driven.wanted(AskOffer)
    driven.feed(OfferAnswered(1.0, first.peer, offer(layout=b"x" * 32)))
    driven.feed(OfferAnswered(1.0, second.peer, offer(root=b"")))
    driven.feed(OfferAnswered(1.0, third.peer, offer()))
    assert [fetch.peer for fetch in driven.wanted(FetchModel)] == [third.peer]


def test_a_newcomer_that_nobody_answers_starts_independently_after_a_bounded_time() -> None:
    driven = Driven(founds=False, others=50)
    for _ in range(ROUNDS_MAX):
        for ask in driven.wanted(AskOffer):
            driven.feed(OfferFailed(1.0, ask.peer))
    assert driven.wanted(TrainBatch) == [TrainBatch()]


def test_a_newcomer_whose_donor_fails_asks_another() -> None:
    driven = Driven(founds=False)
    for ask in driven.wanted(AskOffer):
        driven.feed(OfferAnswered(1.0, ask.peer, offer()))
    (first,) = driven.wanted(FetchModel)
    driven.feed(ModelFailed(2.0, first.peer))
    (second,) = driven.wanted(FetchModel)
    assert second.peer != first.peer


# --- the end ---


def test_after_its_last_batch_it_pushes_and_stops() -> None:
    driven = Driven(GossipSpec(batches=2), steps=3)
    for _ in range(3):
        driven.cycle()
    assert driven.core.finished
    assert driven.core.standing.sequence == 2, "the last batch is in a snapshot of its own"
    assert driven.arrive(peer(1)) == "finished"
    assert len(driven.wanted(TrainBatch)) == 3


def test_a_leaver_says_so_ends_its_job_and_its_pushes_and_is_gone() -> None:
    driven = Driven(others=2)
    driven.cycle()
    pushes = driven.wanted(PushModel)
    driven.feed(DrainWanted(1.0))
    assert {send.peer for send in driven.wanted(Send)} == {peer(1), peer(2)}
    assert driven.arrive(peer(1)) == "draining"
    driven.feed(Trained(1.0, True))
    assert driven.wanted(Left) == []
    for push in pushes:
        driven.feed(PushAnswered(1.0, push.call, PushAnswer("taken")))
    assert driven.wanted(Left) == [Left()]
    assert driven.arrive(peer(1)) == "draining"
    assert driven.core.wake_at_s == math.inf


def test_a_leaver_does_not_wait_for_ever() -> None:
    driven = Driven(others=2)
    driven.cycle()
    driven.feed(DrainWanted(1.0))
    driven.feed(Tick(driven.core.wake_at_s))
    assert driven.wanted(Left) == [Left()]


def test_who_drains_is_no_neighbour_any_more() -> None:
    driven = Driven(others=2)
    driven.cycle()
    (call,) = [push.call for push in driven.wanted(PushModel) if push.peer == peer(1)]
    driven.feed(PushAnswered(1.0, call, PushAnswer("draining")))
    assert set(driven.core.neighbourhood.current) == {peer(2)}


def test_models_refused_for_their_variance_are_counted_at_their_sender() -> None:
    driven = Driven(SLOW, others=1)
    driven.arrive(peer(1))
    driven.cycle(refused=(peer(1),))
    assert driven.core.neighbourhood.current[peer(1)].refused == 1


def test_every_arrival_is_answered() -> None:
    driven = Driven()
    for sender in (1, 2, 99):
        driven.arrive(peer(sender))
    assert len(driven.wanted(AnswerPush)) == 3


def test_a_peer_that_was_left_out_may_send_a_body_since_hearing_it_makes_it_a_neighbour() -> None:
    driven = Driven(GossipSpec(degree=2), others=10)
    gone = min(driven.core.neighbourhood.current)
    driven.feed(PeerDown(1.0, gone))
    assert gone not in driven.core.neighbourhood.current
    assert driven.core.takes_from(gone)
    strange = next(p for p in map(peer, range(1, 11)) if not driven.core.takes_from(p))
    assert driven.arrive(strange, elements=0) == "no-neighbour"


def test_a_clock_may_begin_below_zero() -> None:
    driven = Driven(others=0)
    driven.now_s = -1e4
    driven.feed(ContactsFound(-1e4, (peer(0), peer(1))))
    driven.cycle()
    assert [push.peer for push in driven.wanted(PushModel)] == [peer(1)]


def test_an_old_model_is_still_old_when_its_sender_is_a_neighbour_again() -> None:
    driven = Driven(GossipSpec(degree=2), others=10)
    sender = min(driven.core.neighbourhood.current)
    assert driven.arrive(sender, sequence=5) == "taken"
    driven.cycle()
    driven.feed(PeerDown(1.0, sender))
    assert driven.arrive(sender, sequence=5) == "old"
    assert driven.arrive(sender, sequence=6) == "taken"


def test_what_was_not_asked_changes_nothing() -> None:
    driven = Driven(others=2)
    driven.cycle()
    assert driven.feed(PushAnswered(1.0, 999, PushAnswer("draining"))) == []
    assert driven.feed(PushFailed(1.0, 999)) == []
    assert set(driven.core.neighbourhood.current) == {peer(1), peer(2)}


def test_who_is_told_to_leave_twice_leaves_once() -> None:
    driven = Driven(others=1)
    driven.feed(DrainWanted(1.0))
    assert driven.feed(DrainWanted(2.0)) == []
    driven.feed(Trained(3.0, True))
    assert len(driven.wanted(Left)) == 1
