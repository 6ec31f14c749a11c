"""Nodes that hold a pipeline between them, on disks that outlive them, and a model of the run that they are in.

The model stands where the ledger is: records are decided by a quorum of members that the lead reaches, in one history. It
takes newcomers in, gives up members that are silent, and lets go those that leave.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence

from protocols.ids import PeerID
from protocols.ledger.epoch import history_of, shown
from protocols.ledger.events import LedgerSettings
from protocols.ledger.restart import _voters
from protocols.ledger.view import Ballot, Member, Record, StageCommit, is_of_history
from tests.sim.engine.checker import Checker
from tests.sim.engine.world import World
from tests.sim.restart.disk import holders
from tests.sim.restart.faults import RestartFaults, RestartInjector
from tests.sim.restart.notes import Decided
from tests.sim.restart.peer import RestartPeer

_SILENT_TICKS = 3
_SECOND_LOOK_S = 90.0
"""A person who sees that nothing happens starts all nodes once more."""


class RestartWorld(World[RestartPeer]):
    """One run, replayable from its seed.

    Args:
      replicas: of each stage, at the beginning.
      every: steps between checkpoints.
    """

    unit = "members"
    faults: RestartFaults

    def __init__(
        self,
        seed: int,
        faults: RestartFaults,
        *,
        stages: int,
        replicas: int,
        every: int,
        scale: float,
        delay_s: float,
        detailed: bool,
        checkers: Sequence[type[Checker]],
    ) -> None:
        super().__init__(
            seed, faults, scale=scale, delay_s=delay_s, announce_s=20.0, detailed=detailed,
            checkers=checkers,
        )  # fmt: skip
        self.stages = stages
        self.every = every
        self.settings = LedgerSettings(
            stages=stages, microbatches=4, steps=1 << 40, silence_s=2.0 * scale
        )
        self._model_rng = random.Random(f"run/{seed}")
        self._incarnations = 0
        self.heads: dict[int, Record] = {}
        """Epoch -> its newest record."""
        self.histories: dict[int, list[Record]] = {0: []}
        """Epoch -> the step records that it stands on, oldest first."""
        self.decided: dict[bytes, int] = {}
        """Digest of all records that there ever were -> epoch."""
        self._silent: dict[tuple[int, PeerID], int] = {}
        self._looks = 0
        self.operator_spoke = False
        """Somebody was told to begin an epoch without a majority."""
        self.populate(stages * replicas)
        self._first_record(stages)

    def next_incarnation(self) -> int:
        self._incarnations += 1
        return self._incarnations

    def make_peer(self, peer_id: PeerID, index: int | None) -> RestartPeer:
        return RestartPeer(self, peer_id)

    def plan_faults(self, until_s: float) -> None:
        RestartInjector(self, until_s).plan()

    def described(self) -> str:
        return f"stages: {self.stages}, a checkpoint every {self.every} steps"

    # --- the model of the run ---

    def _first_record(self, stages: int) -> None:
        order = sorted(self.peers)
        members = tuple(Member(peer, 0, k % stages, 0) for k, peer in enumerate(order))
        self._founders = Record(index=0, step=0, lead=order[0], members=members)

    def begin(self) -> None:
        super().begin()
        founders = self._founders
        members = tuple(
            Member(m.peer, self.peers[m.peer].incarnation, m.stage, 0) for m in founders.members
        )
        first = Record(index=0, step=0, lead=founders.lead, members=members)
        self.heads[0] = first
        self.decided[first.digest()] = 0
        for member in members:
            peer = self.peers[member.peer]
            peer.wants_in = False
            peer.learn(first)
        self._tick()

    def begun(self, peer: RestartPeer, record: Record) -> None:
        """A core says that an epoch begins: what the run stands on is what came before its step."""
        self.noted(record)
        if record.epoch not in self.heads:
            self.heads[record.epoch] = record
            self.log(f"epoch {shown(record.epoch)} begins at step {record.step}: {peer.name}")

    def noted(self, record: Record) -> None:
        """A core says that this record begins an epoch, whether or not anybody goes on from it."""
        if record.epoch not in self.histories:
            self.histories[record.epoch] = self.before(record)
            self.decided[record.digest()] = record.epoch

    def before(self, first: Record) -> list[Record]:
        """Return the step records on which an epoch stands that begins with this record."""
        known = self.histories[self.decided[first.previous]]
        return [found for found in known if found.step <= first.step]

    @property
    def head(self) -> Record:
        """The newest record of the run that most are in."""
        return max(self.heads.values(), key=lambda head: (len(self._there(head)), head.epoch))

    def goes_on_at(self, peer: RestartPeer) -> bool:
        """Tell whether this peer's run can decide something, as far as it is concerned."""
        head = self.heads.get(peer.running.epoch) if peer.running is not None else None
        there = self._there(head) if head is not None else []
        return head is not None and peer in there and self._is_quorum(head, there)

    def _is_quorum(self, head: Record, there: Sequence[RestartPeer]) -> bool:
        return bool(head.members) and head.view.is_quorum({peer.peer_id for peer in there})

    def _tick(self) -> None:
        """Every epoch's members decide what they can: in an old one that is nothing, if the core is right."""
        for epoch in sorted(self.heads):
            self._decide(epoch)
        for peer in self.peers.values():
            if peer.up and not peer.stopped:
                peer.look_for_others()
        if self.healed_s is not None:
            self.advanced()
        self.clock.after(self.scaled(0.5), self._tick)

    def _decide(self, epoch: int) -> None:
        head = self.heads[epoch]
        there = self._there(head)
        if not self._is_quorum(head, there):
            return
        stages = {member.stage for member in head.members if self.peers[member.peer] in there}
        for peer in there:
            if peer.running is not head:
                peer.learn(head)
        self._tell_given_up(head, there[0])
        record = self._changed_members(head, there) or self._stepped(head, stages)
        if record is None:
            return
        for peer in there:
            self.watch.see(peer, Decided(record))
            break
        self.heads[epoch] = record
        self.decided[record.digest()] = record.epoch
        if record.commits_step:
            self.histories[epoch].append(record)
        self._tell(record, there)

    def _tell_given_up(self, head: Record, first: RestartPeer) -> None:
        """Who was given up while it was silent finds that out, and comes in as a newcomer."""
        for peer in self.peers.values():
            member = head.view.find(peer.peer_id)
            named = member is not None and member.incarnation == peer.incarnation
            if not peer.up or peer.running is None or named or not self._both_ways(first, peer):
                continue
            if is_of_history(head, peer.running.epoch, 0) and peer.running.epoch <= head.epoch:
                peer.running, peer.wants_in = None, True

    def _there(self, head: Record) -> list[RestartPeer]:
        """Return the members that run in this epoch and reach the first of them, both ways."""
        up = [
            peer
            for member in head.members
            if (peer := self.peers[member.peer]).up
            and not peer.stopped
            and peer.incarnation == member.incarnation
            and peer.running is not None
            and peer.running.epoch == head.epoch
        ]
        best: list[RestartPeer] = []
        for first in up:
            reached = [peer for peer in up if peer is first or self._both_ways(first, peer)]
            if len(reached) > len(best):
                best = reached
        return best

    def _both_ways(self, a: RestartPeer, b: RestartPeer) -> bool:
        reaches = self.network.reaches
        return reaches(a.peer_id, b.peer_id) and reaches(b.peer_id, a.peer_id)

    def _stepped(self, head: Record, stages: set[int]) -> Record | None:
        if len(stages) < self.stages:
            return None
        ballot = Ballot(1, head.lead)
        commits = tuple(StageCommit(bytes([stage]) * 32, 1.0) for stage in range(self.stages))
        return Record(
            index=head.index + 1, epoch=head.epoch, forks=head.forks, began=head.began, step=head.step + 1, lead=head.lead,
            members=head.members, reduced_at=ballot, stages=commits, previous=head.digest(),
        )  # fmt: skip

    def _changed_members(self, head: Record, there: Sequence[RestartPeer]) -> Record | None:
        """Give up the silent, let go those that leave, take in who wants in; None when nobody comes or goes."""
        here = {peer.peer_id for peer in there}
        index = head.index + 1
        gone, let_go = set(), set()
        for member in head.members:
            peer = self.peers[member.peer]
            absent = member.peer not in here
            key = head.epoch, member.peer
            self._silent[key] = self._silent.get(key, 0) + 1 if absent else 0
            if self._silent[key] > _SILENT_TICKS:
                gone.add(member.peer)
            elif peer.draining and not absent:
                let_go.add(member.peer)
        kept = [m for m in head.members if m.peer not in gone | let_go]
        staying = {m.stage for m in kept if m.peer in here}
        if staying != set(range(self.stages)):  # the last holder of a stage stays
            all_leave = all(self.peers[m.peer].draining for m in head.members)
            kept, gone = ([], gone) if all_leave else (list(head.members), set())
            let_go = {m.peer for m in head.members} if all_leave else set()
        came = self._newcomers(head, there, {m.peer for m in kept}) if kept else []
        for peer in came:
            counts = [sum(m.stage == stage for m in kept) for stage in range(self.stages)]
            kept.append(Member(peer.peer_id, peer.incarnation, counts.index(min(counts)), index))
        if not came and not gone and not let_go:
            return None
        members = tuple(sorted(kept, key=lambda member: member.peer))
        able = [m.peer for m in members if m.peer in here]
        lead = head.lead if head.lead in able or not able else able[0]
        return Record(
            index=index, epoch=head.epoch, forks=head.forks, began=head.began, step=head.step, lead=lead, members=members,
            let_go=tuple(sorted(let_go)), previous=head.digest(),
        )  # fmt: skip

    def _newcomers(
        self, head: Record, there: Sequence[RestartPeer], members: set[PeerID]
    ) -> Sequence[RestartPeer]:
        return [
            peer
            for peer in self.peers.values()
            if peer.up
            and peer.wants_in
            and peer.wants_history in (None, history_of(head.epoch))
            and not peer.stopped
            and not peer.draining
            and peer.peer_id not in members
            and self._both_ways(there[0], peer)
        ]

    def _tell(self, record: Record, there: Sequence[RestartPeer]) -> None:
        """Those who decided know it, and those who came in; who was let go ends."""
        for member in record.members:
            peer = self.peers[member.peer]
            if peer in there or (peer.wants_in and peer.incarnation == member.incarnation):
                peer.wants_in = False
                peer.learn(record)
                if record.commits_step and record.step % self.every == 0:
                    peer.checkpoint(record, member.stage)
        for peer_id in record.let_go:
            peer = self.peers[peer_id]
            if peer.up and peer.draining:
                peer.learn(record)
                peer.let_go()

    # --- what a healed run shall reach ---

    def mend(self) -> None:
        """A person looks after it: starts what is down, and all anew where the members that run are too few to decide."""
        for peer in self.peers.values():
            if peer.draining:
                peer.draining = peer.comes_back = False
                peer.crash()
        for peer in self.peers.values():
            if not peer.up and not peer.left:
                peer.restart(keeps_state=True)
        if not self._goes_on():
            self._all_anew()
        # Who is named may leave for good before it has begun: the others then want a person.
        self.clock.after(self.scaled(_SECOND_LOOK_S), self._look_after)

    def _look_after(self) -> None:
        if not self._goes_on():
            self._all_anew()
            return
        # The run goes on without some, which wait for others of an earlier one.
        aside = [peer for peer in self.peers.values() if peer.up and not self.goes_on_at(peer)]
        if not any(peer.waits for peer in aside):
            return
        self._looks += 1
        chosen = next((p for p in aside if p.core and p.peer_id in p.core.members), None)
        if chosen is not None and self._looks == 1:
            self.log(f"new epoch at {chosen.name}, which waits")
            chosen.new_epoch = self.operator_spoke = True
        for peer in aside:
            peer.crash()
            # Told to go on without the others; or else to forget what it has, and to join.
            peer.restart(keeps_state=self._looks == 1)
        self.clock.after(self.scaled(_SECOND_LOOK_S / 2), self._look_after)

    def _goes_on(self) -> bool:
        there = {peer.peer_id for peer in self._there(self.head)}
        stages = {m.stage for m in self.head.members if m.peer in there}
        return bool(there) and self.head.view.is_quorum(there) and stages == set(range(self.stages))

    def _all_anew(self) -> None:
        self.log("all anew")
        for peer in self.peers.values():
            if not peer.left:
                peer.crash()
        back = [peer for peer in self.peers.values() if not peer.left]
        newest = self._newest_on_disk()
        if newest is not None:
            voters = _voters(newest)
            there = {p.peer_id for p in back if p.disk.found() is not None}
            if not voters.is_quorum({p for p in there if not self.peers[p].disk.damaged}):
                chosen = next((p for p in back if p.peer_id in there and p.peer_id in voters), None)
                if chosen is not None:
                    self.log(f"new epoch at {chosen.name}")
                    chosen.new_epoch = self.operator_spoke = True
        for peer in back:
            peer.restart(keeps_state=True)

    def _newest_on_disk(self) -> Record | None:
        newest = [
            peer.disk.newest
            for peer in self.peers.values()
            if not peer.left and peer.disk.newest is not None and peer.disk.claims
        ]
        return max(newest, key=lambda record: (record.epoch, record.index), default=None)

    def expected(self) -> int:
        return sum(peer.up and not peer.draining for peer in self.peers.values())

    @property
    def progress(self) -> int:
        """Members of the newest epoch that can go on."""
        if not self._goes_on():
            return 0
        return sum(peer in self._there(self.head) for peer in self.peers.values())

    def _know_each_other(self) -> bool:
        """Tell whether of all runs that go on somebody was in a run with the others: only then may they meet."""
        heads = [h for h in self.heads.values() if self._is_quorum(h, self._there(h))]
        return all(
            not a.forks or any(peer in fork.absent for fork in a.forks for peer in b.view)
            for a, b in itertools.permutations(heads, 2)
        )

    def lost(self) -> str | None:
        if not self._know_each_other():
            return "two histories, and nobody is left who was in a run with both"
        newest = self._newest_on_disk()
        if newest is None:
            return "every disk is empty"
        voters = _voters(newest)
        disks = {
            peer.peer_id: peer.disk
            for peer in self.peers.values()
            if not peer.left and peer.up and peer.peer_id in voters
        }
        whole = [r for r in self.histories[newest.epoch] if len(holders(disks, r)) == self.stages]
        if not whole:
            return "no step is complete among the disks that are left"
        return None


def draw_world(
    seed: int, *, detailed: bool = False, checkers: Sequence[type[Checker]] = ()
) -> RestartWorld:
    """Draw sizes, pace and faults of the standard mix."""
    rng = random.Random(f"options/{seed}")
    return RestartWorld(
        seed,
        RestartFaults.draw(seed),
        stages=rng.choice((1, 2, 2, 3)),
        replicas=rng.choice((2, 2, 3)),
        every=rng.choice((1, 3, 10)),
        scale=rng.choice((1.0, 1.0, 4.0)),
        delay_s=rng.choice((0.001, 0.01, 0.05, 0.15)),
        detailed=detailed,
        checkers=checkers,
    )
