"""What this node tells anybody: its public status, and the run's canonical bytes to whom may have them."""

from __future__ import annotations

from typing import Final

from node.clock import unix_s
from node.node import Node
from protocols.frames import Limits
from protocols.handshake import check_hello, protocol_of
from protocols.ids import PeerID
from protocols.public import RUN_SERVICE, STATUS_SERVICE, PublicStatus, RunReply
from protocols.replies import SOFTWARE_VERSION, ErrorReply, Hello
from protocols.schema import encode
from swarm.calls import Answer, Incoming, Refusal
from swarm.calls import Service as WireService

_SMALL: Final = Limits(header_bytes_max=4096, body_bytes_max=0, tensors_max=0)
"""Questions of strangers are a few bytes."""


async def serve_public(node: Node) -> None:
    """Register both services with the host."""
    for name, answer, accept, for_anybody in (
        (STATUS_SERVICE, _Status(node).answer, _anybody, True),
        (RUN_SERVICE, _Run(node).answer, _Run(node).accept, False),
    ):
        await WireService(
            node.host,
            name,
            answer=answer,
            accept=accept,
            limits=_SMALL,
            guard=node.guard,
            rates=node.rates,
            for_anybody=for_anybody,
        ).start()


def public_status(node: Node) -> PublicStatus:
    """Return what a stranger may see of a public run, and the invited of a private one. O(1): anybody may ask."""
    spec = node.membership.spec
    snapshot = node.life.snapshot
    progress = node.progress()
    return PublicStatus(
        software=SOFTWARE_VERSION,
        state=snapshot.state.value,
        state_seconds=round(node.life.since_seconds, 1),
        run=node.membership.run_id if spec else None,
        run_name=spec.name if spec else None,
        mode=spec.mode if spec else None,
        in_run=progress.in_run,
        role=progress.role,
        step=progress.step,
        peers=snapshot.peers,
        time_s=unix_s(),
    )


def _anybody(peer: PeerID, hello: Hello) -> ErrorReply | None:
    """Public status is for strangers too, of any run or none."""
    return None


def _refusal(node: Node, peer: PeerID, hello: Hello, service: str) -> ErrorReply | None:
    """Say why this peer is no part of our run as far as it has shown; None when it is."""
    return check_hello(
        hello,
        run=node.membership.run_id,
        run_key=node.membership.run_key,
        protocol=protocol_of(service),
        opener=peer,
        server=node.peer_id,
    )


class _Status:
    def __init__(self, node: Node) -> None:
        self._node = node

    async def answer(self, incoming: Incoming) -> Answer:
        private = self._node.membership.run_key is not None
        if private and _refusal(self._node, incoming.peer, incoming.hello, STATUS_SERVICE):
            return Answer(encode(PublicStatus()))
        return Answer(encode(public_status(self._node)))


class _Run:
    """The run file, for members and whoever holds an invite."""

    def __init__(self, node: Node) -> None:
        self._node = node

    def accept(self, peer: PeerID, hello: Hello) -> ErrorReply | None:
        return _refusal(self._node, peer, hello, RUN_SERVICE)

    async def answer(self, incoming: Incoming) -> Answer:
        spec = self._node.membership.spec
        if spec is None:
            raise Refusal("busy", "this node is still joining and has no run file yet", 2.0)
        return Answer(encode(RunReply(canonical=spec.canonical_bytes())))
