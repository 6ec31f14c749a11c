"""What a node has seen of an expert, and which snapshots of it count.

Anybody can sign a snapshot of any epoch. So one counts when

- the directory named its signer as the host in that epoch, as far as we saw; or we keep it, or signed it;
- else, when those who know its signer have had their turn, if somebody else than the signer keeps it, or saw that host.

What we know comes before what others say, then what can be fetched before what could not, then the newest. An expert begins
anew only when nobody who is silent, down, or knows more is waited for any more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, Literal, TypeAlias

from protocols.experts.events import OffersFound
from protocols.experts.messages import HOSTS_MAX, SnapshotOffer
from protocols.experts.roster import Roster
from protocols.ids import PeerID

GIVE_UP_S: Final = 60.0
"""So long an expert is missing before nobody waits for nodes that are down."""
SILENT_S: Final = 180.0
"""And so long before nobody waits for those that are there and do not answer, or do not give what they offer, or are down
after they have offered something: each time another message may be lost."""
UNSEEN_S: Final = 30.0
"""So long who has not seen the signer of a snapshot lets those adopt it who have."""

Found: TypeAlias = tuple[PeerID, SnapshotOffer]
"""Who keeps it, and what."""
Choice: TypeAlias = tuple[SnapshotOffer, tuple[PeerID, ...]] | Literal["wait", "create"]
"""The snapshot to go on from, with who keeps it."""


@dataclass(slots=True)
class Memory:
    """What was seen of an expert."""

    epoch: int = 0
    hosts: dict[int, PeerID] = field(default_factory=dict)
    """Epoch -> whom the directory named as its host; the latest last."""
    changes: int = 0
    """Of `hosts`."""
    before: frozenset[int] = frozenset()
    """Epochs that we knew when we came back: the directory may still name hosts that died with us, and are not back yet."""
    alive: bool = False
    """Somebody has had it in this life of ours."""
    missing_since_s: float | None = None
    failed: int = 0
    """Our own tries to host it that came to nothing since somebody had it: each passes our turn on."""
    up: frozenset[PeerID] = frozenset()
    """Who was in the run, and not down, when all were last asked for a snapshot."""
    offered: bool = False
    """Somebody has offered a snapshot since it went missing."""
    tried: bytes = b""
    """Root of the snapshot that we fetch, or fetched last."""
    failures: set[bytes] = field(default_factory=set)
    """Roots of those that could not be had."""

    def seen(self, epoch: int, host: PeerID) -> None:
        """The directory names it as the host."""
        self.changes += next(reversed(self.hosts), None) != epoch
        self.hosts[epoch] = self.hosts.pop(epoch, host)  # who states another's epoch comes later
        if len(self.hosts) > HOSTS_MAX:
            del self.hosts[next(iter(self.hosts))]

    def found(self) -> None:
        """It is missing no more."""
        self.missing_since_s = None
        self.failed = 0
        self.offered = False
        self.failures.clear()

    def signed_by_a_host(self, offer: SnapshotOffer) -> bool:
        """Tell whether who signed it had the expert then: anybody can sign for an epoch that never was."""
        return self.hosts.get(offer.epoch) == offer.host

    def is_newest(self, offer: SnapshotOffer) -> bool:
        """Tell whether it is of the last epoch that we saw: nobody can have one of a later."""
        return self.signed_by_a_host(offer) and offer.epoch == self.epoch


def choose(event: OffersFound, memory: Memory, me: PeerID, roster: Roster) -> Choice:
    """Say what becomes of a missing expert."""
    assert memory.missing_since_s is not None
    missing_s = event.now_s - memory.missing_since_s
    known = [(keeper, offer) for keeper, offer in event.offers if _knows(me, keeper, offer, memory)]
    good = [*known, *(found for found in _witnessed(event, missing_s) if found not in known)]
    best: SnapshotOffer | None = None
    if good:
        _, best = max(
            good,
            key=lambda found: (
                found in known,
                found[1].root not in memory.failures,
                found[1].age,
            ),
        )
    memory.offered |= best is not None
    if best is None or not memory.is_newest(best):
        strangers = [offer for keeper, offer in event.offers if (keeper, offer) not in good]
        if _waits(event, memory, best, strangers, roster, missing_s):
            return "wait"
    if best is None or (missing_s >= SILENT_S and best.root in memory.failures):
        return "create"
    return best, tuple(keeper for keeper, offer in good if offer.root == best.root)


def _knows(me: PeerID, keeper: PeerID, offer: SnapshotOffer, memory: Memory) -> bool:
    """Tell whether we know that a host signed it. What we keep was its host's when we took it; the key is ours for life."""
    return me in (keeper, offer.host) or memory.signed_by_a_host(offer)


def _witnessed(event: OffersFound, missing_s: float) -> Sequence[Found]:
    """Return the offers of which somebody else than the signer says that it was the host, when all others had their turn."""
    if missing_s < UNSEEN_S:
        return ()
    said = {(seen.epoch, seen.host) for node, seen in event.seen if node != seen.host}
    return [
        (keeper, offer)
        for keeper, offer in event.offers
        if keeper != offer.host or (offer.epoch, offer.host) in said
    ]


def _waits(
    event: OffersFound,
    memory: Memory,
    best: SnapshotOffer | None,
    strangers: Sequence[SnapshotOffer],
    roster: Roster,
    missing_s: float,
) -> bool:
    """Tell whether somebody may yet have, or know, something better.

    Args:
      strangers: what was offered and does not count.
    """
    # A snapshot that was offered once is worth the longer wait: its keeper is down now, or does not give it.
    long = memory.failures or (best is None and memory.offered)
    if event.silent and missing_s < SILENT_S:
        return True
    wait_s = SILENT_S if long else GIVE_UP_S
    unasked = roster.rooms.keys() - memory.up
    if unasked and missing_s < wait_s:
        return True
    # One that a lost probe has made seem down just now would be done without, though all others have had a minute.
    lately = any(event.now_s - roster.down.get(peer, event.now_s) < wait_s for peer in unasked)
    if lately and missing_s < SILENT_S:
        return True
    # A stranger's may be genuine: then somebody else knows its signer, and adopts it. That may take as long as it takes us.
    newer = any(best is None or offer.age > best.age for offer in strangers)
    return newer and missing_s < (SILENT_S if best is None else UNSEEN_S)
