"""The promises, each as a checker that sees everything. A checker that cannot fail is worth nothing: see tests.sim.planted.

A new checker: a module with a class named after its promise, derived from `Checker`, listed in `ALL`, with at least one
planted fault that it catches alone.
"""

from __future__ import annotations

from tests.sim.engine.checker import Checker
from tests.sim.pipeline.checkers.aborted_changes_nothing import AbortedChangesNothing
from tests.sim.pipeline.checkers.all_prepared import AllPrepared
from tests.sim.pipeline.checkers.bounded import Bounded
from tests.sim.pipeline.checkers.exactly_once import ExactlyOnce
from tests.sim.pipeline.checkers.fresh_is_fresh import FreshIsFresh
from tests.sim.pipeline.checkers.frozen_while_reduced import FrozenWhileReduced
from tests.sim.pipeline.checkers.last_copy_stays import LastCopyStays
from tests.sim.pipeline.checkers.nobody_honest_blamed import NobodyHonestBlamed
from tests.sim.pipeline.checkers.one_history import OneHistory
from tests.sim.pipeline.checkers.one_side_commits import OneSideCommits
from tests.sim.pipeline.checkers.place_is_kept import PlaceIsKept
from tests.sim.pipeline.checkers.same_state import SameState
from tests.sim.pipeline.checkers.status_is_true import StatusIsTrue
from tests.sim.pipeline.checkers.void_is_kept import VoidIsKept
from tests.sim.pipeline.checkers.work_is_redone import WorkIsRedone

ALL: tuple[type[Checker], ...] = (
    ExactlyOnce,
    SameState,
    OneHistory,
    OneSideCommits,
    LastCopyStays,
    Bounded,
    NobodyHonestBlamed,
    WorkIsRedone,
    AbortedChangesNothing,
    AllPrepared,
    FrozenWhileReduced,
    VoidIsKept,
    StatusIsTrue,
    PlaceIsKept,
    FreshIsFresh,
)

__all__ = ["ALL", "Checker"]
