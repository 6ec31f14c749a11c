"""What a gossip run promises, each watched from outside: from what the cores take and say, and from what is really held."""

from __future__ import annotations

from tests.sim.engine.checker import Checker
from tests.sim.gossip.checkers.averages import CountedOnce, NothingBrokenSpreads, OnlySound
from tests.sim.gossip.checkers.bounds import Bounded, TrafficBounded
from tests.sim.gossip.checkers.neighbours import DeadIsReplaced, MixingGoesOn, NobodyHonestBlamed
from tests.sim.gossip.checkers.work import LeavesInTime, TrainingNeverWaits

ALL: tuple[type[Checker], ...] = (
    CountedOnce,
    OnlySound,
    NothingBrokenSpreads,
    Bounded,
    TrafficBounded,
    DeadIsReplaced,
    TrainingNeverWaits,
    LeavesInTime,
    NobodyHonestBlamed,
    MixingGoesOn,
)

__all__ = [
    "ALL",
    "Bounded",
    "CountedOnce",
    "DeadIsReplaced",
    "LeavesInTime",
    "MixingGoesOn",
    "NobodyHonestBlamed",
    "NothingBrokenSpreads",
    "OnlySound",
    "TrafficBounded",
    "TrainingNeverWaits",
]
