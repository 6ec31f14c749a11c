"""What every core has in common: how it is driven, and the events and effects that all of them share.

A core is a plain object that decides. It takes an event that carries the time and returns effects; it has no clock, no
IO and no tensors, and draws from the `random.Random` it was given. `swarm.driver` drives cores over the real network, the
simulator drives the same ones over a fake one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from protocols.ids import PeerID

EventT = TypeVar("EventT", contravariant=True)
EffectT = TypeVar("EffectT", covariant=True)


class Core(Protocol[EventT, EffectT]):
    """Something that decides, driven by whoever has a clock."""

    @property
    def wake_at_s(self) -> float:
        """When it wants its next Tick; infinity while only events from outside can change anything."""
        ...

    def start(self, now_s: float) -> Sequence[EffectT]:
        """Begin. Called once, before any event."""
        ...

    def handle(self, event: EventT) -> Sequence[EffectT]:
        """Take one event and say what is to be done, in this order."""
        ...


# --- events ---


@dataclass(frozen=True, slots=True)
class Tick:
    """Time passed: due at `wake_at_s`, harmless at any other time."""

    now_s: float


@dataclass(frozen=True, slots=True)
class Received:
    """A message arrived from an authenticated peer."""

    now_s: float
    peer: PeerID
    message: Any


@dataclass(frozen=True, slots=True)
class PeerDown:
    """The transport lost this peer and could not reach it again."""

    now_s: float
    peer: PeerID


@dataclass(frozen=True, slots=True)
class ContactsFound:
    """The directory named peers that may take part."""

    now_s: float
    peers: tuple[PeerID, ...]


@dataclass(frozen=True, slots=True)
class DrainWanted:
    """Leave at the next boundary."""

    now_s: float


# --- effects ---


@dataclass(frozen=True, slots=True)
class Send:
    """Cast a message to a peer; the driver delivers those to ourselves too."""

    peer: PeerID
    message: Any


@dataclass(frozen=True, slots=True)
class Publish:
    """Publish a hint on the run's topic. Whether anybody hears it does not matter."""

    message: Any


@dataclass(frozen=True, slots=True)
class Blame:
    """A peer broke the protocol in a way that only the core can see."""

    peer: PeerID
    reason: str
