"""What a moe run promises, each watched from outside: from what the cores take and say, and from what nodes really hold."""

from __future__ import annotations

from tests.sim.engine.checker import Checker
from tests.sim.moe.checkers.bounds import Bounded, TrafficBounded
from tests.sim.moe.checkers.hosting import (
    ExpertsSettle,
    HandOverLosesNothing,
    NoOlderSteps,
    OneHostPerEpoch,
    OneHostSoon,
    RoomIsKept,
)
from tests.sim.moe.checkers.replicas import OnlyReplicasBlend, ReplicasAreFew, ReplicasFollow
from tests.sim.moe.checkers.returning import (
    GoesOnWhereItWas,
    LeftToItsHost,
    TakesBackTheNewest,
)
from tests.sim.moe.checkers.searching import (
    FindsOnlyTheLiving,
    FindsTheBest,
    FindsWhatIsThere,
    SearchIsQuick,
)
from tests.sim.moe.checkers.snapshots import (
    CopiesAreClose,
    KeptIsGenuine,
    NobodyHonestBlamed,
    NothingIsLost,
    OnlyWhatAHostSigned,
)

ALL: tuple[type[Checker], ...] = (
    OneHostPerEpoch,
    NoOlderSteps,
    OneHostSoon,
    RoomIsKept,
    HandOverLosesNothing,
    NothingIsLost,
    OnlyWhatAHostSigned,
    KeptIsGenuine,
    CopiesAreClose,
    FindsTheBest,
    SearchIsQuick,
    FindsOnlyTheLiving,
    FindsWhatIsThere,
    Bounded,
    TrafficBounded,
    NobodyHonestBlamed,
    OnlyReplicasBlend,
    ReplicasAreFew,
    ReplicasFollow,
    LeftToItsHost,
    TakesBackTheNewest,
    GoesOnWhereItWas,
    ExpertsSettle,
)

__all__ = [
    "ALL",
    "Bounded",
    "CopiesAreClose",
    "ExpertsSettle",
    "FindsOnlyTheLiving",
    "FindsTheBest",
    "FindsWhatIsThere",
    "GoesOnWhereItWas",
    "HandOverLosesNothing",
    "KeptIsGenuine",
    "LeftToItsHost",
    "NoOlderSteps",
    "NobodyHonestBlamed",
    "NothingIsLost",
    "OneHostPerEpoch",
    "OneHostSoon",
    "OnlyReplicasBlend",
    "OnlyWhatAHostSigned",
    "ReplicasAreFew",
    "ReplicasFollow",
    "RoomIsKept",
    "SearchIsQuick",
    "TakesBackTheNewest",
    "TrafficBounded",
]
