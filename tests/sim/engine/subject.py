"""What the engine must be told of a mode. A mode is a package beside `engine`, and is found by its name:

subject.py        SUBJECT: how a run is drawn, and what it promises
planted.py        SUITE: mistakes put into its cores, each caught by one checker
branches.py       MEASURED: the modules whose branches the seeds must take; it imports none of them
scale.py          SCALE: one large swarm; a mode may have none
regressions.txt   seeds that failed once
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol, cast

from tests.sim.engine.checker import Checker
from tests.sim.engine.faults import Faults
from tests.sim.engine.world import World

ROOM: Final = Path(__file__).parents[1]
MODES: Final = tuple(sorted(path.parent.name for path in ROOM.glob("*/subject.py") if path.parent.name != "engine"))  # fmt: skip
DEFAULT: Final = "pipeline"


class Draw(Protocol):
    """Draws sizes, pace and faults of a mode's standard mix."""

    def __call__(
        self, seed: int, *, detailed: bool, checkers: Sequence[type[Checker]]
    ) -> World[Any]: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """One mode in the simulator.

    Args:
      unit: what is counted as progress, in the plural.
      safety_s: how long faults last, in seconds of the standard run.
      liveness_s: how long a healed run may take to come as far as is expected of it.
      actions_max: a seed in which more is done than that is taken for endless. The busiest of 300 needs a quarter.
    """

    mode: str
    unit: str
    draw: Draw
    faults: type[Faults]
    checkers: tuple[type[Checker], ...]
    safety_s: float = 160.0
    liveness_s: float = 180.0
    actions_max: int = 2_000_000

    @property
    def regressions(self) -> Path:
        return ROOM / self.mode / "regressions.txt"


@dataclass(frozen=True, slots=True)
class Planted:
    """A fault: which checker must catch it, and what to patch."""

    name: str
    checker: type[Checker]
    patches: tuple[tuple[Any, str, Any], ...]
    """(owner, attribute, replacement)."""
    first_seed: int = 0
    """Where `make test` begins to look: few seeds show some faults, and a budget of seconds is not for those that do not."""


@dataclass(frozen=True, slots=True)
class Measured:
    """The cores of a mode, and what no seed can take of them."""

    modules: Mapping[str, Path]
    """By full name."""
    excused: Mapping[str, str]
    """Name of a branch -> why no seed can take it."""


def subject_of(mode: str) -> Subject:
    """Return what a mode says of itself. It imports the mode's cores."""
    return cast("Subject", importlib.import_module(f"tests.sim.{mode}.subject").SUBJECT)


def suite_of(mode: str) -> tuple[Planted, ...]:
    """Return the faults that are planted into a mode's cores."""
    suite: tuple[Planted, ...] = importlib.import_module(f"tests.sim.{mode}.planted").SUITE
    return suite


def measured_of(mode: str) -> Measured:
    """Return which cores are measured. It imports none of them: they are marked when they are imported."""
    return cast("Measured", importlib.import_module(f"tests.sim.{mode}.branches").MEASURED)
