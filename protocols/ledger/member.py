"""Agreement on records: one peer's part in it, as outsider, member, candidate or lead.

Rules of this file:
  - A record is decided by single-decree Paxos among the members that the record before it names (Lamport, "Paxos Made
    Simple", 2001): ballots, promises, accepts. The lead named in record n owns ballot round 0 of record n + 1 and so
    needs no promises; anybody who suspects it takes a higher round.
  - A step record is proposed only when every member holds the reduced gradient of its stage, so whoever is a member
    after it can apply it.
  - All messages may be lost, late, repeated or reordered. Late ones are answered with the records the sender lacks.
  - A member takes records only from members, and asks them when somebody the directory names claims to know more.
    An outsider takes them from those the directory names, and from whom these point to as the lead.

    outsider --record admits us--> member --suspects the lead--> candidate --quorum promised--> lead
        ^                            |  ^---------a record is learned-------------'               |
        '---expelled, missed a step--'                                                            '--> member
"""

from __future__ import annotations

import math
import random
from typing import Final, assert_never

from protocols.core import Blame, ContactsFound, DrainWanted, PeerDown, Received, Send, Tick
from protocols.ids import PeerID
from protocols.ledger.candidacy import Candidacy, inherited
from protocols.ledger.events import (
    Admitted,
    ApplyStep,
    DiscardGradient,
    Effect,
    Event,
    Expelled,
    FetchFailed,
    Heard,
    Learned,
    LedgerSettings,
    OfferState,
    ReduceFailed,
    ReduceFinished,
    Spread,
    StateLoaded,
    TallyChanged,
)
from protocols.ledger.gossip import Gossip
from protocols.ledger.grants import Grant
from protocols.ledger.history import History
from protocols.ledger.lead import Lead, LeadMessage
from protocols.ledger.leases import first_generation
from protocols.ledger.messages import (
    Accept,
    Accepted,
    Evaluated,
    Heartbeat,
    HeldState,
    JoinWanted,
    Lease,
    Message,
    Prepare,
    Promise,
    Records,
    RecordsWanted,
    Reduce,
    Reduced,
    ReduceStuck,
    Refused,
    Rumour,
    TallyReport,
    WorkWanted,
)
from protocols.ledger.pulse import Pulse
from protocols.ledger.reducing import Reducing
from protocols.ledger.tally import Refusal, Tally
from protocols.ledger.view import (
    ROUND_MAX,
    Ballot,
    Member,
    Record,
    View,
    coverage_problem,
    membership_problem,
    pack_ids,
    shape_problem,
    unpack_ids,
)

NO_MAJORITY: Final = "no majority"
_CONTACTS_MAX: Final = 256
_ANYBODY_SENDS: Final = (JoinWanted, WorkWanted, Evaluated, RecordsWanted, Records)
"""No sign of life of a member: a node that lost its memory sends them too, and its former self is dead."""
_FEW_MEMBERS: Final = 3
_BEHIND_SILENCES: Final = 4
"""A member that cannot get the records it lacks for this many `silence_s` gives up its place and joins anew."""


class Ledger:
    """One node's side of the step ledger.

    Args:
      me: our PeerID.
      incarnation: random; a restarted node must not be taken for its former self.
      rng: breaks symmetry between candidates; seeded by the simulator.
      founder: create the run: we are its only member, hosting `stage` (or stage 0).
      holds: the committed state this node still has from before it was expelled.
      begins_with: the first record of an epoch that was agreed on without a ledger (protocols.ledger.restart).
      observer: never ask to join; follow the records, as the trainer of a node that hosts nothing needs.
    """

    def __init__(
        self,
        me: PeerID,
        incarnation: int,
        settings: LedgerSettings,
        rng: random.Random,
        *,
        founder: bool = False,
        begins_with: Record | None = None,
        observer: bool = False,
        stage: int | None = None,
        holds: HeldState | None = None,
        now_s: float = 0.0,
    ) -> None:
        self.me = me
        self.incarnation = incarnation
        self.settings = settings
        self.wanted_stage = stage
        self.observer = observer
        self.holds = holds
        self.record: Record | None = None
        self.view = View(())
        self.member: Member | None = None
        """Our own entry in the newest view we know; None as an outsider."""
        self.tally = Tally(1, settings.microbatches)
        self.lead: Lead | None = None
        self.synced = False
        self.leaving = False
        self.asked_to_stay = False
        """We want to leave, but hold what nobody else has yet: go on serving."""
        self.broken = False
        self.expelled: str | None = None
        self.waiting_because = ""
        self._rng = rng
        self._pulse = Pulse(settings.silence_s)
        self._history = History()
        self._digest = b""
        self._promised = Ballot(0, me)
        self._accepted_at: Ballot | None = None
        self._accepted: Record | None = None
        self._candidacy = self._new_candidacy()
        self._reducing = Reducing()
        self._behind_since_s = -math.inf
        self._claimants: set[PeerID] = set()
        """Who says, since then, that there are records we lack."""
        self._early: tuple[PeerID, Reduce] | None = None
        """What we are asked to reduce after a record that we have not learned yet; most often it is on its way."""
        self._leads: set[PeerID] = set()
        """Who has led in this step, by a record or by a ballot that we follow: whose leases entitle."""
        self._followed_s: dict[PeerID, float] = {}
        """While somebody says that there are later records: when members reported to us, as the lead, that they know of none."""
        self._asked_around_s = now_s
        self._contacts: tuple[PeerID, ...] = ()
        self._gossip = Gossip(settings.silence_s / 2)
        self._pointed_to: PeerID | None = None
        self._redirected_s = -math.inf
        self._next_contact = 0
        self._next_beat_s = now_s
        self._startup: list[Effect] = []
        if founder:
            self.synced = True
            genesis = Record(
                index=0,
                step=settings.first_step,
                lead=me,
                members=(Member(me, incarnation, stage or 0, 0),),
            )
            self._startup = self._learn(now_s, genesis)
        elif begins_with is not None:
            self._startup = self._learn(now_s, begins_with)

    def _new_candidacy(self) -> Candidacy:
        return Candidacy(self.me, self.settings, self._pulse, self._rng)

    # --- what the shell asks ---

    @property
    def lead_peer(self) -> PeerID | None:
        """Who leads the next record, as far as we know."""
        return self._promised.peer if self.record is not None else None

    @property
    def lacks_majority(self) -> bool:
        """Tell whether we are a member that can decide nothing, since too few others answer."""
        if self.member is None:
            return False
        if self.lead is not None:
            return self.lead.heard_too_few
        return self.waiting_because.startswith(NO_MAJORITY)

    @property
    def wake_at_s(self) -> float:
        """When the next Tick is due."""
        return self._next_beat_s

    def knows(self, peer: PeerID) -> bool:
        """Tell whether this peer is a member, or one that an outsider listens to: whom records may come from."""
        return self._is_contact(peer) or peer in self.view or peer == self._pointed_to

    def _is_contact(self, peer: PeerID) -> bool:
        return peer in self._contacts or peer in self._gossip.spreaders

    def why_not_entitled(self, grant: Grant, ids: int) -> Refusal | None:
        """Say why a grant, whose signature is valid, does not entitle to have these counted, settled or claimed here.

        Only asked about the step that is counted now.
        """
        assert self.record is not None
        if ids & ~unpack_ids(grant.ids):
            return Refusal("bad-request", "that is not in the lease")
        if grant.lead in self._leads:
            return None
        if grant.generation >= first_generation(self.record.index, self._promised.round):
            # Dealt since, perhaps by a lead that we have not heard of yet.
            return Refusal("step-ahead", "the lead of that lease is not known here yet", 0.05)
        return Refusal("overtaken", "the lead of that lease leads no more, and never did here")

    def start(self) -> list[Effect]:
        """Return the effects of having been created; call once."""
        effects, self._startup = self._startup, []
        return effects

    def handle(self, event: Event) -> list[Effect]:
        """Take one event; return what to do, in order."""
        if self.expelled is not None:
            return []
        match event:
            case Received():
                return self._received(event.now_s, event.peer, event.message)
            case Tick():
                return self._tick(event.now_s)
            case PeerDown():
                return self._peer_down(event.now_s, event.peer)
            case ContactsFound():
                self._contacts = event.peers[:_CONTACTS_MAX]
                return []
            case Heard():
                return self._hear(event.now_s, event.peer, event.rumour)
            case TallyChanged():
                self.broken = self.broken or event.broken
                return self._report()
            case ReduceFinished():
                reduced = self._reducing.finished(event)
                return [Send(event.ballot.peer, reduced)] if reduced is not None else []
            case ReduceFailed():
                return self._reduce_failed(event)
            case StateLoaded():
                self.synced = True
                return self._report()
            case FetchFailed():
                self.broken = self.broken or not self.synced
                return self._report()
            case DrainWanted():
                self.leaving = True
                return self._report()
            case _:
                assert_never(event)

    # --- messages ---

    def _received(self, now_s: float, peer: PeerID, message: Message) -> list[Effect]:
        if not isinstance(message, _ANYBODY_SENDS):
            self._pulse.heard(now_s, peer)
        match message:
            case Records():
                return self._records(now_s, peer, message)
            case RecordsWanted():
                return self._records_for(peer, message.first)
            case Heartbeat():
                return self._heartbeat(now_s, peer, message)
            case Lease():
                return []  # for the trainer of this node; the shell routes it there
            case JoinWanted() | WorkWanted() | Evaluated() | TallyReport():
                return self._for_the_lead(now_s, peer, message)
            case (
                Prepare()
                | Promise()
                | Reduce()
                | Reduced()
                | ReduceStuck()
                | Accept()
                | Accepted()
                | Refused()
            ):
                return self._about_next_record(now_s, peer, message)
            case _:
                assert_never(message)

    def _about_next_record(
        self,
        now_s: float,
        peer: PeerID,
        message: Prepare | Promise | Reduce | Reduced | ReduceStuck | Accept | Accepted | Refused,
    ) -> list[Effect]:
        """Messages that decide record n + 1: only among members, only about that record."""
        if self.record is None or self.member is None:
            return self._asked_as_outsider(peer, message.index)
        if message.index > self.record.index + 1:
            if isinstance(message, Reduce) and peer in self.view:
                self._early = peer, message
            return self._fall_behind(now_s, peer)
        if message.index <= self.record.index:
            # A late answer needs no reply; a late question comes from someone who lacks the record.
            asks = isinstance(message, Prepare | Reduce | Accept)
            return self._records_for(peer, message.index) if asks else []
        if peer not in self.view or message.ballot.round > ROUND_MAX:
            return []
        match message:
            case Prepare():
                return self._prepare(peer, message)
            case Promise():
                return self._promise(now_s, peer, message)
            case Reduce():
                return self._reduce(peer, message)
            case Accept():
                return self._accept(peer, message)
            case Refused():
                return self._refused(now_s, message)
            case Reduced() | ReduceStuck() | Accepted():
                return self._to_lead(now_s, peer, message)

    def _asked_as_outsider(self, peer: PeerID, index: int) -> list[Effect]:
        """Somebody takes us for a member. It may lack a record that we know, or we one that makes us a member."""
        if self.record is not None and index <= self.record.index:
            return self._records_for(peer, index)
        return [Send(peer, RecordsWanted(max(0, index - 1)))] if self.knows(peer) else []

    def _for_the_lead(
        self, now_s: float, peer: PeerID, message: JoinWanted | WorkWanted | Evaluated | TallyReport
    ) -> list[Effect]:
        if self.record is None or self.member is None:
            return []
        if self.lead is None:
            if isinstance(message, JoinWanted) and peer in self.view:
                return self._notice_join(now_s, peer, message)
            return self._point_to_lead(peer)
        effects: list[Effect] = []
        if isinstance(message, TallyReport) and message.index < self.record.index:
            effects = self._records_for(peer, message.index + 1)
        elif self._claimants and peer in self.view:
            self._followed_s[peer] = now_s
        return effects + self._to_lead(now_s, peer, message)

    def _notice_join(self, now_s: float, peer: PeerID, message: JoinWanted) -> list[Effect]:
        """A member asks to join: it does not know that it is one, or it is the lead and has lost its memory."""
        known = self.view.find(peer)
        assert known is not None
        assert self.record is not None
        if known.incarnation == message.incarnation:
            return self._records_for(peer, self.record.index)
        if peer == self._promised.peer:
            return self._peer_down(now_s, peer)
        return self._point_to_lead(peer)

    def _point_to_lead(self, peer: PeerID) -> list[Effect]:
        """Redirect, unless we are only a candidate ourselves, or the asker is the one we would name."""
        assert self.record is not None
        if self._promised.peer in (self.me, peer):
            return []
        return [Send(peer, Heartbeat(self.record.index, self._digest, self._promised))]

    def _to_lead(self, now_s: float, peer: PeerID, message: LeadMessage) -> list[Effect]:
        """Let our lead half take a message, and learn the record it may decide by it."""
        if self.lead is None:
            return []
        effects = self.lead.received(now_s, peer, message)
        return effects + self._after_lead(now_s)

    def _after_lead(self, now_s: float) -> list[Effect]:
        """Learn what our lead half has decided, and tell it."""
        assert self.lead is not None
        if not self.lead.calm:  # what it has asked for may have to be repeated
            again_s = min(self.lead.wake_at_s, now_s + self.settings.heartbeat_s)
            self._next_beat_s = min(self._next_beat_s, again_s)
        decided = self.lead.take_decided()
        if decided is None:
            return []
        if self.record is None or decided.members != self.record.members:
            self._gossip.members_changed(decided.index)
        audience = self.lead.audience(decided)
        news = Records((decided,), decided.index)
        effects = self._learn(now_s, decided)
        effects += [Send(peer, news) for peer in audience if peer != self.me]
        return effects + self._spread(now_s)

    def _spread(self, now_s: float) -> list[Effect]:
        rumour = self._gossip.due(now_s)
        return [Spread(rumour)] if rumour is not None else []

    def _hear(self, now_s: float, peer: PeerID, rumour: Rumour) -> list[Effect]:
        """Somebody says that there is a record we may lack: a member asks those who can vouch for it, an outsider that one."""
        if self.record is not None and rumour.index <= self.record.index:
            return []
        self._gossip.remember(peer)
        if self.member is not None:
            return self._fall_behind(now_s, peer)
        if now_s < self._asked_around_s + self.settings.heartbeat_s:
            return []
        self._asked_around_s = now_s
        return [Send(peer, RecordsWanted(rumour.index))]

    # --- records ---

    def _records_for(self, peer: PeerID, first: int) -> list[Effect]:
        answer = self._history.answer(first)
        return [Send(peer, answer)] if answer is not None else []

    def _records(self, now_s: float, peer: PeerID, message: Records) -> list[Effect]:
        if self.member is None:
            return self._records_as_outsider(now_s, peer, message) if self.knows(peer) else []
        assert self.record is not None
        if peer not in self.view:
            return self._fall_behind(now_s, peer) if message.newest > self.record.index else []
        effects: list[Effect] = []
        for record in message.records:
            if record.index <= self.record.index:
                continue
            if record.index > self.record.index + 1:
                break
            if record.previous != self._digest:
                return [*effects, Blame(peer, "its history differs from ours")]
            effects += self._learn(now_s, record)
            if self.expelled is not None:
                return effects
        if message.newest > self.record.index:
            effects += self._fall_behind(now_s, peer, cut=message.cut)
        return effects

    def _records_as_outsider(self, now_s: float, peer: PeerID, message: Records) -> list[Effect]:
        """Any newer record is news; one that admits this incarnation makes us a member, and ends the reading."""
        effects: list[Effect] = []
        for record in message.records:
            problem = self._why_not_ours(record)
            if problem is not None or record.step > self.settings.steps:
                return [*effects, Blame(peer, problem or "its record is past the end of the run")]
            if self.record is None or record.index > self.record.index:
                effects += self._learn(now_s, record)
                if self.member is not None:
                    break
        return effects

    def _fall_behind(self, now_s: float, peer: PeerID, *, cut: bool = False) -> list[Effect]:
        """Somebody knows records that we lack: ask for them, those who can vouch for them if it cannot."""
        assert self.record is not None
        wanted = RecordsWanted(self.record.index + 1)
        if peer in self.view:
            self._claim(now_s, peer)
            if not cut:
                return [Send(peer, wanted)]
        elif not (self._is_contact(peer) and self._could_decide_without_us()):
            return []
        if now_s < self._asked_around_s + self.settings.heartbeat_s:
            return []
        self._asked_around_s = now_s
        others = [m.peer for m in self.view.members if m.peer not in (self.me, peer)]
        if peer in self._contacts and self._hears_nobody(now_s):
            self._claim(now_s, peer)  # no member is left to ask: perhaps the stranger is right
        return [Send(p, wanted) for p in self._rng.sample(others, min(3, len(others)))]

    def _claim(self, now_s: float, peer: PeerID) -> None:
        """Note that somebody who may well know says that there are records we lack."""
        if not self._claimants:
            self._behind_since_s = now_s
        self._claimants.add(peer)

    def _hears_nobody(self, now_s: float) -> bool:
        return all(self._pulse.suspects(now_s, peer) for peer in self.view if peer != self.me)

    def _could_decide_without_us(self) -> bool:
        """Tell whether there can be records that we had no part in: else who claims to know some lies."""
        return self.view.is_quorum([peer for peer in self.view if peer != self.me])

    def _learn(self, now_s: float, record: Record) -> list[Effect]:
        """Take a decided record: leave, apply, admit, discard, as it says."""
        before, last = self.member, self.record
        effects: list[Effect] = [Learned(record)]
        if before is not None and record.commits_step:
            if self._holds_gradient_of(record, before.stage):
                effects.append(ApplyStep(record))
            elif self.me in record.view:
                return [*effects, *self._expel("did not reduce a step that was committed")]
        self._adopt(now_s, record)
        member = self.member
        if member is None:
            if before is None:
                return effects
            if self.me in record.let_go:
                return [*effects, *self._expel("left", let_go=True)]
            return [*effects, *self._expel("the other members went on without this node")]
        admitted = before is None or before.stage != member.stage
        effects += self._open_tally(record, member, admitted=admitted)
        joined = self.view.newcomers(member.stage, record.index)
        newcomers = tuple(peer for peer in joined if peer != self.me)
        if newcomers and record.step > self.settings.first_step and self.synced and not admitted:
            effects.append(OfferState(record.step, newcomers))
        if record.lead == self.me:
            return effects + self._go_on_leading(now_s, record)
        self.lead = None
        early, self._early = self._early, None
        if early is not None and early[1].index == record.index + 1:
            # The others would wait for us until the lead asks again.
            return effects + self._about_next_record(now_s, *early)
        same_lead = last is not None and last.lead == record.lead
        if same_lead and not record.commits_step and member == before and not self.leaving:
            return effects  # it knows what we have counted, and asks again with its next heartbeat
        return effects + self._report()

    def _adopt(self, now_s: float, record: Record) -> None:
        self.record = record
        self.view = record.view
        found = self.view.find(self.me)
        self.member = found if found is not None and found.incarnation == self.incarnation else None
        if record.commits_step:
            self._leads.clear()
        self._leads.add(record.lead)
        self._history.add(record)
        self._digest = record.digest()
        self._promised = Ballot(0, record.lead)
        self._accepted_at = self._accepted = None
        self._candidacy = self._new_candidacy()
        self._reducing = Reducing()
        self._claimants.clear()
        self._followed_s.clear()
        if self.member is not None:
            self._gossip.forget()
        self.asked_to_stay = False
        self.waiting_because = ""
        self._pulse.watch(now_s, [record.lead])

    def _open_tally(self, record: Record, member: Member, *, admitted: bool) -> list[Effect]:
        """Count on, or from zero: in a new step, as a newcomer, or fenced."""
        fenced = member.since == record.index and not admitted
        effects: list[Effect] = []
        if admitted or record.step + 1 != self.tally.step:
            self.tally = Tally(record.step + 1, self.settings.microbatches)
            self.broken = False
        elif fenced:
            self.tally.fence()
            self.broken = False
            effects.append(DiscardGradient())
        self.tally.frozen = False
        if admitted and record.index > 0:
            present = HeldState(member.stage, record.step, record.epoch)
            self.synced = record.step == self.settings.first_step or self.holds == present
            self.holds = None  # from here on the state we had is the stage's, or is given up
        if (admitted and record.index > 0) or (fenced and not self.synced):
            replicas = self.view.replicas(member.stage)
            donors = tuple(m.peer for m in replicas if m.since < record.index)
            effects.append(Admitted(record, member.stage, donors, self.synced))
        return effects

    def _go_on_leading(self, now_s: float, record: Record) -> list[Effect]:
        inherits_work = self.lead is None and not record.commits_step
        if self.lead is None:
            self.lead = Lead(self.me, self.settings, self._pulse)
        effects = self.lead.begin(
            now_s,
            record,
            self.view,
            self._digest,
            self._promised,
            elected=inherits_work and record.index > 0,
        )
        return effects + self._to_lead(now_s, self.me, self._tally_report())

    def _expel(self, reason: str, *, let_go: bool = False) -> list[Effect]:
        self.expelled = reason
        self.lead = None
        return [Expelled(reason, let_go)]

    # --- member ---

    def _tally_report(self) -> TallyReport:
        assert self.record is not None
        return TallyReport(
            self.record.index,
            self.tally.step,
            pack_ids(self.tally.counted),
            synced=self.synced,
            leaving=self.leaving,
            broken=self.broken,
        )

    def _report(self) -> list[Effect]:
        """Tell the lead what we have counted."""
        if self.member is None or self.lead_peer is None:
            return []
        return [Send(self.lead_peer, self._tally_report())]

    def _heartbeat(self, now_s: float, peer: PeerID, message: Heartbeat) -> list[Effect]:
        if self.record is None or self.member is None:
            return self._heartbeat_as_outsider(now_s, peer, message)
        if message.index > self.record.index:
            return self._fall_behind(now_s, peer)
        if message.index < self.record.index:
            return self._records_for(peer, message.index + 1)
        if message.digest != self._digest:
            return [Blame(peer, "its history differs from ours")]
        if peer not in self.view or message.ballot.round > ROUND_MAX:
            return []
        if peer != message.ballot.peer:
            return []  # that somebody else leads, that one says itself
        if message.ballot > self._promised:
            self._follow(message.ballot)
        if message.ballot == self._promised:
            self._claimants.clear()  # our lead knows of nothing newer
            self._candidacy.calm()
            self._pulse.set_pace(now_s, message.pace)
            self.asked_to_stay = message.stay
            return self._report()
        return []

    def _heartbeat_as_outsider(
        self, now_s: float, peer: PeerID, message: Heartbeat
    ) -> list[Effect]:
        if not self.knows(peer):
            return []
        self._pointed_to = message.ballot.peer
        if self.record is None or self.record.index < message.index:
            return [Send(peer, RecordsWanted(message.index))]
        if self.record.index == message.index and message.ballot > self._promised:
            self._promised = message.ballot
        if message.ballot.peer == peer or self.observer or self.leaving:
            return []
        # Two that do not lead may each take the other for the lead: to follow both would never end.
        if now_s < self._redirected_s + self.settings.heartbeat_s / 2:
            return []
        self._redirected_s = now_s
        return [Send(message.ballot.peer, self._join_wanted())]

    def _follow(self, ballot: Ballot) -> None:
        """Promise a ballot: nothing below it is accepted any more."""
        self._promised = ballot
        self._leads.add(ballot.peer)
        self._candidacy.saw(ballot)
        if ballot.peer != self.me:
            self.lead = None
            self._candidacy.withdraw()

    def _prepare(self, peer: PeerID, message: Prepare) -> list[Effect]:
        if message.ballot.peer != peer:
            return [Blame(peer, "asked for a promise to somebody else's ballot")]
        if message.ballot < self._promised:
            return [Send(peer, Refused(message.index, message.ballot, self._promised, "promised"))]
        self._follow(message.ballot)
        promise = Promise(
            message.index, message.ballot, self._accepted_at, self._accepted, self._tally_report()
        )
        return [Send(peer, promise)]

    def _reduce(self, peer: PeerID, message: Reduce) -> list[Effect]:
        assert self.member is not None
        if message.ballot < self._promised or message.ballot.peer != peer:
            refusal = Refused(message.index, message.ballot, self._promised, "promised")
            return [Send(peer, refusal)]
        self._follow(message.ballot)
        answer = self._reducing.answer_to(message.ballot)
        if answer is not None:
            return [Send(peer, answer)]
        if self._reducing.is_asked(message.ballot):
            return []
        start = self._reducing.start(message, self.me, self.member.stage, self.view, self.tally)
        # When the lead had an older report of ours, the present one makes it ask again.
        return [start] if start is not None else self._report()

    def _reduce_failed(self, event: ReduceFailed) -> list[Effect]:
        if not self._reducing.failed(event):
            return []
        return [Send(event.ballot.peer, ReduceStuck(event.index, event.ballot, event.peer))]

    def _accept(self, peer: PeerID, message: Accept) -> list[Effect]:
        refusal = self._why_not_accept(peer, message)
        if refusal is not None:
            answer = Refused(message.index, message.ballot, self._promised, refusal[:200])
            return [Send(peer, answer)]
        self._follow(message.ballot)
        self._accepted_at, self._accepted = message.ballot, message.record
        return [Send(peer, Accepted(message.index, message.ballot))]

    def _why_not_accept(self, peer: PeerID, message: Accept) -> str | None:
        """Check a proposed record against what we know ourselves."""
        assert self.record is not None
        record = message.record
        if message.ballot < self._promised:
            return "promised"
        if message.ballot.peer != peer:
            return "not your ballot"
        if record.index != self.record.index + 1 or record.previous != self._digest:
            return "the record does not follow ours"
        ours = self.record
        if (record.epoch, record.forks, record.began) != (ours.epoch, ours.forks, ours.began):
            return "the epoch is another one"
        if record.step != self.record.step + (1 if record.commits_step else 0):
            return "the step does not follow ours"
        problem = self._why_not_after(record)
        if problem is None and record.commits_step:
            problem = self._why_not_commit(record)
        return problem

    def _why_not_ours(self, record: Record) -> str | None:
        """Check what anybody can, whatever came before."""
        if b"" not in record.verdicts:
            record.verdicts[b""] = shape_problem(record, stages=self.settings.stages)
        return record.verdicts[b""]

    def _why_not_after(self, record: Record) -> str | None:
        """Check what every member checks alike: who the members are, and that a step counts everything once."""
        if self._digest not in record.verdicts:
            stages = self.settings.stages
            problem = membership_problem(record, self.view, stages=stages)
            if problem is None and record.commits_step:
                problem = coverage_problem(
                    record, self.view, microbatches=self.settings.microbatches, stages=stages
                )
            record.verdicts[self._digest] = problem
        return record.verdicts[self._digest]

    def _why_not_commit(self, record: Record) -> str | None:
        """Check that our own part of a step is as we counted it, and that we could apply it."""
        assert self.member is not None
        if record.counted.get(self.me, 0) != self.tally.counted:
            return "this member has counted something else"
        if not self._holds_gradient_of(record, self.member.stage):
            return "this member has not reduced that step"
        return None

    def _holds_gradient_of(self, record: Record, stage: int) -> bool:
        return stage < len(record.stages) and self._reducing.holds(
            record.stages[stage].gradient_hash
        )

    # --- candidate ---

    def _peer_down(self, now_s: float, peer: PeerID) -> list[Effect]:
        self._pulse.down(peer)
        if self.lead is not None:
            return self.lead.peer_down(now_s, peer) + self._after_lead(now_s)
        return self._maybe_stand(now_s)

    def _maybe_stand(self, now_s: float) -> list[Effect]:
        """Stand for lead when the present one is suspected, after a delay that grows with our rank."""
        if self.record is None or self.member is None or self.lead is not None:
            return []
        if not self._candidacy.is_due(now_s, self._promised.peer, self.view):
            if self._candidacy.stand_at_s is not None:
                self._next_beat_s = min(self._next_beat_s, self._candidacy.stand_at_s)
            return []
        ballot = self._candidacy.stand(now_s, self._promised)
        index = self.record.index + 1
        asks: list[Effect] = [
            Send(m.peer, Prepare(index, ballot)) for m in self.view.members if m.peer != self.me
        ]
        self._promised = ballot
        self._leads.add(self.me)
        own = Promise(index, ballot, self._accepted_at, self._accepted, self._tally_report())
        return asks + self._promise(now_s, self.me, own)

    def _promise(self, now_s: float, peer: PeerID, message: Promise) -> list[Effect]:
        if self.record is None or self.lead is not None:
            return []
        if message.ballot != self._candidacy.ballot:
            return []
        promises = self._candidacy.promised(peer, message, self.view)
        if promises is None:
            missing = self._candidacy.missing(self.view)
            self.waiting_because = (
                f"{NO_MAJORITY}: {missing} of {len(self.view)} members do not answer"
            )
            return []
        self.waiting_because = ""
        self.lead = Lead(self.me, self.settings, self._pulse)
        effects = self.lead.begin(
            now_s,
            self.record,
            self.view,
            self._digest,
            message.ballot,
            elected=True,
            inherited=inherited(promises),
        )
        for promiser, promise in promises.items():
            effects += self.lead.received(now_s, promiser, promise.report)
        effects += self.lead.took_over(now_s)
        return effects + self._after_lead(now_s)

    def _refused(self, now_s: float, message: Refused) -> list[Effect]:
        if message.promised.round > ROUND_MAX:
            return []
        self._candidacy.saw(message.promised)
        ours = self.lead.ballot if self.lead is not None else self._candidacy.ballot
        if ours is None or message.ballot != ours or message.promised <= ours:
            return []
        self.lead = None
        self._candidacy.retry_later(now_s)
        self._promised = max(self._promised, message.promised)
        return []

    # --- time ---

    def _tick(self, now_s: float) -> list[Effect]:
        self._pulse.look(now_s)
        if now_s < self._next_beat_s:
            return []
        self._next_beat_s = now_s + self.settings.heartbeat_s
        if self.record is None or self.member is None:
            return self._knock(now_s)
        # Hearts beat so slowly while there is nothing to do that looking half as often as they beat sees each in time.
        self._next_beat_s = now_s + self.settings.heartbeat_s * max(1, self._pulse.pace // 2)
        if self._is_left_behind(now_s):
            return self._expel("missed more records than members keep")
        if self.lead is not None:
            self.asked_to_stay = self.lead.must_stay(self.me)
            return self.lead.tick(now_s) + self._after_lead(now_s) + self._spread(now_s)
        return self._maybe_stand(now_s)

    def _is_left_behind(self, now_s: float) -> bool:
        """Tell whether others went on without us, and nobody can tell us how.

        One member's claim is not enough for that where others could make it, too; nor is any while a quorum follows us, or
        (`_heartbeat`) while the lead that we follow makes none.
        """
        long_s = _BEHIND_SILENCES * self.settings.silence_s
        if not self._claimants or now_s - self._behind_since_s <= long_s:
            return False
        others = self.view.members if len(self.view) > _FEW_MEMBERS else ()
        could_say_so = [
            m.peer
            for m in others
            if m.peer not in (self.me, *self._claimants)
            and self._pulse.silence(now_s, m.peer) < long_s
        ]
        if could_say_so and len(self._claimants) < 2:
            return False
        lately_s = now_s - self._pulse.silence_s * self._pulse.pace
        followers = {peer for peer, at_s in self._followed_s.items() if at_s >= lately_s}
        return not self.view.is_quorum({self.me, *followers})

    def _join_wanted(self) -> JoinWanted:
        return JoinWanted(self.incarnation, self.wanted_stage, self.holds)

    def _knock(self, now_s: float) -> list[Effect]:
        """As an outsider, ask the next contact to admit us; as an observer, to name the lead."""
        if self.leaving and self.holds is None:
            return []
        knows_lead = self.record is not None and not self._pulse.suspects(
            now_s, self._promised.peer
        )
        if self.observer and knows_lead:
            return []
        contacts = dict.fromkeys((*self._gossip.spreaders, *self._contacts))
        contacts.pop(self.me, None)
        if not contacts:
            self.waiting_because = "knows no member of the run yet"
            return []
        self.waiting_because = "looking for the lead" if self.observer else "asking to join"
        self._next_contact = (self._next_contact + 1) % len(contacts)
        step = self.record.step + 1 if self.record is not None else 0
        question = WorkWanted(step, 0, b"") if self.observer else self._join_wanted()
        return [Send(list(contacts)[self._next_contact], question)]
