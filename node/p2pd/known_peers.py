"""Where peers were last reached. p2pd forgets when it restarts; this does not."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from protocols.ids import PeerID

PEERS_MAX: Final = 512
"""As many as p2pd keeps connections to."""
ADDRESSES_MAX: Final = 8


class KnownPeers:
    """Addresses by peer, the ones heard of last, and who was connected when we last looked."""

    def __init__(self) -> None:
        self._addresses: dict[PeerID, tuple[str, ...]] = {}  # in order of the last mention
        self.connected: frozenset[PeerID] = frozenset()

    def remember(self, peer: PeerID, addresses: Iterable[str]) -> None:
        """Put `addresses` in front of what is known of a peer."""
        merged = dict.fromkeys([*addresses, *self._addresses.pop(peer, ())])
        self._addresses[peer] = tuple(merged)[:ADDRESSES_MAX]
        if len(self._addresses) > PEERS_MAX:
            del self._addresses[next(iter(self._addresses))]

    def saw_connected(self, peers: Mapping[PeerID, Iterable[str]]) -> None:
        """Note who is connected now, and by which addresses."""
        for peer, addresses in peers.items():
            self.remember(peer, addresses)
        self.connected = frozenset(itertools.islice(peers, PEERS_MAX))

    def addresses(self, peer: PeerID) -> Sequence[str]:
        return self._addresses.get(peer, ())
