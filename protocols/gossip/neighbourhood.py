"""Who our neighbours are: those the graph names among the peers that live.

A peer is out of the graph while it is taken for dead: two pushes in a row failed, the transport lost it, or it said
that it leaves. It is back when it is heard, or when its time out is over and the directory still names it; then the
next failure doubles the time. Two ends may disagree for as long as a record stays in the directory: then one of them
refuses the other's pushes, which is waited out and no fault.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from protocols.gossip.topology import PEERS_MAX, Topology
from protocols.ids import PeerID

FAILURES_MAX: Final = 2
OUT_S: Final = 30.0
OUT_S_MAX: Final = 600.0
"""How long a directory record may live: a peer that is gone is named no longer than that."""
_REFUSED_S: Final = 5.0
"""Before pushing again to a peer that does not take us for a neighbour: its next look at the directory."""


@dataclass(slots=True)
class Neighbour:
    """What we know of one neighbour."""

    since_s: float
    owed: bool = False
    """A newer snapshot waits for that push to end. There is at most one: the newest."""
    part: int = 0
    """The next push sends this part."""
    failures: int = 0
    """In a row."""
    not_before_s: float = -math.inf
    """Nothing is pushed before: it refused us lately."""
    finished: bool = False
    """It trains no more, so no model of it is to be waited for."""
    heard_s: float | None = None
    """When its last model came, for people."""
    models: int = 0
    refused: int = 0
    """How many of its models were left out of an average for their variance."""
    sent: int = 0
    """How many of our pushes it took."""


@dataclass(slots=True)
class _Out:
    """A peer that is left out, or was lately and is on trial."""

    until_s: float
    wait_s: float
    on_trial: bool = False


class Neighbourhood:
    """Contacts, who is out, and the neighbours that follow from both."""

    def __init__(self, own: PeerID, topology: Topology) -> None:
        self._own = own
        self._topology = topology
        self._contacts: frozenset[PeerID] = frozenset()
        self._out: dict[PeerID, _Out] = {}
        self.current: dict[PeerID, Neighbour] = {}
        """The neighbours, in the order of their PeerIDs."""
        self.version = 0
        """Rises with every change of `current` and of the contacts."""

    @property
    def contacts(self) -> frozenset[PeerID]:
        return self._contacts

    @property
    def wake_at_s(self) -> float:
        """When somebody's time out is over."""
        return min(
            (out.until_s for out in self._out.values() if not out.on_trial), default=math.inf
        )

    @property
    def exchanging(self) -> int:
        """How many neighbours a model is to be expected from."""
        return sum(not neighbour.finished for neighbour in self.current.values())

    def found(self, now_s: float, peers: Sequence[PeerID]) -> None:
        """Take what the directory names now, all of it."""
        contacts = frozenset(peers[:PEERS_MAX]) - {self._own}
        for gone in self._out.keys() - contacts:
            del self._out[gone]
        if contacts != self._contacts:
            self._contacts = contacts
            self.version += 1
            self._rewire(now_s)

    def is_out(self, peer: PeerID) -> bool:
        """Tell whether a peer is left out of the graph, or was lately: hearing it may make it a neighbour again."""
        return peer in self._out

    def knows(self, peer: PeerID) -> bool:
        return peer in self._contacts

    def heard(self, now_s: float, peer: PeerID) -> None:
        """Note that a peer lives."""
        neighbour = self.current.get(peer)
        if neighbour is not None:
            neighbour.failures = 0
        if self._out.pop(peer, None) is not None:
            self._rewire(now_s)

    def failed(self, now_s: float, peer: PeerID) -> None:
        """Note that a push to a neighbour failed."""
        neighbour = self.current.get(peer)
        if neighbour is None:
            return
        neighbour.failures += 1
        if neighbour.failures >= FAILURES_MAX:
            self.gone(now_s, peer)

    def gone(self, now_s: float, peer: PeerID) -> None:
        """Take a peer for dead or departed."""
        if peer not in self._contacts:
            return
        before = self._out.get(peer)
        if before is not None and not before.on_trial:
            return
        wait_s = OUT_S if before is None else min(2 * before.wait_s, OUT_S_MAX)
        self._out[peer] = _Out(now_s + wait_s, wait_s)
        self._rewire(now_s)

    def refused(self, now_s: float, peer: PeerID) -> None:
        """Note that a peer does not take us for its neighbour."""
        neighbour = self.current.get(peer)
        if neighbour is not None:
            neighbour.not_before_s = now_s + _REFUSED_S

    def tick(self, now_s: float) -> None:
        """Let those whose time out is over be tried again. Their next failure counts as one more in a row."""
        over = [out for out in self._out.values() if not out.on_trial and out.until_s <= now_s]
        for out in over:
            out.on_trial = True  # remembered, so that the next time is longer
        if over:
            self._rewire(now_s)

    def _rewire(self, now_s: float) -> None:
        live = self._contacts - {peer for peer, out in self._out.items() if not out.on_trial}
        named = self._topology.neighbours(self._own, live)
        if named == self.current.keys():
            return
        before = self.current
        self.current = {}
        for peer in sorted(named):
            again = FAILURES_MAX - 1 if peer in self._out else 0
            self.current[peer] = before.get(peer) or Neighbour(now_s, failures=again)
        self.version += 1

    def in_order(self) -> Iterable[tuple[PeerID, Neighbour]]:
        """Yield the neighbours in an order that does not depend on the order of events."""
        return self.current.items()
