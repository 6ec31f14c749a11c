"""What is known of a mode without loading torch or an event loop: all that the command line needs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from protocols.ids import PeerID
from protocols.run import RunSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Wishes:
    """What the volunteer wants of this node, as far as it concerns training."""

    host: bool = True
    """Offer to hold a part of the model for others."""
    train: bool = True
    stage: int | None = None
    data: str = ""
    """Where the run's data is on this machine; empty takes the place that the run names."""
    data_folders: tuple[str, ...] | None = None
    """Where a fetched run may name data; None for a run file of one's own, which may name any."""
    memory_max_bytes: int | None = None
    """What this node may take in all; None: no bound."""
    threads: int = 1
    nice: int = 0
    begin_anew: bool = False
    """Look at nothing that was kept of the run: it begins again."""
    new_epoch: bool = False
    """Of this start alone: go on from the disks of those who are back, without a majority."""


@dataclass(frozen=True, slots=True)
class Forecast:
    """What one part of a model will take."""

    name: str
    parameters: int
    memory_bytes: int
    """With optimizer and gradient; activations and the program itself come on top."""
    stage: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """One figure of a mode's section of the status, as Prometheus reads it: `murmura_<mode>_<name>`."""

    key: str
    """In the section. A list becomes one sample for each item; None and what is missing become none."""
    help: str
    name: str = ""
    """Empty: the key. Without the suffix `_total`, which counters get."""
    counts: bool = False
    """It only grows while the mode runs: a counter. Else a gauge."""
    scale: float = 1.0
    """What a value is multiplied with, to be in base units: seconds, bytes."""
    label: tuple[str, str] = ("", "")
    """Name and value of a label; of a list the name alone, and the value is the item's index."""

    @property
    def full_name(self) -> str:
        """The name of the family, without the mode's prefix."""
        return self.name or self.key


@dataclass(frozen=True, slots=True, kw_only=True)
class ModeInfo:
    """What the command line and the node know of a mode before, or without, loading torch."""

    name: str
    summary: str
    build: str
    """`package.module:function`, imported once the run is known; called with a RunContext, returns a Mode."""
    shown: tuple[str, ...] = ()
    """Keys of the mode's section in `status --json` that a person looks for first."""
    measure: str = ""
    """`package.module:function`, which loads torch: (run, where the data is, seconds) -> Iterator[swarm.measuring.Measured]."""
    metrics: tuple[Metric, ...] = ()
    """Figures of its section that are worth a curve, besides those that all modes have."""
    check_wishes: Callable[[RunSpec, Wishes], None] = lambda run, wishes: None
    """Raises ValueError, with a sentence, when the run cannot grant them."""
    check_data: Callable[[RunSpec, str], str] = lambda run, path: "nothing to read"
    """Reads the run's data, from `path` if given, and says what was found. Raises swarm.data.errors.DataError."""
    forecast: Callable[[RunSpec], tuple[Forecast, ...]] = lambda run: ()
    """What each part that a node may hold will take; () where nobody can tell without building it."""
    last_members: Callable[[Path], frozenset[PeerID]] = lambda folder: frozenset()
    """With whom this node was in the run when it last left it, from what the mode keeps in the run's folder."""
    waits_for: Callable[[Mapping[str, Any]], str] = lambda section: ""
    """What a draining node waits for, from its section of the status; empty when for nothing that others decide."""
    name_in_model: str = ""
    """module:function of (part, name): what a parameter of a part is called in the whole model; empty: as in the part."""
    checkpoint_parts: Callable[[RunSpec], tuple[str, ...]] = lambda run: ()
    """The parts of a whole checkpoint, which `[start]` can name; () in a mode that does not know it."""
    check_start: str = ""
    """`package.module:function`, which loads torch: (run, checkpoints) -> None. Raises ValueError, with a sentence, when
    the run cannot begin from these files."""
    options: Mapping[str, str] = field(default_factory=dict)
    """What `murmura export` takes in this mode besides a path: name -> help."""
