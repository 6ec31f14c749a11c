"""Training as a service of the node: composes a pipeline peer with this node's transport, directory, data and limits.

Imported by name once the run is known (node.starter), because from here on torch is loaded.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import trio

from node.errors import NodeError
from node.node import Node
from node.runfile import check_stage
from node.services import Service
from protocols.ledger.member import Ledger
from protocols.ledger.view import Record
from protocols.records import run_key
from protocols.run.pipeline import pipeline_of
from swarm.pipeline.data import load_dataset
from swarm.pipeline.export import export_run
from swarm.pipeline.hooks import PeerHooks
from swarm.pipeline.journal import Journal
from swarm.pipeline.peer import PipelinePeer
from swarm.pipeline.services import OpenPeer, PeerOptions, RunServices
from swarm.pipeline.text import DataError
from swarm.pipeline.transfer import FetchError

if TYPE_CHECKING:
    from trio_typing import TaskStatus

log = logging.getLogger(__name__)

MEMBERS_TOPIC: Final = "pipeline"
"""Directory key under which members of a pipeline run announce themselves."""
_ANNOUNCED_S: Final = 180.0
"""How long a member that crashed is still named to those who come in; they ask several."""
_LOOK_UP_FIRST_S: Final = 0.5
_LOOK_UP_EVERY_S: Final = 10.0
"""While an outsider; members hear of each other by records."""
_COMPLETE: Final = "nothing: the run is complete; `murmura export PATH` writes the model"


def build_services(node: Node) -> Iterable[Service]:
    """Return the services that train the node's run."""
    return (PipelineService(node),)


class PipelineService:
    """One pipeline run on this node."""

    name = "pipeline"

    def __init__(self, node: Node) -> None:
        self._node = node
        self._run = node.run
        self._opened: OpenPeer | None = None
        self._services = RunServices(
            node.host,
            node.run,
            run_key=node.membership.run_key,
            guard=node.guard,
            rates=node.rates,
        )
        self._left = trio.Event()
        self._was_member = False
        self._membership_changed = trio.Event()
        """Set, and replaced, when this node has become a member or is none any more."""
        self._data_problem = ""
        self._last: Record | None = None
        self._last_step: Record | None = None
        self._complete = False
        """The last step of the run is committed; nothing goes on any more."""
        self._held_out: float | None = None
        self._step_s: float | None = None
        self._seconds_per_step: float | None = None
        self._journal_problem = ""
        self._journal = Journal(node.membership.journal)
        self._begun = False

    # --- Service ---

    async def run(self, *, task_status: TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        node, config = self._node, self._node.config
        # One who joins learns only now how many stages there are. It must not host another one than was asked for.
        check_stage(self._run, config.stage)
        node.life.needs_state(self.name, "loading torch")
        await node.founding_known.wait()
        options = PeerOptions(
            # A restarted service joins the run that it began.
            founder=node.membership.first and not self._begun,
            observer=not config.host,
            stage=config.stage,
            threads=config.compute_threads,
            nice=config.nice,
        )
        rng = random.Random(node.rng.getrandbits(64))
        async with (
            self._services.open_peer(options, rng=rng, hooks=self._hooks()) as opened,
            trio.open_nursery() as nursery,
        ):
            self._opened = opened
            self._was_member = False
            self._begun = True
            nursery.start_soon(self._prepare_data, opened.peer)
            nursery.start_soon(self._keep_announced, opened.peer)
            nursery.start_soon(self._find_contacts, opened.peer)
            task_status.started()
            try:
                await trio.sleep_forever()
            finally:
                self._opened = None

    async def drain(self, deadline_s: float) -> None:
        """Finish the step in progress if there is time, hand over by leaving the view, and withdraw."""
        if self._opened is None:
            return
        self._opened.peer.drain()
        with trio.move_on_after(max(1.0, deadline_s - 2.0)):
            if self._opened.peer.ledger.member is not None:
                await self._left.wait()
        with trio.move_on_after(2.0):
            await self._node.directory.withdraw(self._directory_key())

    def status(self) -> dict[str, Any]:
        """Return what this node does in the run, from memory."""
        spec = pipeline_of(self._run)
        status: dict[str, Any] = {
            "step": self._last.step if self._last is not None else None,
            "steps": spec.steps,
            "loss": self._last_step.loss if self._last_step is not None else None,
            "held_out_loss": self._held_out,
            "tokens_per_second": self._tokens_per_second(),
            "data_problem": self._data_problem or None,
            "journal_problem": self._journal_problem or None,
        }
        if self._opened is None:
            return status
        peer = self._opened.peer
        ledger = peer.ledger
        lead = ledger.lead
        status |= {
            "stage": ledger.member.stage if ledger.member is not None else None,
            "member": ledger.member is not None,
            "synced": ledger.synced,
            "index": ledger.record.index if ledger.record is not None else None,
            "lead": str(ledger.lead_peer) if ledger.lead_peer is not None else None,
            "leading": lead is not None,
            "waiting_for": self._waiting_for(ledger),
            "asked_to_stay": ledger.leaving and ledger.asked_to_stay,
            "members_by_stage": [len(ledger.view.replicas(s)) for s in range(spec.stages)],
            "members": [
                {"peer_id": str(member.peer), "stage": member.stage}
                for member in ledger.view.members
            ],
            "training": not peer.trainer.paused,
            "microbatches_in_flight": sum(
                1 for journey in peer.trainer.journeys.values() if not journey.finished
            ),
            "tensors_held_bytes": peer.shell.bytes_held,
            "expulsions": peer.expulsions,
            "state_fetched_bytes": peer.state.fetched_bytes,
            "state_fetch_seconds": peer.state.fetch_seconds,
        }
        if peer.host is not None:
            counters = peer.counters
            status |= {
                "calls_served": counters.served,
                "calls_refused": counters.refused,
                "microbatches_counted": counters.counted,
                "counting_step": ledger.tally.step,
                "microbatches_counted_in_step": ledger.tally.counted.bit_count(),
                "queue": self._opened.compute.waiting,
                "compute_busy_seconds": round(self._opened.compute.stats.busy_s, 3),
            }
        return status

    async def export(self, path: Path) -> dict[str, Any]:
        """Write the whole model as one safetensors file. Raises NodeError."""
        opened = self._opened
        if opened is None:
            raise NodeError("this node has not begun to train yet", "try again in a moment")
        try:
            return await export_run(opened, path)
        except FetchError as error:
            raise NodeError(
                f"nothing was written to {path}: {error}", "try again shortly"
            ) from error
        except OSError as error:
            # strerror: the error's own text names a temporary file that nobody has heard of.
            raise NodeError(
                f"cannot write {path}: {error.strerror}", "name a path that this node may write"
            ) from error

    # --- pieces ---

    def _waiting_for(self, ledger: Ledger) -> str | None:
        if self._complete and not ledger.leaving:
            return _COMPLETE
        return ledger.waiting_because or (ledger.lead.waiting_for() if ledger.lead else None)

    def _hooks(self) -> PeerHooks:
        life = self._node.life
        return PeerHooks(
            record_learned=self._record_learned,
            syncing=self._syncing,
            serving=lambda reason: life.has_state(self.name, reason),
            left=self._left.set,
            refuses_work=self._node.refuses_work,
        )

    async def _prepare_data(self, peer: PipelinePeer) -> None:
        """Read the text and begin to train; without it this node still hosts its stage."""
        try:
            dataset = await trio.to_thread.run_sync(
                lambda: load_dataset(self._run, path=self._node.config.data)
            )
        except DataError as error:
            self._data_problem = str(error)
            log.error("does not train: %s", error)
            return
        if self._node.config.train:
            peer.train_on(dataset)

    def _directory_key(self) -> str:
        return run_key(self._node.membership.run_id, MEMBERS_TOPIC)

    async def _keep_announced(self, peer: PipelinePeer) -> None:
        """Say in the directory that we are a member; the directory renews it until it is withdrawn."""
        announced = False
        while True:
            changed = (
                self._membership_changed
            )  # taken first: it may change while the directory is told
            member = peer.ledger.member is not None
            if member and not announced:
                await self._node.directory.announce(self._directory_key(), b"", _ANNOUNCED_S)
            elif announced and not member:
                await self._node.directory.withdraw(self._directory_key())
            announced = member
            await changed.wait()

    async def _find_contacts(self, peer: PipelinePeer) -> None:
        """While we are an outsider, name peers that may be members: those in the directory and those connected."""
        pause_s = _LOOK_UP_FIRST_S
        while True:
            if peer.ledger.member is None and not self._left.is_set():
                records = await self._node.directory.look_up(self._directory_key())
                connected = await self._node.host.peers()
                found = dict.fromkeys([record.peer for record in records] + list(connected))
                peer.contacts_found([who for who in found if who != self._node.peer_id])
                # Quick at first, when seconds count; a node that only watches must not ask for ever at that pace.
                await trio.sleep(pause_s)
                pause_s = min(_LOOK_UP_EVERY_S, 1.5 * pause_s)
            else:
                await self._membership_changed.wait()
                pause_s = _LOOK_UP_FIRST_S

    def _syncing(self, reason: str) -> None:
        """Called when a stage's state is to be loaded, and when this node has been expelled."""
        self._node.life.needs_state(self.name, reason)
        self._note_membership()

    def _note_membership(self) -> None:
        peer = self._opened.peer if self._opened is not None else None
        member = peer is not None and peer.ledger.member is not None
        if member != self._was_member:
            self._was_member = member
            self._membership_changed.set()
            self._membership_changed = trio.Event()

    def _record_learned(self, record: Record) -> None:
        self._last = record
        self._note_membership()
        if record.step >= pipeline_of(self._run).steps and not self._complete:
            self._complete = True
            log.info("the run is complete: steps=%d, `murmura export PATH` writes it", record.step)
        if record.commits_step:
            now_s = trio.current_time()
            if self._step_s is not None:
                seconds = now_s - self._step_s
                before = self._seconds_per_step
                self._seconds_per_step = seconds if before is None else 0.8 * before + 0.2 * seconds
            self._step_s = now_s
            self._last_step = record
            if record.held_out_loss is not None:
                self._held_out = record.held_out_loss
        self._write_down(record)

    def _write_down(self, record: Record) -> None:
        """Keep a record in the journal. Training does not need it: on a full disk it goes on and says so."""
        try:
            self._journal.append(record)
        except OSError as error:
            self._journal_problem = f"records are not written to the journal: {error.strerror}"
            log.error("record not written to the journal: %s", error.strerror)
        else:
            self._journal_problem = ""

    def _tokens_per_second(self) -> float | None:
        if self._seconds_per_step is None:
            return None
        spec = pipeline_of(self._run)
        tokens = spec.microbatches * spec.sequences * spec.model.context
        return round(tokens / self._seconds_per_step, 1)
