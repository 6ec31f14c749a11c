"""Errors split by blame: ours crash the node, a peer's are dropped and counted."""

from __future__ import annotations

from protocols.ids import PeerID


class ProtocolError(Exception):
    """Something broke the protocol. Raise one of the two subclasses, which say who did."""


class LocalProtocolError(ProtocolError):
    """We broke our own rules: a bug here. Nobody catches it; the supervisor reports it and restarts."""


class RemoteProtocolError(ProtocolError):
    """A peer broke the rules. The shell drops what it sent, counts it, and may hang up.

    Args:
      reason: one sentence for a log line; never contains text taken from the peer.
      peer: who sent it, where the decoder knows; the shell that knows adds it with `blaming`.
    """

    def __init__(self, reason: str, peer: PeerID | None = None) -> None:
        super().__init__(reason if peer is None else f"{reason} (peer {peer})")
        self.reason = reason
        self.peer = peer

    def blaming(self, peer: PeerID) -> RemoteProtocolError:
        """Return the same error with its sender named."""
        return RemoteProtocolError(self.reason, peer)
