"""One trainer's microbatches: forward, backward, counted once at each stage, whatever fails on the way."""

from __future__ import annotations

import math
import random
from dataclasses import replace

from protocols.core import Send
from protocols.ids import PeerID
from protocols.ledger.events import LedgerSettings
from protocols.ledger.leases import first_generation
from protocols.ledger.messages import Evaluated, Lease, WorkWanted
from protocols.ledger.tally import Attempt, Settled
from protocols.ledger.trainer import (
    AskClaim,
    AskSettle,
    AskStage,
    CallAnswered,
    CallFailed,
    CancelCall,
    ClaimAnswered,
    LeaseReceived,
    NodeLeaves,
    RecordLearned,
    ReleaseTensors,
    SettleAnswered,
    Trainer,
    TrainerEffect,
    TrainerEvent,
    TrainerTick,
)
from protocols.ledger.view import Member, Record, pack_ids
from protocols.replies import ErrorCode

SETTINGS = LedgerSettings(stages=2, microbatches=4, steps=100, evaluation_microbatches=2)
LEAD, FRONT, BACK, OTHER_BACK = (PeerID(name) for name in (b"lead", b"front", b"back-a", b"back-b"))


class Driver:
    """A trainer, the questions it has open, and the last record it knows."""

    def __init__(
        self, *, in_flight: int = 4, backs: tuple[PeerID, ...] = (BACK, OTHER_BACK)
    ) -> None:
        self.trainer = Trainer(
            SETTINGS, random.Random(3), in_flight=in_flight, floor_s=2.0, ceiling_s=60.0
        )
        self.now_s = 0.0
        self.open: dict[int, AskStage | AskSettle | AskClaim] = {}
        self.effects: list[TrainerEffect] = []
        self.members = [
            Member(FRONT, 1, 0, 0), *(Member(peer, 1, 1, 0) for peer in backs),
        ]  # fmt: skip
        self.index = 5
        self.learn()

    def learn(self, *, step: int = 0) -> None:
        """Hear of a record with the present members."""
        members = tuple(sorted(self.members, key=lambda member: member.peer))
        record = Record(index=self.index, step=step, lead=LEAD, members=members)
        self.handle(RecordLearned(self.now_s, record, LEAD))

    def replace(self, peer: PeerID, **change: int) -> None:
        """Change a member in the next record; without a change it is gone."""
        self.index += 1
        kept = [member for member in self.members if member.peer != peer]
        for member in self.members:
            if member.peer == peer and change:
                stage = change.get("stage", member.stage)
                incarnation = change.get("incarnation", member.incarnation)
                kept.append(Member(peer, incarnation, stage, self.index))
        self.members = kept
        self.learn()

    def lease(self, ids: int, generation: int = 100, *, fresh: bool = True) -> None:
        lease = Lease(self.index, 1, self.dealt(generation), pack_ids(ids), fresh)
        self.handle(LeaseReceived(self.now_s, LEAD, lease))

    def dealt(self, number: int) -> int:
        """Return a generation that the lead deals under the present record."""
        return first_generation(self.index, 0) + number

    def handle(self, event: TrainerEvent) -> list[TrainerEffect]:
        effects = self.trainer.handle(event)
        for effect in effects:
            if isinstance(effect, AskStage | AskSettle | AskClaim):
                self.open[effect.call] = effect
            elif isinstance(effect, CancelCall):
                self.open.pop(effect.call, None)
        self.effects += effects
        return effects

    def pass_time(self, seconds: float) -> None:
        self.now_s += seconds
        self.handle(TrainerTick(self.now_s))

    # --- answers ---

    def ask(self) -> AskStage | AskSettle | AskClaim:
        """Return the oldest open question."""
        return self.open[min(self.open)]

    def stage_ask(self) -> AskStage:
        ask = self.ask()
        assert isinstance(ask, AskStage)
        return ask

    def done(self, *, counted: bool = True) -> AskStage:
        """Let the oldest question, a stage's, be answered well."""
        ask = self.stage_ask()
        del self.open[ask.call]
        self.now_s += 0.1
        self.handle(CallAnswered(self.now_s, ask.call, self.index, counted and ask.count, 2.0))
        return ask

    def fail(self, code: ErrorCode | None) -> AskStage:
        ask = self.stage_ask()
        del self.open[ask.call]
        self.handle(CallFailed(self.now_s, ask.call, code))
        return ask

    def settled(self, answer: Settled) -> AskSettle:
        ask = self.ask()
        assert isinstance(ask, AskSettle)
        del self.open[ask.call]
        self.handle(SettleAnswered(self.now_s, ask.call, answer, self.index))
        return ask

    def claimed(self, counted: int = 0, pending: int = 0) -> AskClaim:
        ask = self.ask()
        assert isinstance(ask, AskClaim)
        del self.open[ask.call]
        self.handle(ClaimAnswered(self.now_s, ask.call, counted, pending, self.index))
        return ask

    def finished(self) -> list[int]:
        return sorted(i for i, j in self.trainer.journeys.items() if j.finished)

    def wanted(self) -> list[WorkWanted]:
        sends = (e for e in self.effects if isinstance(e, Send))
        return [s.message for s in sends if isinstance(s.message, WorkWanted)]


def test_a_microbatch_goes_forward_and_backward_and_is_counted_once_at_each_stage() -> None:
    driver = Driver()
    driver.lease(0b0001)
    legs = [driver.done() for _ in range(3)]
    assert [(leg.kind, leg.stage, leg.count) for leg in legs] == [
        ("forward", 0, False),
        ("loss", 1, True),
        ("backward", 0, True),
    ]
    assert driver.finished() == [0]
    assert not driver.open


def test_attempts_of_one_microbatch_have_growing_numbers_under_their_lease() -> None:
    driver = Driver()
    driver.lease(0b0001, generation=7)
    attempts = [driver.done().attempt for _ in range(3)]
    assert attempts == sorted(attempts)
    assert {attempt.generation for attempt in attempts} == {driver.dealt(7)}


def test_a_trainer_asks_for_as_much_as_it_has_room_for() -> None:
    driver = Driver(in_flight=3)
    assert driver.wanted()[-1].slots == 3
    driver.lease(0b0011)
    driver.pass_time(1.0)
    assert driver.wanted()[-1] == WorkWanted(1, 1, b"\x03", driver.dealt(100))


def test_a_paused_trainer_keeps_what_it_holds_and_asks_for_no_more() -> None:
    driver = Driver()
    driver.lease(0b0001)
    driver.trainer.paused = True
    driver.pass_time(1.0)
    assert driver.wanted()[-1] == WorkWanted(1, 0, b"\x01", driver.dealt(100))


def test_a_refused_request_goes_to_another_replica() -> None:
    driver = Driver()
    driver.lease(0b0001)
    driver.done()
    first = driver.fail("busy")
    second = driver.stage_ask()
    assert {first.peer, second.peer} == {BACK, OTHER_BACK}
    assert second.attempt > first.attempt


def test_backward_may_go_to_another_replica_than_forward() -> None:
    driver = Driver()
    driver.lease(0b0001)
    driver.done()
    driver.replace(driver.stage_ask().peer)
    assert driver.stage_ask().peer in (BACK, OTHER_BACK)
    driver.done()
    driver.done()
    assert driver.finished() == [0]


def test_after_a_lost_answer_nobody_else_counts_before_the_member_has_said_void() -> None:
    driver = Driver()
    driver.lease(0b0001)
    driver.done()
    lost = driver.fail(None)
    ask = driver.settled(Settled.VOID)
    assert (ask.peer, ask.attempt) == (lost.peer, lost.attempt)
    assert driver.stage_ask().count


def test_a_lost_answer_that_was_counted_is_not_asked_again() -> None:
    driver = Driver()
    driver.lease(0b0001)
    driver.done()
    driver.fail(None)
    driver.settled(Settled.COUNTED)
    again = driver.done()  # the gradient that got lost with the answer
    assert (again.kind, again.stage, again.count) == ("loss", 1, False)
    driver.done()
    assert driver.finished() == [0]


def test_a_pending_attempt_is_asked_about_again_later() -> None:
    driver = Driver()
    driver.lease(0b0001)
    driver.done()
    driver.fail(None)
    driver.settled(Settled.PENDING)
    assert not driver.open
    driver.pass_time(1.0)
    driver.settled(Settled.VOID)


def test_a_lost_forward_needs_no_settling() -> None:
    driver = Driver()
    driver.lease(0b0001)
    driver.fail(None)
    driver.pass_time(3.0)
    assert driver.stage_ask().kind == "forward"


def test_a_fate_is_forgotten_with_the_member_it_was_about() -> None:
    driver = Driver()
    driver.lease(0b0001)
    driver.done()
    lost = driver.fail(None)
    driver.replace(lost.peer)
    assert driver.stage_ask().peer != lost.peer


def test_what_a_removed_member_counted_is_counted_again_elsewhere() -> None:
    driver = Driver()
    driver.lease(0b0001)
    driver.done()
    first = driver.done()
    driver.done()
    assert driver.finished() == [0]
    driver.replace(first.peer)
    assert driver.finished() == []
    again = driver.done()
    assert (again.peer != first.peer, again.stage, again.count) == (True, 1, True)
    assert driver.finished() == [0]


def test_what_a_fenced_or_moved_member_counted_is_void() -> None:
    for change in ({}, {"stage": 0}):
        driver = Driver()
        driver.lease(0b0001)
        driver.done()
        first = driver.done()
        driver.done()
        driver.replace(first.peer, incarnation=1, **change)
        assert driver.finished() == []


def test_what_was_void_twice_is_counted_again_only_if_no_other_replica_has_it() -> None:
    """Two trainers that were given the same would have each other's members fenced for ever."""
    for counted, asks in ((0b0001, 0), (0, 1)):
        driver = Driver()
        driver.lease(0b0001)
        driver.done()
        first = driver.done()
        driver.done()
        driver.replace(first.peer, incarnation=1)  # fenced
        second = driver.done()
        assert driver.finished() == [0]
        driver.replace(second.peer, incarnation=1)
        assert driver.finished() == []
        while any(isinstance(ask, AskClaim) for ask in driver.open.values()):
            driver.claimed(counted=counted)
        assert len(driver.open) == asks
        assert driver.finished() == ([0] if counted else [])


def test_what_went_with_its_member_again_and_again_is_counted_elsewhere_without_asking_anybody() -> (
    None
):
    """Only fences say that another trainer may have it. Among hundreds of replicas, to ask all takes longer than a step."""
    third = PeerID(b"back-c")
    driver = Driver(backs=(BACK, OTHER_BACK, third))
    driver.lease(0b0001)
    driver.done()
    counted_by = [driver.done().peer]
    driver.done()
    for _ in range(2):
        driver.replace(counted_by[-1])
        counted_by.append(driver.done().peer)
        assert driver.finished() == [0]
    assert {*counted_by} == {BACK, OTHER_BACK, third}


def test_an_answer_from_before_a_fence_does_not_count() -> None:
    """The member had not yet heard of the record that fences it."""
    driver = Driver()
    driver.lease(0b0001)
    driver.done()
    ask = driver.stage_ask()
    driver.replace(ask.peer, incarnation=1)
    del driver.open[ask.call]
    driver.handle(CallAnswered(driver.now_s, ask.call, driver.index - 1, True, 2.0))
    assert driver.finished() == []
    assert 1 not in driver.trainer.journeys[0].counted


def test_an_overtaken_microbatch_is_given_up() -> None:
    driver = Driver()
    driver.lease(0b0001)
    driver.done()
    driver.fail("overtaken")
    assert driver.trainer.journeys == {}
    assert ReleaseTensors(0) in driver.effects


def test_of_a_lease_that_is_not_fresh_all_members_are_asked_first() -> None:
    driver = Driver()
    driver.lease(0b0001, fresh=False)
    asked = {ask.peer for ask in driver.open.values() if isinstance(ask, AskClaim)}
    assert asked == {FRONT, BACK, OTHER_BACK}
    ask = next(a for a in driver.open.values() if a.peer == BACK)
    del driver.open[ask.call]
    driver.handle(ClaimAnswered(driver.now_s, ask.call, 0b0001, 0, driver.index))
    driver.claimed()
    driver.claimed()
    legs = [driver.done() for _ in range(3)]
    assert [(leg.kind, leg.count) for leg in legs] == [
        ("forward", False),
        ("loss", False),  # counted by another's hand already: only its gradient is missing
        ("backward", True),
    ]


def test_a_member_that_lost_its_memory_is_asked_again_at_once() -> None:
    driver = Driver(backs=(BACK,))
    driver.lease(0b1)
    (asked,) = driver.open.values()
    driver.replace(FRONT, incarnation=2)
    (again,) = driver.open.values()
    assert (again.peer, asked.call in driver.open) == (FRONT, False)
    claiming = Driver(backs=(BACK,))
    claiming.lease(0b1, fresh=False)
    claiming.replace(BACK, incarnation=2)
    assert sorted(ask.peer for ask in claiming.open.values()) == sorted([FRONT, BACK])


def test_a_claim_waits_for_what_is_being_counted() -> None:
    driver = Driver()
    driver.lease(0b0001, fresh=False)
    for _ in range(3):
        driver.claimed(pending=0b0001)
    assert not driver.open
    driver.pass_time(1.0)
    assert len(driver.open) == 3


def test_a_claim_does_not_wait_for_members_that_are_gone() -> None:
    driver = Driver()
    driver.lease(0b0001, fresh=False)
    for peer in (FRONT, BACK):
        ask = next(a for a in driver.open.values() if a.peer == peer)
        del driver.open[ask.call]
        driver.handle(ClaimAnswered(driver.now_s, ask.call, 0, 0, driver.index))
    driver.replace(OTHER_BACK)
    assert driver.stage_ask().kind == "forward"


def test_a_newer_lease_of_what_is_held_begins_it_again_with_its_tensors() -> None:
    driver = Driver()
    driver.lease(0b0001, generation=100)
    driver.done()
    old = driver.stage_ask()
    driver.lease(0b0001, generation=200, fresh=False)
    assert CancelCall(old.call) in driver.effects
    driver.handle(CallAnswered(driver.now_s, old.call, driver.index, True, 2.0))
    for _ in range(3):
        driver.claimed()
    ask = driver.stage_ask()
    assert (ask.kind, ask.attempt) == ("loss", Attempt(driver.dealt(200), 1))


def test_a_repeated_lease_changes_nothing() -> None:
    driver = Driver()
    driver.lease(0b0001)
    before = dict(driver.open)
    driver.lease(0b0001)
    assert driver.open == before


def test_a_lease_of_another_step_is_ignored() -> None:
    driver = Driver()
    driver.handle(LeaseReceived(0.0, LEAD, Lease(5, 9, first_generation(5, 0), b"\x01", True)))
    assert driver.trainer.journeys == {}


def test_a_new_step_ends_everything() -> None:
    driver = Driver()
    driver.lease(0b0011)
    calls = list(driver.open)
    driver.index += 1
    driver.learn(step=1)
    assert {CancelCall(call) for call in calls} <= set(driver.effects)
    assert ReleaseTensors(None) in driver.effects
    assert driver.trainer.journeys == {}
    assert driver.wanted()[-1] == WorkWanted(2, 4, b"", first_generation(driver.index - 1, 0) + 100)


def test_a_held_out_microbatch_is_only_evaluated_and_its_loss_repeated_until_the_step_ends() -> (
    None
):
    driver = Driver()
    driver.lease(0b10000)
    assert [driver.done().kind for _ in range(2)] == ["forward", "evaluate"]
    evaluated = Send(LEAD, Evaluated(1, 0, 2.0))
    assert evaluated in driver.effects
    driver.effects.clear()
    driver.pass_time(1.0)
    assert evaluated in driver.effects


def test_a_trainer_for_whom_there_is_no_work_asks_rarely() -> None:
    driver = Driver()
    driver.trainer.settings = replace(driver.trainer.settings, steps=0)
    driver.effects.clear()
    for _ in range(80):
        driver.pass_time(0.1)
    assert len(driver.wanted()) == 2


def test_a_paused_trainer_that_holds_nothing_is_silent() -> None:
    driver = Driver()
    driver.trainer.paused = True
    driver.effects.clear()
    for _ in range(80):
        driver.pass_time(0.1)
    assert driver.wanted() == []
    assert driver.trainer.wake_at_s == math.inf


def test_a_node_that_leaves_gives_back_what_it_holds() -> None:
    driver = Driver()
    driver.lease(0b0001)
    for _ in range(3):
        driver.done()
    assert driver.finished() == [0]  # nobody would be dealt it as long as it is held
    driver.lease(0b0010, 101)
    (call,) = driver.open
    driver.effects.clear()
    driver.handle(NodeLeaves(driver.now_s))
    assert CancelCall(call) in driver.effects
    assert ReleaseTensors(None) in driver.effects
    assert driver.wanted() == [WorkWanted(1, 0, b"", driver.dealt(101))]
    assert driver.trainer.wake_at_s == math.inf


def test_an_older_record_is_no_news() -> None:
    """A node that was expelled starts as an outsider, and may hear of the past before the present."""
    driver = Driver()
    driver.lease(0b0001)
    driver.index -= 1
    driver.members = driver.members[:1]
    driver.learn()
    driver.done()
    assert driver.stage_ask().peer in (BACK, OTHER_BACK)


def test_work_that_another_trainer_has_by_now_is_given_up() -> None:
    driver = Driver()
    driver.lease(0b0011, generation=100)
    lost = Lease(driver.index, 1, driver.dealt(150), b"", True, lost=b"\x01")
    driver.handle(LeaseReceived(driver.now_s, LEAD, lost))
    assert list(driver.trainer.journeys) == [1]
    assert ReleaseTensors(0) in driver.effects
    assert len(driver.open) == 1


def test_what_was_leased_anew_since_is_not_given_up() -> None:
    driver = Driver()
    driver.lease(0b0001, generation=200)
    late = Lease(driver.index, 1, driver.dealt(150), b"", True, lost=b"\x01")
    driver.handle(LeaseReceived(driver.now_s, LEAD, late))
    assert list(driver.trainer.journeys) == [0]


def test_a_new_lead_is_asked_at_once() -> None:
    driver = Driver()
    driver.pass_time(0.1)
    driver.trainer.rewire(FRONT)
    driver.effects.clear()
    driver.pass_time(0.01)
    assert [e.peer for e in driver.effects if isinstance(e, Send)] == [FRONT]


def test_it_wakes_when_a_pause_ends() -> None:
    driver = Driver(backs=(BACK,))
    driver.lease(0b0001)
    driver.done()
    driver.pass_time(0.01)  # the lead has been told what we hold
    driver.fail("busy")
    wake_s = driver.trainer.wake_at_s
    assert driver.now_s < wake_s < driver.now_s + driver.trainer.settings.heartbeat_s
    driver.pass_time(wake_s - driver.now_s)
    assert driver.stage_ask().kind == "loss"


def test_a_lease_from_anybody_but_the_lead_is_ignored() -> None:
    driver = Driver()
    forged = Lease(driver.index, 1, 2**62, pack_ids(0b1111), True)
    assert driver.handle(LeaseReceived(driver.now_s, BACK, forged)) == []
    driver.lease(0b1)
    assert driver.stage_ask().attempt.generation == driver.dealt(100)


def test_a_lease_that_no_lead_can_have_dealt_is_ignored() -> None:
    """Whoever is taken for the lead: an outsider may take a liar for it (seed 265)."""
    driver = Driver()
    later = driver.index + 2**20
    for index, generation in (
        (driver.index, 2**62),
        (driver.index, first_generation(driver.index + 1, 0)),
        (driver.index, first_generation(driver.index, 0) - 1),
        (later, first_generation(later, 0)),
    ):
        forged = Lease(index, 1, generation, pack_ids(0b1111), True)
        assert driver.handle(LeaseReceived(driver.now_s, LEAD, forged)) == []
    ahead = Lease(driver.index + 1, 1, first_generation(driver.index + 1, 0), b"\x01", True)
    driver.handle(LeaseReceived(driver.now_s, LEAD, ahead))
    assert driver.stage_ask().attempt.generation == ahead.generation


def test_work_that_was_overtaken_is_not_asked_for_before_the_next_beat() -> None:
    """Somebody may have closed it for a lease that never comes: to ask at once would be to ask without end."""
    driver = Driver()
    driver.lease(0b1)
    before = len(driver.wanted())
    for _ in range(2):
        driver.done()
    driver.fail("overtaken")
    assert len(driver.wanted()) == before


def test_what_diverges_is_not_computed_again_and_again() -> None:
    """It will be the same elsewhere: nobody is asked again before a pause, and nothing is given up."""
    driver = Driver()
    driver.lease(0b0001)
    before = len(driver.effects)
    driver.fail("diverged")
    assert not [e for e in driver.effects[before:] if isinstance(e, AskStage)]
    driver.pass_time(60.0)
    assert driver.stage_ask().microbatch == 0
