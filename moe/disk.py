"""What a node of a moe run has on disk, so that a run that all its nodes leave goes on where it was.

| below `checkpoints` | |
|---|---|
| `expert+ffn.0.3/` | one expert's state: of what it hosts its own, of what others host the snapshot that it keeps, with the host's signature |
| `hosts.msgpack` | whom it has seen as host of which expert, and when last: signatures count by that |
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Final, TypeAlias

import msgpack
import trio
from torch import Tensor

from moe.info import EXPERT_PREFIX
from moe.server import Expert
from protocols.errors import RemoteProtocolError
from protocols.experts.messages import (
    HOSTS_MAX,
    Seen,
    SnapshotOffer,
    UIDText,
    signed_bytes,
)
from protocols.experts.placement import Placement
from protocols.experts.uid import ExpertUID
from protocols.frames import TensorSpec, unpack_untrusted
from protocols.ids import RunID
from protocols.ports import Signer
from protocols.schema import SchemaError, Size, decode, encode
from swarm.hosting.compute import ComputeThread
from swarm.mode import RunContext
from swarm.state.checkpoint import FOLDER, Checkpoint
from swarm.state.part import Part, PartFacts
from swarm.state.sealed import FileRefusedError, read_sealed, write_sealed
from swarm.state.snapshot import Restore, Snapshot

log = logging.getLogger(__name__)

HOSTS: Final = "hosts.msgpack"
"""Beside the checkpoints, so that it is put aside with them."""
_LOOK_S: Final = 1.0
"""Between two looks whether anything is to be written."""
_FORGET_S: Final = 300.0
"""What is not held any more stays on disk so long: who has taken it over may not have written it yet."""


@dataclass(frozen=True, slots=True)
class Held:
    """A snapshot with what its host signed."""

    offer: SnapshotOffer
    snapshot: Snapshot


@dataclass(frozen=True, slots=True)
class Restored:
    """What an earlier life of this node has left."""

    seen: Mapping[ExpertUID, Sequence[Seen]]
    held: Mapping[ExpertUID, Held]


@dataclass(frozen=True, slots=True)
class _SeenHosts:
    """One expert's line in the file `hosts.msgpack`."""

    uid: UIDText
    hosts: Annotated[tuple[Seen, ...], Size(1, HOSTS_MAX)]
    """The latest last."""


@dataclass(frozen=True, slots=True)
class _HostsFile:
    experts: tuple[_SeenHosts, ...]


def part_name(uid: ExpertUID) -> str:
    """Name an expert's state as it is now, as the service `state` and checkpoints know it."""
    return f"{EXPERT_PREFIX}{uid}"


def snapshot_name(uid: ExpertUID, epoch: int) -> str:
    """Name an expert's snapshots: two of its copies may count the same version, and never have the same epoch."""
    return f"{part_name(uid)}@{epoch}"


def part_of(expert: Expert) -> Part:
    """Return an expert as a part: its snapshot is taken on the compute thread."""
    hosted = expert.hosted

    def snapshot() -> tuple[int, Mapping[str, Tensor]]:
        return hosted.version, hosted.snapshot()

    return Part(
        part_name(expert.uid), hosted.version, snapshot, hosted.load,
        facts=lambda version: PartFacts(epoch=expert.epoch),
    )  # fmt: skip


def part_kept(uid: ExpertUID, held: Held, expected: Mapping[str, TensorSpec]) -> Part:
    """Return a snapshot that is kept for another host as a part; its tensors are made on the codec thread."""

    def facts(version: int) -> PartFacts:
        note = bytes(msgpack.packb(encode(held.offer)))
        return PartFacts(epoch=held.offer.epoch, note=note)

    return Part(
        part_name(uid), held.offer.version,
        lambda: (held.offer.version, tensors_of(held.snapshot, expected)), lambda tensors: None,
        facts=facts,
    )  # fmt: skip


def tensors_of(snapshot: Snapshot, expected: Mapping[str, TensorSpec]) -> Mapping[str, Tensor]:
    """Return the tensors of a snapshot of ours. On the codec thread."""
    restore = Restore(snapshot.manifest, dict(expected))
    for index in range(len(snapshot.manifest.chunks)):
        restore.chunk(index)[:] = snapshot.chunk(index)
    return restore.finish_untrusted()


def sign(
    signer: Signer, run: RunID, uid: ExpertUID, epoch: int, snapshot: Snapshot
) -> SnapshotOffer:
    """Sign for a state of an expert that we host."""
    version, root = snapshot.manifest.version, snapshot.manifest.root
    unsigned = SnapshotOffer(str(uid), epoch, version, root, signer.peer_id, bytes(64))
    return replace(unsigned, signature=signer.sign(signed_bytes(run, unsigned)))


Writable: TypeAlias = Mapping[ExpertUID, tuple[Part, ComputeThread]]
"""What is to be on disk, and the thread that copies it."""


class ExpertDisk:
    """Reads at the start what an earlier life has left, and writes what is held from then on."""

    def __init__(
        self, context: RunContext, codec: ComputeThread, known: Collection[ExpertUID]
    ) -> None:
        self._context = context
        self._keeper = context.keeper
        self._run = context.run.run_id
        self._codec = codec
        self._known = known
        self._path = context.folder / FOLDER / HOSTS
        self._written = -1
        """Up to which sighting the file of hosts is."""
        self._held_s: dict[ExpertUID, float] = {}
        """What is on disk: when it was last held."""

    # --- reading ---

    async def restore(self, expected: Mapping[str, TensorSpec]) -> Restored:
        """Return what is here and can be used. What cannot be is told, and the checkpoint before it used."""
        if not self._keeper.enabled:
            return Restored({}, {})
        seen = await trio.to_thread.run_sync(self._read_hosts)
        held: dict[ExpertUID, Held] = {}
        for checkpoint in await self._keeper.scan():
            uid = self._uid_of(checkpoint.manifest.part)
            if uid is None or uid in held:
                continue
            self._held_s[uid] = trio.current_time()
            tensors = await self._keeper.load(checkpoint, expected)
            if tensors is None:
                continue
            try:
                held[uid] = await self._codec.run_own(self._held, uid, checkpoint, tensors)
            except FileRefusedError as error:
                log.error("checkpoint refused: path=%s reason=%s", checkpoint.file, error)
        return Restored(seen, held)

    def _uid_of(self, part: str) -> ExpertUID | None:
        if not part.startswith(EXPERT_PREFIX):
            return None
        try:
            uid = ExpertUID.from_text(part.removeprefix(EXPERT_PREFIX))
        except ValueError:
            return None
        return uid if uid in self._known else None

    def _held(self, uid: ExpertUID, checkpoint: Checkpoint, tensors: Mapping[str, Tensor]) -> Held:
        """Make the snapshot anew; what is without a host's signature was our own. On the codec thread. Raises FileRefusedError."""
        manifest = checkpoint.manifest
        snapshot = Snapshot.of(
            tensors, part=snapshot_name(uid, manifest.epoch), version=manifest.version
        )
        if not manifest.note:
            return Held(
                sign(self._context.signer, self._run, uid, manifest.epoch, snapshot), snapshot
            )
        try:
            offer = decode(SnapshotOffer, unpack_untrusted(manifest.note_bytes))
        except (SchemaError, RemoteProtocolError) as error:
            raise FileRefusedError("its note is no host's word") from error
        of = (offer.uid, offer.age, offer.root)
        if of != (str(uid), manifest.order, snapshot.manifest.root):
            raise FileRefusedError("its host has signed for another state")
        if not self._context.verify(offer.host, signed_bytes(self._run, offer), offer.signature):
            raise FileRefusedError("its host's signature is not its host's")
        return Held(offer, snapshot)

    def _read_hosts(self) -> Mapping[ExpertUID, Sequence[Seen]]:
        """In a thread."""
        try:
            body = read_sealed(self._path, self._run)
            lines = decode(_HostsFile, body).experts if body is not None else ()
        except (FileRefusedError, SchemaError) as error:
            log.error("known hosts not used: path=%s reason=%s", self._path, error)
            return {}
        found = {ExpertUID.from_text(line.uid): line.hosts for line in lines}
        return {uid: hosts for uid, hosts in found.items() if uid in self._known}

    # --- writing ---

    async def run(self, held: Callable[[], Writable], core: Placement) -> None:
        """Write what is due, until cancelled."""
        if not self._keeper.enabled:
            return
        while True:
            await trio.sleep(_LOOK_S)
            await self.write_hosts(core)
            here = held()
            for uid, (part, thread) in here.items():
                self._held_s[uid] = trio.current_time()
                await self._keeper.offer_own(part, thread)
            await self._forget(here.keys())

    async def write_hosts(self, core: Placement) -> None:
        """Write down whom this node has seen as hosts, if that has changed. Never raises."""
        if not self._keeper.enabled or core.sightings == self._written:
            return
        self._written = core.sightings
        lines = tuple(
            _SeenHosts(str(uid), tuple(hosts)) for uid in self._known if (hosts := core.seen(uid))
        )
        try:
            await trio.to_thread.run_sync(self._write, _HostsFile(lines))
        except OSError as error:
            log.error("known hosts not written: %s", error.strerror)

    def _write(self, hosts: _HostsFile) -> None:
        """In a thread. Raises OSError."""
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_sealed(self._path, self._run, encode(hosts))

    async def _forget(self, held: Collection[ExpertUID]) -> None:
        until_s = trio.current_time() - _FORGET_S
        for uid in [u for u, at_s in self._held_s.items() if at_s < until_s and u not in held]:
            del self._held_s[uid]
            await self._keeper.forget(part_name(uid))
