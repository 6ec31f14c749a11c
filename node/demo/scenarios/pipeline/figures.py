"""The demo's result: what it measured, the bounds it must keep, and a sentence for each one broken. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final, Protocol

STEPS_MIN: Final = 100
TOKENS_MIN: Final = 400_000
LOSS_DROP_MIN: Final = 1.0
RELATIVE_DIFFERENCE_MAX: Final = 1e-4
PARAMETER_DIFFERENCE_MAX: Final = {"float32": 1e-4, "float64": 1e-9}
"""float32 sums of microbatches in another order differ by 1e-6 after 120 steps; one microbatch too many by 1e-2."""
RECOVERY_S_MAX: Final = 5.0
SECONDS_MAX: Final = 240.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """What one demo measured. The keys are an interface: docs/results.md and the tests of releases read them."""

    steps: int
    tokens: int
    initial_loss: float
    """Held-out, nats per byte, as the next two."""
    final_loss: float
    reference_loss: float
    relative_difference: float
    parameter_difference: float
    nodes_started: int
    nodes_killed: int
    """With work in the step in progress that was lost with them."""
    trainers_killed: int
    """With microbatches in flight."""
    nodes_joined_late: int
    """That fetched a stage's state, and have microbatches in a committed step."""
    microbatches_expected: int
    """Over all stages and steps."""
    microbatches_missing: int
    microbatches_repeated: int
    recovery_seconds_max: float
    """From a kill until the step in progress is committed at all stages."""
    tokens_per_second: float
    """From the first step to the last, faults included."""
    reference_tokens_per_second: float
    """One process on all cores, training alone."""
    seconds: float
    """The whole command."""
    processor: str
    cores: int
    date: str

    def to_json(self) -> dict[str, Any]:
        """Return plain data, numbers rounded to what they can say."""
        plain: dict[str, Any] = {name: getattr(self, name) for name in self.__slots__}
        for name, digits in (
            ("recovery_seconds_max", 2),
            ("tokens_per_second", 0),
            ("reference_tokens_per_second", 0),
            ("seconds", 1),
        ):
            plain[name] = round(plain[name], digits)
        for name in ("relative_difference", "parameter_difference"):
            plain[name] = float(f"{plain[name]:.3g}")
        for name in ("initial_loss", "final_loss", "reference_loss"):
            plain[name] = round(plain[name], 6)
        return plain


def broken_bounds(figures: Figures, *, dtype: str, shortened: bool) -> Iterator[str]:
    """Yield a sentence for every bound that is broken.

    Args:
      shortened: the person chose the number of steps, so how much is learned in them, and whether somebody can still
        join, is not judged.
    """
    yield from inexact(figures, dtype)
    yield from _faults(figures, shortened)
    if not shortened:
        yield from _amount(figures)


class Exact(Protocol):
    """What shows that a swarm has made the model that one process makes of the same batches."""

    @property
    def final_loss(self) -> float: ...
    @property
    def reference_loss(self) -> float: ...
    @property
    def relative_difference(self) -> float: ...
    @property
    def parameter_difference(self) -> float: ...
    @property
    def microbatches_expected(self) -> int: ...
    @property
    def microbatches_missing(self) -> int: ...
    @property
    def microbatches_repeated(self) -> int: ...


def inexact(figures: Exact, dtype: str) -> Iterator[str]:
    """Yield a sentence for everything that shows another model."""
    most = PARAMETER_DIFFERENCE_MAX[dtype]
    if not figures.parameter_difference <= most:  # true of NaN as well
        yield (
            f"the swarm's parameters differ from the reference's by {figures.parameter_difference:.3g}; "
            f"at most {most:g} is rounding"
        )
    if not figures.relative_difference <= RELATIVE_DIFFERENCE_MAX:
        yield (
            f"the held-out losses {figures.final_loss:.6f} and {figures.reference_loss:.6f} differ by "
            f"{figures.relative_difference:.3g} of the reference's; at most {RELATIVE_DIFFERENCE_MAX:g} is allowed"
        )
    if figures.microbatches_missing:
        yield f"{figures.microbatches_missing} of {figures.microbatches_expected} microbatches were not counted"
    if figures.microbatches_repeated:
        yield f"{figures.microbatches_repeated} microbatches were counted again, or do not belong where they were"


def _faults(figures: Figures, shortened: bool) -> Iterator[str]:
    if not figures.nodes_killed:
        yield "no node was killed that held unfinished work: the step was over before the signal arrived"
    if not figures.trainers_killed:
        yield "no trainer was killed with microbatches in flight"
    if not figures.nodes_joined_late and not shortened:
        yield "no node joined late, fetched the state of a stage and served it"
    if not figures.recovery_seconds_max <= RECOVERY_S_MAX:
        yield (
            f"recovering took {figures.recovery_seconds_max:.1f} s after a kill; "
            f"at most {RECOVERY_S_MAX:g} s are allowed"
        )


def _amount(figures: Figures) -> Iterator[str]:
    if figures.steps < STEPS_MIN:
        yield f"{figures.steps} steps were committed, at least {STEPS_MIN} should be"
    if figures.tokens < TOKENS_MIN:
        yield f"{figures.tokens:,} tokens were trained on, at least {TOKENS_MIN:,} should be"
    if not figures.initial_loss - figures.final_loss >= LOSS_DROP_MIN:
        yield (
            f"the held-out loss went from {figures.initial_loss:.3f} to {figures.final_loss:.3f}; "
            f"it should fall by {LOSS_DROP_MIN:g} nat or more"
        )
    if figures.seconds > SECONDS_MAX:
        yield f"the demo took {figures.seconds:.0f} s, at most {SECONDS_MAX:.0f} s are allowed"
