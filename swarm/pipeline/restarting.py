"""The shell of `protocols.ledger.restart`: what is on this node's disk, the vote file, and the casts of `restart`."""

from __future__ import annotations

import logging
import random
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgpack
import trio

from protocols.core import Tick
from protocols.errors import RemoteProtocolError
from protocols.frames import unpack_untrusted
from protocols.ids import PeerID
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
    Vote,
    VoteWritten,
    WriteVote,
)
from protocols.ledger.restart_messages import (
    CLAIMS_MAX,
    Claim,
    RestartMessage,
    encode_restart,
)
from protocols.ledger.view import Record
from protocols.schema import SchemaError, decode, encode
from swarm.calls import Caller
from swarm.driver import Driver
from swarm.pipeline.journal import read_journal
from swarm.state.checkpoint import Checkpoint
from swarm.state.files import replacing, write_all

log = logging.getLogger(__name__)

RESTART_SERVICE: Final = "restart"
VOTE: Final = "vote.msgpack"
"""In the run's folder: what this node has promised and accepted."""


@dataclass(frozen=True, slots=True)
class FromDisk:
    """What a node comes back with."""

    disk: Disk
    checkpoints: dict[bytes, Checkpoint]
    """By the hash of the file: what a claim names."""
    steps: dict[bytes, Record]
    """By its digest, the record that committed the step of a checkpoint."""


def read_disk(folder: Path, journal: Path, checkpoints: Sequence[Checkpoint]) -> FromDisk | None:
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
    vote = _read_vote(folder / VOTE)
    newest = max(steps.values(), key=lambda record: (record.epoch, record.index))
    began: dict[int, int] = {}
    try:
        for record in read_journal(journal):
            began.setdefault(record.epoch, record.step)
            if (record.epoch, record.index) > (newest.epoch, newest.index):
                newest = record
    except (OSError, SchemaError, ValueError) as error:
        log.warning("the journal cannot be read to its end: %s", error)
    began_at = began.get(newest.epoch, newest.step) if newest.epoch else 0
    disk = Disk(newest=newest, began_at=began_at, claims=tuple(claims), vote=vote)
    return FromDisk(disk, by_root, steps)


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


def _read_vote(path: Path) -> Vote | None:
    """Return what this node has voted. One that cannot be read must not be taken for none: raises."""
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        return None
    return decode(Vote, msgpack.unpackb(raw, strict_map_key=False))


def _write_vote(path: Path, vote: Vote) -> bool:
    try:
        with replacing(path) as file:
            write_all(file, bytes(msgpack.packb(encode(vote))))
    except OSError as error:
        log.error("the vote cannot be written, so this node does not vote: %s", error.strerror)
        return False
    return True


class Restarting:
    """One node on its way back into a run of which nobody may be left.

    Args:
      begin: called once with the record by which we are a member, and the checkpoint to load.
      note: keeps a record in the journal.
    """

    def __init__(
        self,
        me: PeerID,
        incarnation: int,
        settings: LedgerSettings,
        found: FromDisk,
        caller: Caller,
        folder: Path,
        rng: random.Random,
        *,
        new_epoch: bool,
        begin: Callable[[Record, Claim], None],
        note: Callable[[Record], None],
    ) -> None:
        self.found = found
        self._caller = caller
        self._path = folder / VOTE
        self._begin = begin
        self._note = note
        self.core = Restart(
            me, incarnation, settings, found.disk, rng,
            now_s=trio.current_time(), new_epoch=new_epoch,
        )  # fmt: skip
        self._driver: Driver[Event] = Driver(
            handle=self._dispatch, wake_at_s=lambda: self.core.wake_at_s, tick=self._tick
        )
        self._votes: deque[Vote] = deque()
        self._vote_due = trio.Event()

    @property
    def mutes_ledger(self) -> bool:
        """Nobody is asked to let us in while we may be about to begin."""
        return self.core.phase is Phase.WAITING

    async def run(self) -> None:
        """Take part until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._write_votes)
            await self._driver.run()

    def heard(self, peer: PeerID, message: RestartMessage) -> None:
        self._driver.feed(Heard(trio.current_time(), peer, message))

    def in_run(self) -> None:
        """The ledger says that we are a member."""
        if self.core.phase is not Phase.DONE:
            self._driver.feed(InRun(trio.current_time()))

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
            case WriteVote(vote):
                self._votes.append(vote)
                self._vote_due.set()
            case NoteEpoch(record):
                log.warning("epoch %d began without this node: step=%d", record.epoch, record.step)
                self._note(record)
            case Begin(record, claim):
                self._begin(record, claim)
            case Join(wanted):
                log.info("joins the run that goes on" if wanted else "not let in: waits again")

    async def _write_votes(self) -> None:
        while True:
            await self._vote_due.wait()
            self._vote_due = trio.Event()
            while self._votes:
                vote = self._votes.popleft()
                ok: Any = await trio.to_thread.run_sync(_write_vote, self._path, vote)
                self._driver.feed(VoteWritten(trio.current_time(), ok))
