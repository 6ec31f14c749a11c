from __future__ import annotations

from collections.abc import Mapping, Sequence

from protocols.core import DrainWanted
from protocols.experts.messages import SnapshotOffer
from protocols.experts.replicas import (
    APPOINT_AGAIN_S,
    CALM_S,
    HOSTLESS_S,
    LOST_S,
    Appoint,
    Appointed,
    AverageAsked,
    AverageOver,
    AverageWith,
    Effect,
    Measured,
    Name,
    Offered,
    RefuseReplica,
    Release,
    Released,
    Replicas,
    Replicate,
    Replicated,
    RightfulSeen,
    StopServing,
)
from protocols.experts.uid import ExpertUID
from protocols.experts.view import Claim
from protocols.ids import PeerID

ME, HOST, OTHER, THIRD = (PeerID(name) for name in (b"me", b"host", b"other", b"third"))
POPULAR, QUIET = ExpertUID("f", (0, 0)), ExpertUID("f", (0, 1))
OTHERS = ExpertUID("f", (0, 2))
OFFER = SnapshotOffer(str(POPULAR), 7, 3, bytes(32), HOST, bytes(64))


def core(*, each: int = 0) -> Replicas:
    return Replicas(ME, each, popular=0.5, average_s=2.0)


def measure(
    made: Replicas,
    now_s: float,
    *,
    share: float = 0.0,
    own: Mapping[ExpertUID, int] | None = None,
    spare: Mapping[PeerID, int] | None = None,
    free: int = 9,
) -> Sequence[Effect]:
    own = {POPULAR: 4, QUIET: 5} if own is None else own
    spare = {OTHER: 3, THIRD: 2} if spare is None else spare
    return made.handle(Measured(now_s, own, {POPULAR: share, QUIET: 0.1}, spare, free))


def appointed(made: Replicas, now_s: float, *, share: float = 0.9) -> None:
    (appoint,) = measure(made, now_s, share=share)
    assert isinstance(appoint, Appoint)
    made.handle(Appointed(now_s, appoint, taken=True))


def serving() -> Replicas:
    made = core()
    measure(made, 0.0, own={})
    made.handle(RightfulSeen(0.0, {POPULAR: [Claim(7, HOST)]}))
    assert made.handle(Offered(0.0, HOST, POPULAR, OFFER)) == [Replicate(POPULAR, OFFER)]
    assert made.handle(Replicated(1.0, POPULAR, done=True)) == ()
    return made


# --- as a host ---


def test_an_expert_that_takes_most_of_the_time_gets_the_node_with_most_room_as_its_replica() -> (
    None
):
    made = core()
    assert measure(made, 0.0, share=0.4) == []
    (appoint,) = measure(made, 1.0, share=0.6)
    assert isinstance(appoint, Appoint)
    assert appoint == Appoint(POPULAR, 4, OTHER)
    assert measure(made, 2.0, share=0.6) == [], "one is asked already"
    named = made.handle(Appointed(3.0, appoint, taken=True))
    assert named == [Name({POPULAR: (OTHER,)})]
    assert made.is_replica(POPULAR, 4, OTHER)
    assert not made.is_replica(POPULAR, 4, THIRD)
    assert not made.is_replica(POPULAR, 3, OTHER), "of an earlier epoch"


def test_every_expert_gets_as_many_replicas_as_the_run_wants_and_the_nodes_have_room_for() -> None:
    made = core(each=1)
    for now_s in range(0, 60, 3):
        for effect in measure(made, float(now_s)):
            if isinstance(effect, Appoint):
                made.handle(Appointed(float(now_s), effect, taken=True))
        for uid, own in made.own.items():
            for peer in own.heard_s:
                made.handle(AverageAsked(float(now_s), uid, peer))
    assert {uid: len(own.heard_s) for uid, own in made.own.items()} == {POPULAR: 1, QUIET: 1}
    assert measure(core(each=1), 0.0, spare={OTHER: 0}) == []


def test_who_refused_is_not_asked_again_at_once() -> None:
    made = core()
    (appoint,) = measure(made, 0.0, share=0.9)
    assert isinstance(appoint, Appoint)
    made.handle(Appointed(0.5, appoint, taken=False))
    (other,) = measure(made, 1.0, share=0.9)
    assert isinstance(other, Appoint)
    assert other == Appoint(POPULAR, 4, THIRD)
    made.handle(Appointed(1.5, other, taken=False))
    assert measure(made, 2.0, share=0.9) == []
    assert measure(made, APPOINT_AGAIN_S, share=0.9) == [appoint]


def test_a_replica_is_let_go_when_its_expert_has_not_been_popular_for_a_while() -> None:
    made = core()
    appointed(made, 0.0)
    last_s = 1.0
    assert measure(made, last_s, share=0.3) == [], "half of what makes popular keeps it"
    for now_s in (last_s + 10, last_s + 20):
        made.handle(AverageAsked(now_s, POPULAR, OTHER))
        assert measure(made, now_s, share=0.1) == []
    made.handle(AverageAsked(last_s + CALM_S, POPULAR, OTHER))
    assert measure(made, last_s + CALM_S, share=0.1) == [Release(POPULAR, 4, OTHER), Name({})]


def test_a_replica_that_averages_no_more_is_named_no_more() -> None:
    made = core()
    appointed(made, 0.0)
    made.handle(AverageAsked(9.0, POPULAR, OTHER))
    assert Name({}) not in measure(made, 9.0 + LOST_S - 0.1, share=0.9)
    effects = measure(made, 9.0 + LOST_S, share=0.9)
    assert Name({}) in effects
    assert Appoint(POPULAR, 4, OTHER) in effects or Appoint(POPULAR, 4, THIRD) in effects


def test_a_replica_that_stops_while_its_copy_is_blended_in_is_none_any_more() -> None:
    made = core()
    appointed(made, 0.0)
    assert made.handle(Released(OTHER, POPULAR, 4)) == [Name({})]
    assert made.handle(AverageAsked(1.0, POPULAR, OTHER)) == ()
    assert not made.is_replica(POPULAR, 4, OTHER)
    assert made.handle(AverageAsked(1.0, OTHERS, OTHER)) == (), "one that was given away meanwhile"


def test_a_replica_averages_no_more_often_than_the_run_says() -> None:
    """Give or take: what it sends may have been on its way for longer the time before."""
    made = core()
    appointed(made, 0.0)
    asked_s = [0.0, 0.0, 0.9, 1.0, 1.1, 2.9, 3.0]
    assert [at_s for at_s in asked_s if made.admits(POPULAR, OTHER, at_s)] == [0.0, 1.0, 2.9]


def test_one_that_became_a_replica_of_an_epoch_that_is_over_is_let_go() -> None:
    made = core()
    (appoint,) = measure(made, 0.0, share=0.9)
    measure(made, 1.0, own={POPULAR: 9})
    assert isinstance(appoint, Appoint)
    assert made.handle(Appointed(2.0, appoint, taken=True)) == [Release(POPULAR, 4, OTHER)]
    assert not made.is_replica(POPULAR, 9, OTHER)


def test_who_leaves_lets_its_replicas_go_and_stops_being_one() -> None:
    made = serving()
    appointed_own = measure(made, 1.0, own={QUIET: 5}, share=0.0)
    assert appointed_own == []
    made.own[QUIET].heard_s[OTHER] = 1.0
    effects = made.handle(DrainWanted(2.0))
    assert Release(QUIET, 5, OTHER) in effects
    assert [StopServing(POPULAR, 7), Release(POPULAR, 7, HOST)] == list(effects[:2])
    assert made.handle(Offered(3.0, HOST, POPULAR, OFFER)) == [RefuseReplica(POPULAR)]
    assert not any(isinstance(e, Appoint) for e in measure(made, 9.0, share=0.9))


# --- as a replica ---


def test_only_the_host_that_the_directory_names_gets_a_replica_and_only_with_room() -> None:
    made = core()
    measure(made, 0.0, own={})
    refused = [RefuseReplica(POPULAR)]
    assert made.handle(Offered(0.0, HOST, POPULAR, OFFER)) == refused, "nobody is named"
    made.handle(RightfulSeen(0.0, {POPULAR: [Claim(7, OTHER)]}))
    assert made.handle(Offered(0.0, HOST, POPULAR, OFFER)) == refused
    made.handle(RightfulSeen(0.0, {POPULAR: [Claim(8, HOST)]}))
    assert made.handle(Offered(0.0, HOST, POPULAR, OFFER)) == refused, "an old epoch"
    made.handle(RightfulSeen(0.0, {POPULAR: [Claim(7, HOST)]}))
    measure(made, 1.0, own={}, free=0)
    assert made.handle(Offered(1.0, HOST, POPULAR, OFFER)) == refused
    measure(made, 2.0, own={POPULAR: 9})
    assert made.handle(Offered(2.0, HOST, POPULAR, OFFER)) == refused, "we host it"


def test_a_replica_averages_again_and_again_one_at_a_time() -> None:
    made = serving()
    average = AverageWith(POPULAR, 7, HOST)
    assert average not in measure(made, 2.9, own={})
    assert average in measure(made, 3.0, own={})
    assert average not in measure(made, 9.0, own={}), "the one before is under way"
    made.handle(AverageOver(9.5, POPULAR, 7, heard=True))
    assert average not in measure(made, 11.0, own={})
    assert average in measure(made, 11.5, own={})
    assert made.averages == 1


def test_a_replica_bridges_the_time_until_its_expert_is_adopted() -> None:
    made = serving()
    made.handle(RightfulSeen(5.0, {}))
    measure(made, 5.0, own={})
    made.handle(AverageOver(6.0, POPULAR, 7, heard=False))
    assert POPULAR in made.serving, "its host is gone, and it goes on answering"
    effects = made.handle(RightfulSeen(9.0, {POPULAR: [Claim(8, THIRD)]}))
    assert effects == [StopServing(POPULAR, 7)]
    alone = serving()
    assert StopServing(POPULAR, 7) in measure(alone, 1.0 + HOSTLESS_S, own={})


def test_only_its_host_lets_a_replica_go() -> None:
    made = serving()
    assert made.handle(Released(OTHER, POPULAR, 7)) == ()
    assert made.handle(Released(HOST, POPULAR, 6)) == ()
    assert made.handle(Released(HOST, POPULAR, 7)) == [StopServing(POPULAR, 7)]


def test_what_arrives_when_we_leave_is_answered_for_no_more() -> None:
    made = core()
    measure(made, 0.0, own={})
    made.handle(RightfulSeen(0.0, {POPULAR: [Claim(7, HOST)]}))
    made.handle(Offered(0.0, HOST, POPULAR, OFFER))
    made.handle(DrainWanted(0.5))
    assert made.handle(Replicated(1.0, POPULAR, done=True)) == [StopServing(POPULAR, 7)]
    assert not made.serving


def test_hosting_goes_before_answering_for_others() -> None:
    made = serving()
    effects = measure(made, 1.5, own={}, free=0)
    assert effects == [StopServing(POPULAR, 7), Release(POPULAR, 7, HOST)]
    made = serving()
    made.forget(POPULAR)  # we host it ourselves: nothing is to be stopped
    assert measure(made, 1.5, own={POPULAR: 8}) == []
