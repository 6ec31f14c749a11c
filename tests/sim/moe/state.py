"""Experts without tensors: how often each was stepped, and out of which copy it came. So a checker sees what was lost or forged."""

from __future__ import annotations

from dataclasses import dataclass, field

from protocols.experts.messages import SnapshotOffer
from protocols.experts.uid import ExpertUID
from protocols.ids import PeerID


@dataclass(frozen=True, slots=True)
class State:
    """Parameters and optimizer of an expert at one moment."""

    uid: ExpertUID
    epoch: int
    """In which they were made."""
    version: int
    """Steps behind them."""
    forged: bool = False

    @property
    def root(self) -> bytes:
        kind = b"false" if self.forged else b"state"
        return (b"%s %s %d %d" % (kind, str(self.uid).encode(), self.epoch, self.version)).ljust(
            32, b"."
        )[-32:]


@dataclass(slots=True)
class HostedExpert:
    """An expert where it runs."""

    uid: ExpertUID
    epoch: int
    version: int
    frozen: bool = False
    forged: bool = False
    seen: set[PeerID] = field(default_factory=set)

    @property
    def state(self) -> State:
        return State(self.uid, self.epoch, self.version, self.forged)


@dataclass(frozen=True, slots=True)
class Held:
    """A snapshot with what its host signed."""

    offer: SnapshotOffer
    state: State


def sign(peer: PeerID) -> bytes:
    """Sign as this peer: a name stands for a key."""
    return bytes(peer).ljust(64, b"!")


def offer_of(state: State, host: PeerID) -> SnapshotOffer:
    return SnapshotOffer(
        str(state.uid), state.epoch, state.version, state.root, host, sign(host)
    )  # fmt: skip


def is_signed(offer: SnapshotOffer) -> bool:
    return offer.signature == sign(offer.host)
