"""One round, as one member of its group sees it: which vectors count is agreed on, whoever vanishes.

The rule. A group has n members and never gets others. An **attempt** has a number and one owner, who alone may begin it: the
meeting place owns attempt 1, and the members own 2, 3, ... in PeerID order, again and again. In an attempt the members named in
its Begin exchange vectors. Whoever holds the whole mean says Have to all. **What more than n / 2 members say Have to, in one
attempt, counts, and nothing else ever does**: everybody finishes with that exchange, over its members.

When a member does not deliver, whoever misses it says Trouble to all, and the owner of the next attempt takes over (when it
is lost as well, the one after it). It sends Prepare; a member's Promise not to say Have in an earlier attempt any more
carries what the member holds. With the promises of more than n / 2 the owner decides:
  - somebody has said Have before: the result of the last attempt in which anybody did is taken over, because it may count
    already. Who lacks it fetches it from those who hold it;
  - nobody has, but somebody holds a whole mean: it is taken over, because that is cheaper than exchanging again;
  - else those who promised exchange anew, without those in trouble. Whoever is left out still gets the mean.
This is Paxos (Lamport 1998) with one change: to accept a value, a member must hold it. So two results of one round never both
count; half of a group, or more, that vanishes or is cut off costs the round, which then changes nothing at those left. Of a
group of two both must stay. A member that says Have to two results can still split a round: that is for verified rounds.

A member that lies about results is noticed when hashes of parts differ: then whoever owned that part is in trouble, and the
exchange begins anew without it. A member that accuses others falsely costs attempts, and is left out itself when it is in
trouble with more than one.

| state | waits for | ends |
|---|---|---|
| agreed | Begin or Prepare; repeats Agree | after a while: the member looks for another group |
| begun | the mean, more than n / 2 Have | finished; or given up: too few are left, too many attempts, too late |
| ended | answers with what it holds | everybody holds the mean, or a while passed |
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final, TypeAlias, assert_never

from protocols.averaging.attempts import can_be, is_sound, well_formed, what_to_begin
from protocols.averaging.events import (
    AveragingEffect,
    FetchMean,
    StartExchange,
)
from protocols.averaging.messages import (
    Agree,
    Begin,
    Form,
    Have,
    Leaving,
    Member,
    Prepare,
    Promise,
    Result,
    RoundMessage,
    Trouble,
)
from protocols.averaging.settings import AveragingSpec
from protocols.core import Blame, Send
from protocols.errors import LocalProtocolError
from protocols.ids import PeerID

Effects: TypeAlias = list[AveragingEffect]
_ATTEMPTS_OF_TIME: Final = 3
"""A round may take as long as so many exchanges."""


@dataclass(slots=True)
class _Proposal:
    """An attempt of ours."""

    attempt: int
    until_s: float
    promises: dict[int, Promise] = field(default_factory=dict)
    begin: Begin | None = None
    asked_again: bool = False


class Round:
    """A member's part in one round.

    Args:
      limit_s: what an exchange may take.
    """

    def __init__(
        self,
        now_s: float,
        own: PeerID,
        spec: AveragingSpec,
        form: Form,
        meeting: PeerID,
        round_id: bytes,
        *,
        limit_s: float,
    ) -> None:
        self.form = form
        self.meeting = meeting
        self.round_id = round_id
        self._spec = spec
        self.limit_s = limit_s
        self._peers = [member.peer for member in form.members]
        self._index = {peer: index for index, peer in enumerate(self._peers)}
        self._own = self._index[own]
        self._quorum = len(self._peers) // 2 + 1
        self.begun_s: float | None = None
        self.finished: Result | None = None
        """What counts, once it is known and held here."""
        self.given_up: str | None = None
        """Why the round is over without a result."""
        self.attempts = 0
        self._attempt = 0
        """The newest that has begun here."""
        self._promised = 0
        """We say Have in no attempt before this one."""
        self._begin: Begin | None = None
        self._groups: dict[int, tuple[int, ...]] = {}
        """Of the exchanges that were begun here."""
        self._held: Result | None = None
        self._accepted = 0
        """The last attempt in which we said Have, to `_held`."""
        self._fetching: Result | None = None
        self._decided: Result | None = None
        self._haves: dict[int, dict[int, Result]] = {}
        self._holders: dict[int, Result] = {}
        self._troubles: set[tuple[int, int]] = set()
        """(who misses something, from whom)."""
        self._dead: set[int] = set()
        self._left: set[int] = set()
        self._proposal: _Proposal | None = None
        self._awaited = 0
        """The attempt whose owner should act."""
        self._resend_at_s = now_s + self._pause_s
        self._act_at_s = now_s + 3 * spec.answer_s
        self._end_at_s = math.inf

    # --- for the core ---

    @property
    def wake_at_s(self) -> float:
        """When it wants its next tick, as long as it is not over."""
        return min(self._resend_at_s, self._act_at_s, self._end_at_s)

    @property
    def over(self) -> bool:
        return self.finished is not None or self.given_up is not None

    @property
    def all_hold(self) -> bool:
        """Whether every member that is left holds what counts: nobody will ask us for it."""
        held = {index for index, result in self._holders.items() if result == self.finished}
        return held | self._left | {self._own} == set(range(len(self._peers)))

    def members_of(self, group: Iterable[int]) -> tuple[Member, ...]:
        return tuple(self.form.members[index] for index in group)

    @property
    def left_out(self) -> tuple[PeerID, ...]:
        """Members whose vectors do not count."""
        assert self.finished is not None
        return tuple(p for index, p in enumerate(self._peers) if index not in self.finished.group)

    @property
    def _pause_s(self) -> float:
        return self._spec.answer_s / 3

    def agree(self) -> Effects:
        """Say to the meeting place that we take part."""
        return [Send(self.meeting, Agree(self.round_id))]

    def leave(self, reason: str) -> Effects:
        """Take no part any more."""
        self.given_up = reason
        return self._tell(Leaving(self.round_id))

    # --- what comes ---

    def receive(self, now_s: float, peer: PeerID, message: RoundMessage) -> Effects:
        """Take a message about this round."""
        if isinstance(message, Begin):
            return self._receive_begin(now_s, peer, message)
        sender = self._index.get(peer)
        if sender is None:
            return [Blame(peer, "speaks in a group that it is not in")]
        if self.given_up is not None:
            return [Send(peer, Leaving(self.round_id))] if isinstance(message, Prepare) else []
        self._dead.discard(sender)
        match message:
            case Have():
                return self._receive_have(now_s, sender, message)
            case Trouble():
                return self._receive_trouble(now_s, sender, message)
            case Prepare():
                return self._receive_prepare(now_s, sender, message)
            case Promise():
                return self._receive_promise(now_s, sender, message)
            case Leaving():
                return self._receive_leaving(now_s, sender)
            case _:
                assert_never(message)

    def _owner(self, attempt: int) -> PeerID:
        return self.meeting if attempt == 1 else self._peers[(attempt - 2) % len(self._peers)]

    def _receive_begin(self, now_s: float, peer: PeerID, begin: Begin) -> Effects:
        if self._owner(begin.attempt) != peer or not well_formed(
            begin, len(self._peers), self._quorum
        ):
            return [Blame(peer, "began an attempt that is not its own, or makes no sense")]
        stale = begin.attempt < self._promised or begin.attempt <= self._attempt
        if stale or self.given_up is not None:
            return []
        if self.finished is not None and begin.result != self.finished:
            return []
        return self._enter(now_s, begin)

    def _enter(self, now_s: float, begin: Begin) -> Effects:
        """Take part in an attempt."""
        self._begin_round(now_s)
        self._begin = begin
        self._attempt = self._promised = begin.attempt
        self.attempts += 1
        self._awaited = 0
        self._act_at_s = now_s + self.limit_s + 2 * self._pause_s
        if begin.result is not None:
            if begin.result == self._held:
                return self._accept(now_s)
            return self._fetch(begin.result, begin.holders)
        self._groups[begin.attempt] = begin.group
        if self._own not in begin.group or self.finished is not None:
            return []
        self._fetching = None
        return [
            StartExchange(
                self.round_id,
                begin.attempt,
                self.form.key,
                self.form.version,
                self.members_of(begin.group),
                self.limit_s,
            )
        ]

    def _begin_round(self, now_s: float) -> None:
        if self.begun_s is None:
            self.begun_s = now_s
            self._end_at_s = now_s + _ATTEMPTS_OF_TIME * self.limit_s + 4 * self._spec.answer_s

    def _fetch(self, result: Result, holders: Iterable[int]) -> Effects:
        """Get a mean from those who hold it."""
        usable = [
            index
            for index in holders
            if index != self._own
            and index not in self._left
            and (self._own, index) not in self._troubles
        ]
        if self._fetching == result or not usable:
            return []
        self._fetching = result
        return [
            FetchMean(
                self.round_id,
                result.exchange,
                self.form.key,
                self.form.version,
                self.members_of(result.group),
                result.digests,
                tuple(self._peers[index] for index in usable),
                self.limit_s,
            )
        ]

    # --- holding, and agreeing ---

    def mean_ready(self, now_s: float, exchange: int, digests: tuple[bytes, ...]) -> Effects:
        """The shell holds the whole mean of an exchange, and no other from now on."""
        fetched = self._fetching
        if fetched is not None and (fetched.exchange, fetched.digests) == (exchange, digests):
            result = fetched
        elif exchange in self._groups:
            result = Result(exchange, self._groups[exchange], digests)
        else:
            raise LocalProtocolError(f"a mean of exchange {exchange}, which was not asked for")
        if self.over:
            return []
        self._fetching = None
        if result != self._held:
            # What we said Have to before was overtaken: an exchange begins anew only when nothing counts yet.
            self._held, self._accepted = result, 0
        effects: Effects = []
        begin = self._begin
        if begin is not None and self._promised == begin.attempt:
            wanted = begin.attempt if begin.result is None else begin.result
            if wanted in (result, result.exchange):
                effects = self._accept(now_s)
        return effects + self._settle(now_s)

    def _accept(self, now_s: float) -> Effects:
        """Say Have to what we hold."""
        assert self._held is not None
        self._accepted = self._attempt
        self._haves.setdefault(self._attempt, {})[self._own] = self._held
        have = Have(self.round_id, self._attempt, self._held)
        self._resend_at_s = now_s + self._pause_s
        return [*self._tell(have), *self._settle(now_s)]

    def _receive_have(self, now_s: float, sender: int, have: Have) -> Effects:
        possible = can_be(have.result, have.attempt, len(self._peers), self._quorum)
        if have.attempt > self._attempts_end or not possible:
            return [Blame(self._peers[sender], "holds what nobody can")]
        self._begin_round(now_s)
        self._haves.setdefault(have.attempt, {})[sender] = have.result
        self._holders[sender] = have.result
        if self.finished is not None:
            known = have.result == self.finished and have.attempt == self._accepted
            return [] if known else self._answer(sender)
        effects: Effects = []
        for owner in self._liars(have.result):
            effects += self._in_trouble(now_s, owner)
        begin = self._begin
        if begin is not None and begin.result is None and self._own not in begin.group:
            # We were left out, and they are done: whatever we do not hear of soon we have to ask for.
            self._act_at_s = min(self._act_at_s, now_s + self._spec.answer_s)
        return effects + self._settle(now_s)

    def _answer(self, sender: int) -> Effects:
        """Tell who lags behind what we said Have to."""
        assert self._held is not None
        have = Have(self.round_id, max(1, self._accepted), self._held)
        return [Send(self._peers[sender], have)] if self._accepted else []

    def _liars(self, other: Result) -> list[int]:
        """Return who gave different sums to two members: each part has one owner."""
        mine = self._held
        if mine is None or mine.exchange != other.exchange or mine.group != other.group:
            return []
        pairs = zip(mine.group, mine.digests, other.digests, strict=False)
        return [owner for owner, ours, theirs in pairs if ours != theirs and owner != self._own]

    def _settle(self, now_s: float) -> Effects:
        """See whether something counts by now."""
        if self.over:
            return []
        for haves in self._haves.values():
            result, count = Counter(haves.values()).most_common(1)[0]
            if count >= self._quorum:
                self._decided = result
        if self._decided is None:
            return []
        if self._held == self._decided:
            self.finished = self._held
            return []
        return self._fetch(self._decided, self._holding(self._decided))

    def _holding(self, result: Result) -> list[int]:
        return sorted(index for index, held in self._holders.items() if held == result)

    # --- trouble ---

    @property
    def _attempts_end(self) -> int:
        """No attempt has a number beyond this: each owner may pass over all the others."""
        return 1 + self._spec.attempts_max * len(self._peers)

    def failed(self, now_s: float, exchange: int, peer: PeerID) -> Effects:
        """The shell cannot finish an exchange, or fetch its mean, because of this member."""
        index = self._index[peer]
        if index == self._own:
            return self.leave("this node is too slow")
        fetching = self._fetching
        if fetching is not None and fetching.exchange == exchange:
            self._fetching = None
        elif exchange != self._attempt:
            return []
        return self._in_trouble(now_s, index)

    def _in_trouble(self, now_s: float, accused: int) -> Effects:
        if self.over or (self._own, accused) in self._troubles:
            return []
        self._troubles.add((self._own, accused))
        if self._decided is not None:
            return self._settle(now_s)
        effects = self._tell(Trouble(self.round_id, max(1, self._attempt), accused))
        if self._promised <= self._attempt:  # else the next attempt is on its way
            effects += self._go_on(now_s)
        return effects

    def _receive_trouble(self, now_s: float, sender: int, trouble: Trouble) -> Effects:
        if trouble.accused >= len(self._peers) or trouble.accused == sender:
            return [Blame(self._peers[sender], "accuses nobody")]
        self._begin_round(now_s)
        self._troubles.add((sender, trouble.accused))
        if self.finished is not None:
            return self._answer(sender)
        handled = trouble.attempt < max(1, self._attempt) or self._promised > self._attempt > 0
        if handled or self._decided is not None:
            return []
        return self._go_on(now_s)

    def lose(self, now_s: float, peer: PeerID) -> Effects:
        """The transport lost a member: nobody waits for it to take over."""
        index = self._index.get(peer)
        if index is None or self.over:
            return []
        self._dead.add(index)
        if self._awaited and self._owner(self._awaited) == peer:
            return self._go_on(now_s)
        return self._conclude_if_all(now_s)

    def _receive_leaving(self, now_s: float, sender: int) -> Effects:
        self._left.add(sender)
        self._dead.add(sender)
        if self.over:
            return []
        if len(self._peers) - len(self._left) < self._quorum:
            return self.leave("too few members are left")
        effects = self._conclude_if_all(now_s)
        waits = self._begin is not None and self._begin.result is None and self._held is None
        if waits and self._begin is not None and sender in self._begin.group:
            effects += self._in_trouble(now_s, sender)
        return effects

    def _go_on(self, now_s: float) -> Effects:
        """Have the next attempt begin: by us, or by whoever owns it."""
        proposal = self._proposal
        newest = max(self._promised, self._attempt, 1)
        if proposal is not None and proposal.begin is None and proposal.attempt == newest:
            return []  # ours is on its way
        attempt = newest + 1
        while self._index[self._owner(attempt)] in self._dead - {self._own}:
            attempt += 1
        if attempt > self._attempts_end or self.attempts >= self._spec.attempts_max:
            return self.leave("too many attempts")
        if self._owner(attempt) == self._peers[self._own]:
            return self._propose(now_s, attempt)
        if attempt != self._awaited:
            self._awaited = attempt
            self._act_at_s = now_s + self._spec.answer_s
        return []

    # --- attempts of ours ---

    def _propose(self, now_s: float, attempt: int) -> Effects:
        self._promised = attempt
        self._awaited = 0
        self._proposal = _Proposal(attempt, now_s + self._spec.answer_s)
        self._proposal.promises[self._own] = self._promise(attempt)
        self._act_at_s = self._proposal.until_s
        self._resend_at_s = now_s + self._pause_s
        return self._tell(Prepare(self.round_id, attempt))

    def _promise(self, attempt: int) -> Promise:
        return Promise(self.round_id, attempt, self._accepted, self._held)

    def _receive_prepare(self, now_s: float, sender: int, prepare: Prepare) -> Effects:
        if self._owner(prepare.attempt) != self._peers[sender] or prepare.attempt == 1:
            return [Blame(self._peers[sender], "prepares an attempt that is not its own")]
        if prepare.attempt > self._attempts_end:
            return [Blame(self._peers[sender], "prepares too many attempts")]
        if prepare.attempt < self._promised or prepare.attempt == self._attempt:
            return []
        self._begin_round(now_s)
        self._promised = prepare.attempt
        self._awaited = prepare.attempt
        self._act_at_s = now_s + 2 * self._spec.answer_s
        self._resend_at_s = now_s + self._pause_s
        return [Send(self._peers[sender], self._promise(prepare.attempt))]

    def _receive_promise(self, now_s: float, sender: int, promise: Promise) -> Effects:
        proposal = self._proposal
        if proposal is None or promise.attempt != proposal.attempt:
            return []
        if not is_sound(promise, len(self._peers), self._quorum):
            return [Blame(self._peers[sender], "promises what makes no sense")]
        if proposal.begin is not None:
            return [Send(self._peers[sender], proposal.begin)]  # it did not hear of it
        proposal.promises[sender] = promise
        return self._conclude_if_all(now_s)

    def _conclude_if_all(self, now_s: float) -> Effects:
        """Begin our attempt as soon as everybody that lives has promised."""
        proposal = self._proposal
        if proposal is None or proposal.begin is not None or proposal.attempt < self._promised:
            return []
        waited_for = set(range(len(self._peers))) - self._dead - proposal.promises.keys()
        if waited_for or len(proposal.promises) < self._quorum:
            return []
        return self._conclude(now_s, proposal)

    def _conclude(self, now_s: float, proposal: _Proposal) -> Effects:
        """Decide what our attempt is about, from the promises of more than half."""
        begin = what_to_begin(
            self.round_id,
            proposal.attempt,
            proposal.promises,
            members=len(self._peers),
            quorum=self._quorum,
            troubles=self._troubles,
        )
        if isinstance(begin, str):
            return self.leave(begin)
        proposal.begin = begin
        return [*self._tell(begin), *self._enter(now_s, begin)]

    # --- time ---

    def tick(self, now_s: float) -> Effects:
        """Repeat what may be lost, and go on without who does not act. Not called once it is over."""
        if now_s >= self._end_at_s:
            return self.leave("it took too long")
        effects: Effects = []
        if now_s >= self._resend_at_s:
            self._resend_at_s = now_s + self._pause_s
            effects += self._again()
        if now_s >= self._act_at_s:
            effects += self._act(now_s)
        return effects

    def _again(self) -> Effects:
        if self.begun_s is None:
            return self.agree()
        proposal = self._proposal
        if proposal is not None and proposal.begin is None and proposal.attempt == self._promised:
            missing = set(range(len(self._peers))) - proposal.promises.keys() - self._left
            prepare = Prepare(self.round_id, proposal.attempt)
            return [Send(self._peers[index], prepare) for index in sorted(missing)]
        if self._promised > self._attempt and self._owner(self._promised) in self._index:
            return [Send(self._owner(self._promised), self._promise(self._promised))]
        if self._accepted and self._held is not None:
            return self._tell(Have(self.round_id, self._accepted, self._held))
        return []

    def _act(self, now_s: float) -> Effects:
        """Waiting was in vain: take the next way."""
        if self.begun_s is None:
            return self.leave("the group never began")
        self._act_at_s = now_s + self._spec.answer_s
        proposal = self._proposal
        if proposal is not None and proposal.begin is None and proposal.attempt == self._promised:
            if len(proposal.promises) >= self._quorum:
                return self._conclude(now_s, proposal)
            if proposal.asked_again:
                return self.leave("too few members answer")
            proposal.asked_again = True
            return []
        if self._decided is not None:
            return self._settle(now_s)  # a fetch on its way goes on: the shell bounds it
        if self._awaited:
            self._dead.add(self._index[self._owner(self._awaited)])
        return self._go_on(now_s)

    def _tell(self, message: RoundMessage) -> Effects:
        """Send to all other members."""
        return [Send(p, message) for i, p in enumerate(self._peers) if i != self._own]
