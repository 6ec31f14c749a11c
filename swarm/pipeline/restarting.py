"""The shell of `protocols.ledger.restart`: what is on this node's disk, the vote file, and the casts of `restart`."""

from __future__ import annotations

import dataclasses
import logging
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeAlias

import trio

from protocols.core import Tick
from protocols.errors import RemoteProtocolError
from protocols.frames import unpack_untrusted
from protocols.ids import PeerID, RunID
from protocols.ledger.epoch import shown
from protocols.ledger.events import LedgerSettings
from protocols.ledger.restart import (
    Begin,
    Disk,
    Effect,
    Event,
    Heard,
    InRun,
    Join,
    NoteEpoch,
    Phase,
    Restart,
    Tell,
    VoteWritten,
    WriteVote,
)
from protocols.ledger.restart_messages import (
    CLAIMS_MAX,
    Claim,
    RestartMessage,
    encode_restart,
)
from protocols.ledger.view import Member, Record
from protocols.schema import SchemaError, decode
from swarm.calls import Caller
from swarm.driver import Driver
from swarm.pipeline.info import JOURNAL
from swarm.pipeline.journal import read_journal
from swarm.pipeline.reuniting import RESTART_SERVICE
from swarm.pipeline.vote_file import (
    VOTE,
    Kept,
    read_vote,
    sync_file,
    write_vote,
)
from swarm.state.checkpoint import Checkpoint
from swarm.state.sealed import FileRefusedError

log = logging.getLogger(__name__)

_AGAIN_S: Final = 1.0


@dataclass(frozen=True, slots=True)
class FromDisk:
    """What a node comes back with."""

    disk: Disk
    checkpoints: dict[bytes, Checkpoint]
    """By the hash of the file: what a claim names."""
    steps: dict[bytes, Record]
    """By its digest, the record that committed the step of a checkpoint."""
    vote_problem: str = ""
    """Why this node does not vote; empty when it does."""


def read_disk(
    folder: Path, journal: Path, run: RunID, checkpoints: Sequence[Checkpoint]
) -> FromDisk | None:
    """Gather what is there; None when there is no checkpoint to go on from. In a thread: reads the whole journal.

    Args:
      checkpoints: newest first.
    """
    claims: list[Claim] = []
    by_root: dict[bytes, Checkpoint] = {}
    steps: dict[bytes, Record] = {}
    for checkpoint in checkpoints[:CLAIMS_MAX]:
        claimed = _claim(checkpoint)
        if claimed is not None:
            claim, record = claimed
            claims.append(claim)
            by_root[claim.root] = checkpoint
            steps[claim.lineage] = record
    if not claims:
        return None
    kept, problem = _kept(folder / VOTE, run)
    newest = max(steps.values(), key=lambda record: (record.epoch, record.index))
    members: dict[int, tuple[Member, ...]] = {}
    try:
        for record in read_journal(journal):
            members[record.epoch] = record.members
            if (record.epoch, record.index) > (newest.epoch, newest.index):
                newest = record
    except (OSError, SchemaError, ValueError) as error:
        log.warning("the journal cannot be read to its end: %s", error)
    before = max((epoch for epoch in members if epoch < newest.epoch), default=newest.epoch)
    disk = Disk(
        newest=newest,
        before=tuple(member.peer for member in members.get(before, ())),
        claims=tuple(claims), vote=kept.vote, may_vote=not problem,
        incarnation=kept.incarnation,
    )  # fmt: skip
    return FromDisk(disk, by_root, steps, problem)


def _kept(path: Path, run: RunID) -> tuple[Kept, str]:
    """Return what this node has voted, and why that cannot be known."""
    try:
        return read_vote(path, run), ""
    except FileRefusedError as refused:
        problem = (
            f"what this node has voted cannot be used ({path}: {refused}), so it does not vote on how the run goes on: two"
            " votes of one node could make two histories. It goes on with the others when they have agreed, and votes again"
            " after that. If they wait for a majority that cannot come, `murmura run --new-epoch` on one of them goes on"
        )
        log.error("%s", problem)
        return Kept(), problem


def _claim(checkpoint: Checkpoint) -> tuple[Claim, Record] | None:
    """Return what a checkpoint stands for; None when its manifest does not say which record made it."""
    manifest = checkpoint.manifest
    name, _, stage = manifest.part.partition("/")
    try:
        record = decode(Record, unpack_untrusted(manifest.note_bytes))
    except (RemoteProtocolError, SchemaError):
        return None
    if name != "stage" or not stage.isdecimal() or len(stage) > 4:
        return None
    if not record.commits_step or (record.epoch, record.step) != manifest.order:
        return None
    root = bytes.fromhex(manifest.sha256)
    return Claim(int(stage), record.step, record.epoch, record.digest(), root), record


@dataclass(frozen=True, slots=True)
class _Spend:
    """From here on this node is in the run: who it was while it waited is over, and a vote that cannot be read, too."""


_Write: TypeAlias = WriteVote | _Spend


class Restarting:
    """One node on its way back into a run of which nobody may be left.

    Args:
      begin: called once with the record by which we are a member, and the checkpoint to load.
      note: keeps a record in the journal.
    """

    def __init__(
        self,
        run: RunID,
        me: PeerID,
        incarnation: int,
        settings: LedgerSettings,
        found: FromDisk,
        caller: Caller,
        folder: Path,
        rng: random.Random,
        *,
        new_epoch: bool,
        gives_way: bool,
        begin: Callable[[Record, Claim], None],
        note: Callable[[Record], None],
    ) -> None:
        self.found = found
        self._caller = caller
        self._folder = folder
        self._run = run
        self._kept = Kept(incarnation=incarnation, vote=found.disk.vote)
        self._on_disk = found.disk.incarnation is not None
        """Whether a life after this one would be the same member."""
        self._begin = begin
        self._note = note
        self.core = Restart(
            me, incarnation, settings, found.disk, rng,
            now_s=trio.current_time(), new_epoch=new_epoch, gives_way=gives_way,
        )  # fmt: skip
        self._driver: Driver[Event] = Driver(
            handle=self._dispatch, wake_at_s=lambda: self.core.wake_at_s, tick=self._tick
        )
        self._send, self._writes = trio.open_memory_channel[_Write](math.inf)
        self._writing = trio.Lock()
        self._is_in_run = False

    @property
    def mutes_ledger(self) -> bool:
        """Nobody is asked to let us in while we may be about to begin."""
        return self.core.phase is Phase.WAITING

    @property
    def problem(self) -> str:
        """Why this node does not vote, while that matters."""
        return self.found.vote_problem if self.core.phase is not Phase.DONE else ""

    async def run(self) -> None:
        """Take part until cancelled."""
        if not self.found.vote_problem:
            # Before anybody hears it. On a full disk a node takes part as well, and is somebody else the next time.
            await self._write(self._kept)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._write_what_is_due)
            await self._driver.run()

    def heard(self, peer: PeerID, message: RestartMessage) -> None:
        self._driver.feed(Heard(trio.current_time(), peer, message))

    def in_run(self) -> None:
        """The ledger says that we are a member."""
        if self.core.phase is not Phase.DONE:
            self._driver.feed(InRun(trio.current_time()))
        if not self._is_in_run:
            self._is_in_run = True
            self._send.send_nowait(_Spend())

    async def begins(self) -> None:
        """Return when the disk says that this member has begun: in another life we are another one."""
        if self.found.vote_problem:
            return  # nothing of this life is on the disk, and what cannot be read stays until the journal has the record
        await self._spend()

    async def _spend(self) -> None:
        """Have it on disk that whom we waited as is over; when the disk is full, wait until it is not."""
        self._kept = dataclasses.replace(self._kept, incarnation=None)
        while self._on_disk:
            if await self._write(self._kept):
                return
            await trio.sleep(_AGAIN_S)

    def _tick(self, now_s: float) -> None:
        if now_s >= self.core.wake_at_s:
            self._driver.feed(Tick(now_s))

    def _dispatch(self, event: Event) -> None:
        for effect in self.core.handle(event):
            self._do(effect)

    def _do(self, effect: Effect) -> None:
        match effect:
            case Tell(peer, message):
                self._caller.cast_nowait(peer, RESTART_SERVICE, encode_restart(message))
            case WriteVote():
                self._send.send_nowait(effect)
            case NoteEpoch(record):
                epoch = shown(record.epoch)
                log.warning("epoch %s began without this node: step=%d", epoch, record.step)
                self._note(record)
            case Begin(record, claim):
                self._begin(record, claim)
            case Join(wanted):
                log.info("joins the run that goes on" if wanted else "not let in: waits again")

    async def _write_what_is_due(self) -> None:
        async for what in self._writes:
            if isinstance(what, _Spend):
                await self._forget_waiting()
                continue
            kept = dataclasses.replace(self._kept, vote=what.vote)
            ok = await self._write(kept)
            if ok:
                self._kept = dataclasses.replace(self._kept, vote=what.vote)
            self._driver.feed(VoteWritten(trio.current_time(), ok))

    async def _forget_waiting(self) -> None:
        """The journal has the record by which we are in the run. That makes history of a vote that cannot be read."""
        if self.found.vote_problem:
            await trio.to_thread.run_sync(sync_file, self._folder / JOURNAL)
            self._on_disk = True
        await self._spend()

    async def _write(self, kept: Kept) -> bool:
        path = self._folder / VOTE
        async with self._writing:
            ok = await trio.to_thread.run_sync(write_vote, path, self._run, kept)
        self._on_disk = self._on_disk or ok
        return ok
