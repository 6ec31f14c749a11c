"""Get into the swarm and stay in it: dial who we know, fetch the run, notice isolation, dial again.

An unreachable bootstrap never stops a node: it is a state with a reason per address, retried with backoff. Any one
address that answers is enough. Members announce their addresses in the directory, so that a node which has been in
once can come back without the addresses it was invited with.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Final

import msgpack
import trio

from node.clock import unix_s
from node.errors import IdentityTakenError
from node.node import Dialled, Node
from node.services import backoff_s
from protocols.errors import RemoteProtocolError
from protocols.founding import Founding, founder_of, founding
from protocols.frames import unpack_untrusted
from protocols.ids import PeerID
from protocols.invite import InviteError, check_address
from protocols.life import LifeState
from protocols.ports import DirectoryRecord, PeerUnreachableError
from protocols.public import (
    RUN_SERVICE,
    STATUS_SERVICE,
    RunRequest,
    public_status_untrusted,
    run_reply_untrusted,
)
from protocols.schema import SchemaError, Size, decode, encode
from protocols.twin import Start, Twin, judge
from swarm.calls import CALL_FAILURES

if TYPE_CHECKING:
    from trio_typing import TaskStatus

log = logging.getLogger(__name__)

DIAL_S: Final = 10.0
"""For one address. Others are dialled meanwhile, so an unreachable one costs nothing but this."""
DIALS_AT_ONCE: Final = 8
ASK_S: Final = 10.0
"""For one small question to a peer that has just answered."""
COUNT_EVERY_S: Final = 10.0
"""Peers are counted so often; with `isolated_after_s` this decides how late isolation is noticed."""
REFRESH_FIRST_S: Final = 2.0
"""After joining, members are looked up this soon again, then at doubling intervals: the directory is still coming up."""
REFRESH_EVERY_S: Final = 120.0
"""The longest of those intervals. Each is varied by a fifth."""
MEMBER_LIFETIME_S: Final = 300.0
"""How long a node that crashed is still dialled by those who come in."""
ADDRESSES_MAX: Final = 16
"""Of one member, in its record."""
GREETED_MAX: Final = 16
"""Peers that have dialled us, greeted while we know nobody else."""
MEMBERS_DIALLED_MAX: Final = 32
"""Connections to members that we open by ourselves; enough for a graph that does not fall apart."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MemberRecord:
    """What a member says of itself in the directory."""

    addresses: Annotated[tuple[Annotated[str, Size(1, 256)], ...], Size(0, ADDRESSES_MAX)]
    start: Start | None = None
    """Of this life of it: protocols.twin."""


class Joining:
    """The service that joins. Its object outlives restarts of its task, as all services do."""

    name = "joining"

    def __init__(self, node: Node) -> None:
        self._node = node
        self._members_known = 0
        self._in_run: dict[PeerID, bool] = {}
        """Who has answered in this round of dialling -> whether it knows a record of the run."""

    async def run(self, *, task_status: TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Join, then keep watch until cancelled."""
        task_status.started()
        node = self._node
        if node.membership.first:
            node.life.joined("first node of a new swarm")
        if node.membership.first or founder_of(node.membership.named) != node.peer_id:
            node.founding_known.set()
        elif node.membership.was_with_others:
            log.info("begins the run anew only if nobody who was named is in it any more")
        if not node.membership.first and not node.membership.targets(node.peer_id):
            log.warning(
                "others were in this run when this node left it, and none of their addresses is known: waiting to be"
                " dialled; --bootstrap ADDRESS reaches one, --new-swarm begins the run again"
            )
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._count_peers)
            nursery.start_soon(self._redial_when_asked)
            if not node.membership.first:
                await self._join()
            nursery.start_soon(self._refresh_members)

    async def drain(self, deadline_s: float) -> None:
        """Withdraw our address, so that nobody dials a node that has left."""
        with trio.move_on_after(min(deadline_s, 2.0)):
            await self._node.directory.withdraw(self._key)

    def status(self) -> dict[str, Any]:
        """Say who was dialled, and why it failed."""
        now_s = trio.current_time()
        return {
            "members_known": self._members_known,
            "founder": str(founder)
            if (founder := founder_of(self._node.membership.named))
            else None,
            "dialled": [
                {
                    "address": dialled.address,
                    "ok": dialled.ok,
                    "reason": dialled.reason or None,
                    "seconds_ago": round(now_s - dialled.at_s, 1),
                }
                for dialled in self._node.dialled.values()
            ],
        }

    @property
    def _key(self) -> str:
        return f"{self._node.membership.run_id}/members"

    async def _join(self) -> None:
        """Dial until somebody has answered and the run is known, or until it is for us to begin it."""
        node = self._node
        failures = 0
        while True:
            is_in = await self._dial_all()
            if not node.founding_known.is_set():
                self._decide_founding()
            if node.membership.first or (is_in and node.founding_known.is_set()):
                return
            failures += 1
            with trio.move_on_after(backoff_s(failures, node.rng)):
                await node.life.redial.wait()

    def _decide_founding(self) -> None:
        """After a round of dialling: begin the run, or leave that to others, or ask again."""
        node = self._node
        membership = node.membership
        decision = founding(
            node.peer_id,
            membership.named,
            self._in_run,
            was_with_others=membership.was_with_others,
        )
        if decision is Founding.WAIT:
            return
        if decision is Founding.BEGIN:
            membership.first = True
            node.life.joined("begins the run: nobody who was named is in it")
        node.founding_known.set()

    async def _dial_all(self) -> bool:
        """Dial everybody we know at once, and greet who has dialled us. True when we are in: a member answered and the
        run is known."""
        node = self._node
        limiter = trio.CapacityLimiter(DIALS_AT_ONCE)
        self._in_run.clear()
        async with trio.open_nursery() as nursery:
            for address in node.membership.targets(node.peer_id):
                nursery.start_soon(self._dial, address, limiter)
            for peer in (await node.host.peers())[:GREETED_MAX]:
                nursery.start_soon(self._greet_guest, peer, limiter)
        return node.run_known.is_set() and node.life.snapshot.state in (
            LifeState.SYNCING,
            LifeState.SERVING,
            LifeState.PAUSED,
        )

    async def _dial(self, address: str, limiter: trio.CapacityLimiter) -> None:
        """Dial one address, and greet who answers. Failing is an entry in the status, never an exception."""
        async with limiter:
            try:
                with trio.fail_after(DIAL_S):
                    peer = await self._node.host.connect(address)
                await self._greet(peer)
            except trio.TooSlowError:
                self._note(address, f"no answer within {DIAL_S:g} s")
            except PeerUnreachableError as error:
                self._note(address, error.reason)
            except ValueError as error:
                # An invite, or a member's record, with what only looks like an address.
                self._note(address, f"not an address: {error}")
            except CALL_FAILURES as error:
                self._note(address, str(error))
            else:
                self._note(address, "")
                self._node.membership.remember(address)

    async def _greet_guest(self, peer: PeerID, limiter: trio.CapacityLimiter) -> None:
        """Greet a peer that is connected already. It may be in another run, or none: then nothing is gained."""
        async with limiter:
            with suppress(*CALL_FAILURES):
                await self._greet(peer)

    def _note(self, address: str, reason: str) -> None:
        before = self._node.dialled.get(address)
        if before is None or before.reason != reason:
            log.info("dialled: address=%s %s", address, f"failed: {reason}" if reason else "ok")
        self._node.dialled[address] = Dialled(
            address=address, ok=not reason, reason=reason, at_s=trio.current_time()
        )

    async def _greet(self, peer: PeerID) -> None:
        """Compare clocks with a peer, fetch the run when we do not have it, and count as joined."""
        node = self._node
        sent_s = unix_s()
        answer = await node.caller.call(peer, STATUS_SERVICE, {}, deadline_s=ASK_S)
        status = public_status_untrusted(answer.message)
        self._in_run[peer] = bool(status.in_run)
        if status.time_s is not None:
            node.skew.observe(
                peer, sent_unix_s=sent_s, answered_unix_s=unix_s(), their_unix_s=status.time_s
            )
        # Asking for the run also proves that the peer is in it, and to it that we may be.
        answer = await node.caller.call(peer, RUN_SERVICE, encode(RunRequest()), deadline_s=ASK_S)
        reply = run_reply_untrusted(answer.message)
        if node.membership.spec is None:
            node.membership.learn(reply.canonical)
            node.run_known.set()
        node.network.peer_connected()
        node.life.joined(f"peer {peer.short} answered")
        node.life.peers_counted(len(await node.host.peers()))

    async def _count_peers(self) -> None:
        """Report how many connections there are, for the isolation clock."""
        life = self._node.life
        while True:
            count = len(await self._node.host.peers())
            life.peers_counted(count)
            if count and life.snapshot.state is LifeState.ISOLATED:
                life.redial.set()  # somebody has found us
            await trio.sleep(COUNT_EVERY_S)

    async def _redial_when_asked(self) -> None:
        """Isolation asks for it once; go on with backoff, or when a peer has come, until somebody is there again."""
        life = self._node.life
        failures = 0
        while True:
            await life.redial.wait()
            life.redial = trio.Event()
            if await self._dial_all():
                failures = 0
            elif life.snapshot.state is LifeState.ISOLATED:
                failures += 1
                with trio.move_on_after(backoff_s(failures, self._node.rng)):
                    await life.redial.wait()
                life.redial.set()

    async def _refresh_members(self) -> None:
        """Announce ourselves, and get to know the others. The directory renews the announcement by itself."""
        node = self._node
        announced: tuple[str, ...] = ()
        pause_s = REFRESH_FIRST_S
        while True:
            addresses = tuple(node.host.addresses())[:ADDRESSES_MAX]
            if addresses and addresses != announced:
                await self._announce(addresses)
                announced = addresses
            records = await node.directory.look_up(self._key)
            if self._has_twin(records):
                await self._announce(addresses)  # so that the other one sees us, too
            self._members_known = len(records)
            node.membership.note_members(
                addresses[0]
                for record in records
                if record.peer != node.peer_id and (addresses := _addresses_untrusted(record))
            )
            await self._meet(records)
            with trio.move_on_after(pause_s * node.rng.uniform(0.8, 1.2)):
                await node.twin.look_now.wait()
            node.twin.look_now = trio.Event()
            pause_s = min(2 * pause_s, REFRESH_EVERY_S)

    async def _announce(self, addresses: tuple[str, ...]) -> None:
        node = self._node
        record = msgpack.packb(encode(MemberRecord(addresses=addresses, start=node.start)))
        await node.directory.announce(self._key, record, MEMBER_LIFETIME_S)

    def _has_twin(self, records: Iterable[DirectoryRecord]) -> bool:
        """Look at what was signed with our own key. When an older node has done so, leave at once: draining would speak
        in its name."""
        node = self._node
        for record in records:
            member = _member_untrusted(record) if record.peer == node.peer_id else None
            if member is None or member.start is None:
                continue
            twin = judge(node.start, member.start, issued_s=record.issued_s)
            if twin is Twin.STAYS:
                node.fatal = IdentityTakenError(node.peer_id, node.paths.identity)
                node.life.leave("another node runs with this identity")
            elif twin is Twin.GOES:
                if node.twin.problem is None:
                    log.error("another node runs with this node's identity, started after it")
                node.twin.seen()
                return True
        return False

    async def _meet(self, records: Any) -> None:
        """Connect to members we are not connected to yet, up to a bound."""
        node = self._node
        connected = set(await node.host.peers())
        limiter = trio.CapacityLimiter(DIALS_AT_ONCE)
        strangers = [r for r in records if r.peer not in connected and r.peer != node.peer_id]
        room = max(0, MEMBERS_DIALLED_MAX - len(connected))
        async with trio.open_nursery() as nursery:
            for record in strangers[:room]:
                if addresses := _addresses_untrusted(record):
                    nursery.start_soon(self._dial, addresses[0], limiter)


def _addresses_untrusted(record: DirectoryRecord) -> tuple[str, ...]:
    """Return the addresses a member announced for itself; () when the record is malformed."""
    member = _member_untrusted(record)
    return member.addresses if member is not None else ()


def _member_untrusted(record: DirectoryRecord) -> MemberRecord | None:
    try:
        member = decode(MemberRecord, unpack_untrusted(record.value))
        if all(check_address(address) == record.peer for address in member.addresses):
            return member
    except (RemoteProtocolError, SchemaError, InviteError):
        pass
    log.info("malformed member record: peer=%s", record.peer)
    return None
