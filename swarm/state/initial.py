"""The initial state of a part of a run that goes on from another run's checkpoint (`[start]`).

Atoms are named by parameter and moment, so parts can be made of the files of other parts, such as stages of another split. A
node takes them from its disk; what is not there it fetches from members that have it. The list of files counts once it has the hash
that the run names, and a file once it has the hash that the list names, so nobody need be trusted.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import trio
from torch import Tensor

from protocols.errors import RemoteProtocolError
from protocols.frames import TensorSpec
from protocols.ids import PeerID, RunID
from protocols.run import StartSpec, start_digest
from protocols.schema import encode
from protocols.state_calls import STATE_SERVICE
from swarm.calls import CALL_FAILURES, Answer, Caller, Incoming
from swarm.endpoints import Endpoint
from swarm.hosting.compute import ComputeThread
from swarm.hosting.module import STEP
from swarm.state.checkpoint import Checkpoint, CheckpointRefusedError, delete
from swarm.state.checkpoint_tensors import load_checkpoint, write_checkpoint
from swarm.state.part import Part, PartFacts
from swarm.state.start import (
    FETCHED,
    Files,
    StartMissingError,
    checkpoints_for,
    files_of,
    listed,
    whole_here,
)
from swarm.state.start_calls import (
    FILES_MAX,
    START_SERVICE,
    StartFile,
    StartReply,
    start_reply_untrusted,
)
from swarm.state.transfer import Fetch, FetchError, Snapshots

log = logging.getLogger(__name__)

PREFIX: Final = "start/"
"""Of the names under which the `state` service has the checkpoint's parts."""
_AGAIN_S: Final = 1.0
_CALL_S: Final = 10.0
_SNAPSHOTS_MAX: Final = 3
_LIARS_MAX: Final = 3
_GROUPS_MAX: Final = 4096
"""Each costs a hash of some kilobytes. All but one of 1,000 are tried, all but three of 20."""
_CLAIMED_MAX: Final = 1024
"""Files of a list that is looked at, unless this run's own would have more: hashing them takes time."""
_SHARE_MAX: Final = 4
_SPARE_BYTES: Final = 64 << 20
"""A file may have so many times a fair share of the model, and that much besides: bounds what a liar can make us fetch."""


class StartMisfitError(ValueError):
    """The checkpoint is the one that is named, and has not what this run's model needs."""


class InitialState:
    """What a run begins from, on one node.

    Args:
      folder: of the run that begins.
      parts: in how many the model is cut; bounds what a file of it may have.
    """

    def __init__(
        self,
        start: StartSpec,
        folder: Path,
        caller: Caller,
        codec: ComputeThread,
        *,
        parts: int,
    ) -> None:
        self.problem = ""
        """Why a part of this run has no state yet."""
        self.members: Callable[[], Sequence[PeerID]] = tuple
        """Whom to ask for what is not here; set by the peer."""
        self.syncing: Callable[[str], None] = lambda reason: None
        """Told what is waited for."""
        self.snapshots = Snapshots(self._part, codec, codec, asked_max=_SNAPSHOTS_MAX)
        self._parts = parts
        self._start = start
        self._folder = folder
        self._caller = caller
        self._codec = codec
        self._here: list[Checkpoint] | None = None
        self._files: Files | None = None
        """The list, once its hash was right."""
        self._steps: dict[str, int] = {}
        """That each file which was read has behind it: the run's, or its own."""
        self._false: set[PeerID] = set()
        """Members that have named or sent what is not so: they are not fetched from again."""

    async def tensors(
        self, specs: Mapping[str, TensorSpec], *, part: str | None = None
    ) -> Mapping[str, Tensor]:
        """Return the state of a part, from here or from others; waits until it can be had.

        Args:
          part: the one file that has it; None: its tensors may lie in several, and each has one name in all of them.
        Raises:
          StartMisfitError: it never can.
        """
        while True:
            try:
                return await self._from_disk(specs, part)
            except StartMissingError as error:
                missing = str(error)
            if not self.problem:
                self._wait_because(missing)
            replies = await self._ask_members()
            for peer, reply in replies.items():
                await self._fetch_from(peer, reply, specs, part)
            if self._is_missing(specs, part):
                self._wait_because(f"{missing}, {self._nobody_gave_it(replies)}")
                await trio.sleep(_AGAIN_S)

    # --- from the disk ---

    async def _scanned(self) -> list[Checkpoint]:
        if self._here is None:
            self._here = await trio.to_thread.run_sync(checkpoints_for, self._start, self._folder)
            with suppress(StartMissingError):
                self._files = files_of(whole_here(self._start, self._here))
        return self._here

    async def _from_disk(
        self, specs: Mapping[str, TensorSpec], part: str | None = None
    ) -> Mapping[str, Tensor]:
        """Take the part's atoms from the files here. Raises StartMissingError, StartMisfitError."""
        here = await self._scanned()
        if self._files is None:
            self._files = files_of(whole_here(self._start, here))
        chosen = listed(self._files, here)
        missing = sorted(self._files.keys() - chosen.keys())
        wanted = [c for name, c in chosen.items() if part in (None, name) and _overlap(c, specs)]
        covered = {t.name for c in wanted for t in c.manifest.tensors}
        if missing and not specs.keys() <= covered:
            raise StartMissingError(
                f"{', '.join(missing)} of run {self._start.run[:8]} at step {self._start.step} is not here"
            )
        check_atoms(specs, wanted)
        tensors: dict[str, Tensor] = {}
        for checkpoint in wanted:
            try:
                loaded = await trio.to_thread.run_sync(load_checkpoint, checkpoint, None)
            except CheckpointRefusedError as error:
                here.remove(checkpoint)
                log.error("checkpoint refused: path=%s reason=%s", checkpoint.file, error)
                raise StartMissingError(str(error)) from error
            tensors |= {name: loaded[name] for name in specs.keys() & loaded.keys()}
        self.problem = ""
        log.info("begins from a checkpoint: run=%s step=%d", self._start.run[:8], self._start.step)
        return tensors

    def _wait_because(self, problem: str) -> None:
        if problem != self.problem:
            log.warning("waits for the checkpoint that the run begins from: %s", problem)
        self.problem = problem
        self.syncing(f"waits for the checkpoint that the run begins from: {problem}")

    def _nobody_gave_it(self, replies: Collection[PeerID]) -> str:
        asked = self.members()
        if not asked:
            return "and there is no other member to fetch it from"
        silent, false = len(asked) - len(replies), len(self._false.intersection(asked))
        told = [f"{silent} of them did not answer"] * bool(silent)
        told += [f"{false} of them sent what is not so"] * bool(false)
        but = f" ({', '.join(told)})" if told else ""
        return f"and none of {len(asked)} other members gave it{but}"

    def _is_missing(self, specs: Mapping[str, TensorSpec], part: str | None) -> bool:
        if self._files is None:
            return True
        chosen = listed(self._files, self._here or ())
        here = [c for name, c in chosen.items() if part in (None, name)]
        return not specs.keys() <= {t.name for c in here for t in c.manifest.tensors}

    # --- from others ---

    async def _ask_members(self) -> dict[PeerID, StartReply]:
        """Ask all at once what they have, and find the list if their files and ours have the right hash together."""
        replies: dict[PeerID, StartReply] = {}
        members = list(self.members())
        async with trio.open_nursery() as nursery:
            for peer in members:
                nursery.start_soon(self._ask, peer, replies)
        if self._files is None:
            claims = [
                {f.part: f.sha256 for f in reply.files}
                for reply in replies.values()
                if len(reply.files) <= max(_CLAIMED_MAX, 2 * self._parts)
            ]
            own = files_of(await self._scanned())
            # In a thread: a few liars, with a thousand files each, make seconds of it.
            self._files = await trio.to_thread.run_sync(find_list, self._start, own, claims)
        return {peer: replies[peer] for peer in members if peer in replies}

    async def _ask(self, peer: PeerID, replies: dict[PeerID, StartReply]) -> None:
        try:
            answer = await self._caller.call(peer, START_SERVICE, {}, deadline_s=_CALL_S)
            with self._caller.guard.blaming(peer):
                # In a thread: thousands of files take a quarter of a second.
                replies[peer] = await trio.to_thread.run_sync(start_reply_untrusted, answer.message)
        except CALL_FAILURES as error:
            log.info("does not say what it has of the checkpoint: peer=%s reason=%s", peer, error)

    async def _fetch_from(
        self, peer: PeerID, reply: StartReply, specs: Mapping[str, TensorSpec], part: str | None
    ) -> None:
        """Fetch from one member the files that we still need and it has."""
        if self._files is None:
            return
        here = await self._scanned()
        for file in reply.files:
            chosen = listed(self._files, here)
            wanted = file.part not in chosen and self._files.get(file.part) == file.sha256
            wanted = wanted and part in (None, file.part)
            if peer in self._false:
                return
            if wanted and any(t.name in specs and t.name != STEP for t in file.tensors):
                checkpoint = await self._fetch(peer, file, specs)
                if checkpoint is not None:
                    here.append(checkpoint)

    async def _fetch(
        self, peer: PeerID, file: StartFile, specs: Mapping[str, TensorSpec]
    ) -> Checkpoint | None:
        """Fetch one file from its member, and keep it if it has the hash of the list."""
        expected = {tensor.name: tensor.spec for tensor in file.tensors}
        fair = sum(spec.byte_count for spec in specs.values()) * self._parts
        if sum(s.byte_count for s in expected.values()) > _SHARE_MAX * fair + _SPARE_BYTES:
            self._blame(peer, "names a checkpoint that is far larger than the model")
            return None
        # Of any version: an expert counts steps of its own. The hash says whether it is the one.
        fetch = Fetch(self._caller, self._codec, expected, part=PREFIX + file.part, version=None)
        faults_before = self._faults_of(peer)
        try:
            state = await fetch.run([peer])
            checkpoint = await trio.to_thread.run_sync(self._write, file, state.tensors)
        except (FetchError, OSError) as error:
            log.warning("checkpoint not fetched: part=%s peer=%s reason=%s", file.part, peer, error)
            if isinstance(error.__cause__, RemoteProtocolError):
                self._blame(peer, "sent other tensors than it had named")
            elif self._faults_of(peer) > faults_before:
                self._false.add(peer)
            return None
        if checkpoint.manifest.sha256 == file.sha256:
            return checkpoint
        await trio.to_thread.run_sync(delete, checkpoint)
        self._blame(peer, "sent another checkpoint than the one whose hash it named")
        return None

    def _write(self, file: StartFile, tensors: Mapping[str, Tensor]) -> Checkpoint:
        """Write what came as the file that it was: equal states of one run give equal files. In a thread."""
        return write_checkpoint(
            self._folder / FETCHED, RunID.from_text(self._start.run), file.part, self._start.step, tensors,
            PartFacts(epoch=file.epoch), now_unix_s=file.written_unix_s,
        )  # fmt: skip

    def _faults_of(self, peer: PeerID) -> int:
        return self._caller.guard.faults().get(peer, 0)

    def _blame(self, peer: PeerID, reason: str) -> None:
        self._false.add(peer)
        self._caller.guard.fault(peer, RemoteProtocolError(reason, peer))

    # --- for others ---

    def is_asked(self, message: Any) -> bool:
        """Tell whether a call of the `state` service is for a file of the checkpoint."""
        part = message.get("part") if isinstance(message, dict) else None
        return isinstance(part, str) and part.startswith(PREFIX)

    def beside(self, wire: Mapping[str, Endpoint]) -> Mapping[str, Endpoint]:
        """Return a mode's services with `start`, and with the checkpoint's files in its `state`."""
        state = wire[STATE_SERVICE]

        async def answer_state(incoming: Incoming) -> Answer:
            ours = self.is_asked(incoming.message)
            return await (self.snapshots.answer if ours else state.answer)(incoming)

        return {
            **wire,
            STATE_SERVICE: Endpoint(answer_state, state.limits_for),
            START_SERVICE: Endpoint(self.answer, state.limits_for),
        }

    async def answer(self, incoming: Incoming) -> Answer:
        """Answer one call of the `start` service: say which files are here."""
        here = await self._scanned()
        chosen = (
            {c.manifest.part: c for c in reversed(here)}
            if self._files is None
            else listed(self._files, here)
        )
        files = [
            StartFile(
                m.part, m.epoch, m.sha256, m.written_unix_s, tuple(m.tensors)
            )
            for m in (c.manifest for c in chosen.values())
        ]  # fmt: skip
        return Answer(encode(StartReply(tuple(files[:FILES_MAX]))))

    def _part(self, name: str) -> Part | None:
        """Offer a file that is here as a part; it is read, and verified, by the codec's thread."""
        chosen = listed(self._files or files_of(self._here or ()), self._here or ())
        checkpoint = chosen.get(name.removeprefix(PREFIX))
        if checkpoint is None:
            return None

        def snapshot() -> tuple[int, Mapping[str, Tensor]]:
            tensors = load_checkpoint(checkpoint, None)
            steps = int(tensors[STEP]) if STEP in tensors else self._start.step
            self._steps[name] = steps
            return steps, tensors

        return Part(name, self._steps.get(name, self._start.step), snapshot, lambda tensors: None)


def _overlap(checkpoint: Checkpoint, specs: Mapping[str, TensorSpec]) -> bool:
    return any(t.name in specs and t.name != STEP for t in checkpoint.manifest.tensors)


def find_list(start: StartSpec, own: Files, claims: Sequence[Files]) -> Files | None:
    """Return the list of files that has the right hash, out of ours and what others say; None when there is none.

    All together, each other alone, or all but a few: one liar cannot hide it, nor in a small swarm two or three. With ours or
    without: where each peer has a model of its own, ours of that step is another one than what is named.
    """
    groups: Iterator[Sequence[Files]] = ([claim] for claim in claims)
    for count in range(min(len(claims), _LIARS_MAX) + 1):
        groups = itertools.chain(groups, itertools.combinations(claims, len(claims) - count))
    for group in itertools.islice(groups, _GROUPS_MAX):
        merged = {part: sha256 for claim in group for part, sha256 in claim.items()}
        for files in (merged | own, merged):
            if start_digest(files) == start.sha256:
                return files
    return None


def check_atoms(specs: Mapping[str, TensorSpec], checkpoints: Iterable[Checkpoint]) -> None:
    """Compare what a part needs with what files have. Raises StartMisfitError."""
    found = {t.name: t.spec for c in checkpoints for t in c.manifest.tensors}
    for name in sorted(specs):
        spec, has = specs[name], found.get(name)
        if has is None:
            raise StartMisfitError(
                f"the checkpoint has no {name!r}: the models or optimizers differ"
            )
        if has != spec:
            raise StartMisfitError(
                f"{name!r} is {has.dtype} of shape {list(has.shape)} in the checkpoint, and {spec.dtype} of shape"
                f" {list(spec.shape)} in this run"
            )


def check_whole(specs: Mapping[str, TensorSpec], checkpoints: Iterable[Checkpoint]) -> None:
    """Compare what a whole model needs with what all files have: no less and no more. Raises StartMisfitError."""
    here = list(checkpoints)
    check_atoms(specs, here)
    over = sorted({t.name for c in here for t in c.manifest.tensors} - specs.keys())
    if over:
        raise StartMisfitError(f"this run's model has no {over[0]!r}, which the checkpoint has")
