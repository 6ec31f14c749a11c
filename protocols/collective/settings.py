"""How peers of a `collective` run average: the run file's `[collective]` table, and what the Python API takes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, Final, Literal

from protocols.averaging.settings import AveragingSpec
from protocols.schema import Fraction, Range, SchemaError

if TYPE_CHECKING:
    from protocols.run import RunSpec

FRAGMENTS_MAX: Final = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class CollectiveSpec:
    """Local steps between averages of outer gradients (DiLoCo, arXiv:2311.08105), by fragments that overlap with training
    (Streaming DiLoCo, arXiv:2501.18512). `training.batch` is what each peer takes per local step."""

    CAN_START: ClassVar[bool] = True

    local_steps: Annotated[int, Range(1, 1 << 20)] = 30
    """Between two averages of a fragment; H in the papers, who find 30 as good as averaging every gradient, and 100 nearly."""
    outer_rate: Annotated[float, Range(0.0, 10.0)] = 0.4
    """Learning rate of the outer step; the streaming paper keeps 0.4 at every size of model. 1 with no momentum is plain averaging."""
    outer_momentum: Annotated[float, Range(0.0, 0.999)] = 0.9
    """Nesterov's."""
    fragments: Annotated[int, Range(1, FRAGMENTS_MAX)] = 1
    """The model is cut in so many parts between layers, and each is averaged at a step of its own: the same bytes, in smaller
    bursts. Each costs its peers a round, so there are at most as many as local steps."""
    order: Literal["strided", "sequential"] = "strided"
    """Of the layers over the fragments: every n-th one, or neighbours. Strided was slightly better in the paper."""
    overlap_steps: Annotated[int, Range(0, 1 << 20)] = 0
    """Local steps that a peer trains while the mean of a fragment is on its way; tau in the paper, which advises at most 5.
    With 0 nobody trains meanwhile."""
    overlap_steps_max: Annotated[int, Range(0, 1 << 20)] = 0
    """A peer whose mean is later than that goes on for so many steps in all before it waits: a tau of its own, for peers with
    slow links. 0 takes `overlap_steps`."""
    mixing: Fraction = 0.0
    """Share of its own parameters that a peer keeps when a mean comes that has overlapped with training; alpha in the paper, which
    has 0.5. With one step of overlap 0 gave a loss nearly 1 % lower (benchmarks.diloco), since peers then go on alike."""
    codec: Literal["float32", "float16", "bfloat16", "int8", "e3m0"] = "float32"
    """Of the outer gradients on their way to be added, which is done in float32. `e3m0` takes four bits for each number, and one
    byte for each of the mean."""
    early_share: Fraction = 0.25
    """A peer that hears that others average a fragment joins at once, if it has trained this share of `local_steps` since
    the last time: so slow machines take part with what they have, and nobody waits for them. 1 has everybody train them all."""
    group_max: Annotated[int, Range(2, 64)] = 64
    """Peers that average together. More of them than this fall into several groups, and these into several runs: choose it
    larger than the run will ever be."""
    peers_to_start: Annotated[int, Range(1, 1024)] = 1
    """Nobody trains its first step before it knows so many peers, itself included: those started together begin together."""
    gather_floor_s: Annotated[float, Range(0.0, 600.0)] = 1.0
    """The least that a group waits for further peers after the last that came, while the directory names some. Above that it goes
    by the arrivals that it has seen."""
    gather_ceiling_s: Annotated[float, Range(0.1, 3600.0)] = 30.0
    """The longest between the first peer that comes and the group that is formed."""

    def __post_init__(self) -> None:
        if self.fragments > self.local_steps:
            raise SchemaError(
                "fragments",
                f"must be at most local_steps ({self.local_steps}): each has a step of its own",
            )
        if self.tau_max >= self.local_steps:
            raise SchemaError(
                "overlap_steps" if self.overlap_steps == self.tau_max else "overlap_steps_max",
                f"must be below local_steps ({self.local_steps}): a mean comes before the next one is due",
            )
        if self.overlap_steps_max and self.overlap_steps_max < self.overlap_steps:
            raise SchemaError(
                "overlap_steps_max", f"must be 0, or at least overlap_steps ({self.overlap_steps})"
            )
        if self.gather_floor_s > self.gather_ceiling_s:
            raise SchemaError(
                "gather_floor_s", f"must not be above gather_ceiling_s ({self.gather_ceiling_s})"
            )

    @property
    def tau_max(self) -> int:
        """Local steps that a peer trains at most while a mean is on its way."""
        return max(self.overlap_steps, self.overlap_steps_max)

    @property
    def averaging(self) -> AveragingSpec:
        """How groups form."""
        return AveragingSpec(
            group_max=self.group_max,
            gather_floor_s=self.gather_floor_s,
            gather_ceiling_s=self.gather_ceiling_s,
        )

    def kept_share(self, *, overlapped: bool) -> float:
        """Return how much of its own parameters a peer keeps when a mean comes."""
        return self.mixing if overlapped else 0.0

    def check_run(self, run: RunSpec) -> None:
        """Refuse a model that cannot learn from the run's data, or whose numbers are not float32."""
        data, model = run.data.kind, run.model.kind
        fits = {
            "text": model not in ("mlp", "convnet", "script"),
            "images": model not in ("byte-transformer", "script"),
            "digits": model not in ("byte-transformer", "script"),
            "script": model == "script",
        }
        if not fits[data]:
            raise SchemaError("model.kind", f"a model of kind {model!r} cannot learn from {data!r}")
        if getattr(run.model, "dtype", "float32") != "float32":
            raise SchemaError("model.dtype", "must be float32 in a run of mode collective")
        if getattr(run.model, "norm", False):
            raise SchemaError(
                "model.norm",
                "has running statistics, which are not averaged: a run of mode collective has none",
            )
