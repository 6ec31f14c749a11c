"""What goes into a scenario and what comes out of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What the person chose."""

    mode: str = "pipeline"
    data: str = ""
    dtype: Literal["float32", "float64"] = "float32"
    steps: int | None = None
    plant: str = ""
    power_loss: bool = False
    keep: Path | None = None
    as_json: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What one run of a scenario showed."""

    figures: Mapping[str, Any]
    """The keys are an interface: docs/results.md and the tests of releases read them."""
    summary: str
    """For people, several lines."""
    broken: Sequence[str]
    """A sentence for everything that went wrong and for every bound that was not kept."""
