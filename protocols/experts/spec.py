"""How a `moe` run trains: the run file's `[moe]` table, and what the Python API takes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, Final, Literal

from protocols.experts.uid import DIMENSIONS_MAX, ExpertUID, Grid
from protocols.gossip.settings import GossipSpec
from protocols.schema import Fraction, Natural, Range, SchemaError, Size

if TYPE_CHECKING:
    from protocols.run import RunSpec, ScriptExpertsSpec

COSINE_WIDTH: Final = 16
"""Of the space in which cosines are taken: small, as in X-MoE, so that inputs stay spread."""
EXPERTS_MAX: Final = 4096
"""In all layers of a run: every node that hosts watches all of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MoeSpec:
    """Feed-forward layers whose experts live on the nodes of the run (Learning@home, arXiv:2002.04013)."""

    CAN_START: ClassVar[bool] = True

    grid: Annotated[tuple[Annotated[int, Range(1, EXPERTS_MAX)], ...], Size(1, DIMENSIONS_MAX)] = (
        4,
        4,
    )
    """Of each layer. The gate scores coordinates, not experts: 64 x 64 experts cost it 128 numbers."""
    k: Annotated[int, Range(1, 64)] = 2
    """Experts per token, or per sample."""
    k_min: Annotated[int, Range(1, 64)] = 1
    """With fewer answers a token is sent to other experts; when nobody is left, the step fails."""
    route: Literal["token", "sample"] = "token"
    """`sample` chooses for a whole sequence by its mean, as in the paper: fewer calls, but the choice has then seen bytes that
    are still to be predicted."""
    scores: Literal["product", "cosine"] = "product"
    """`cosine` is X-MoE (arXiv:2204.09179): cosine similarity in a small space, so that inputs do not collapse onto experts."""
    hidden: Annotated[int, Range(1, 1 << 20)] = 256
    """Numbers in the middle of an expert."""
    noise: Annotated[float, Range(0.0, 10.0)] = 0.2
    """Standard deviation of what is added to scores in training, so that experts that lost early are tried again."""
    balance: Annotated[float, Range(0.0, 10.0)] = 0.01
    """Weight of the load-balancing loss (arXiv:2101.03961)."""
    staleness_max: Annotated[int, Range(0, 1 << 20)] = 64
    """A gradient is refused when its expert has stepped more often since the forward pass that it belongs to."""
    expert_steps: Natural = 0
    """Optimizer steps of one expert over which its learning rate falls to lr_min; 0 keeps it at lr."""
    expert_rate: Annotated[float, Range(1e-6, 1e3)] = 1.0
    """Times the optimizer's learning rate, for experts: an expert steps once for each batch of every trainer, so more often than
    any trunk does, and on fewer rows."""
    experts_per_node: Annotated[int, Range(0, EXPERTS_MAX)] = 0
    """At most; 0 takes what a quarter of the machine's memory has room for, and what it can compute once in a second, each on its
    share of one trainer's batch."""
    nodes_to_start: Annotated[int, Range(1, 1024)] = 1
    """Nobody creates experts before it knows so many nodes, itself included: those started together share the grid out."""
    keepers: Annotated[int, Range(0, 16)] = 1
    """Nodes that keep a copy of an expert's newest snapshot, beside its host."""
    snapshot_every_s: Annotated[float, Range(0.5, 3600.0)] = 5.0
    """What an expert learned since its last snapshot is lost with its host."""
    replicas: Annotated[int, Range(0, 3)] = 0
    """Other nodes that answer for each expert too, as far as they have room: more of its hosts may go at once, and calls have
    somebody else to go to."""
    popular: Annotated[float, Range(0.01, 1.0)] = 0.5
    """An expert that takes more than this share of its host's time gets one replica more; 1 turns that off."""
    replicas_average_s: Annotated[float, Range(0.2, 3600.0)] = 2.0
    """Between two averagings of a replica with its expert."""
    announced_s: Annotated[float, Range(5.0, 600.0)] = 60.0
    """How long the directory names a host that went silently; whoever calls it finds out at once."""
    refresh_s: Annotated[float, Range(0.2, 60.0)] = 2.0
    """Between two looks at the directory."""
    average_every: Annotated[int, Range(1, 1 << 20)] = 4
    """Batches between two averagings of what is not an expert: attention, gates, embedding, head."""
    average_share: Fraction = 0.25
    """Weight of our own in that average."""
    batch_every_s: Annotated[float, Range(0.0, 3600.0)] = 0.0
    """No node begins a batch sooner than this after the one before; 0 is flat out."""

    def __post_init__(self) -> None:
        if self.k > math.prod(self.grid):
            raise SchemaError("k", f"a grid of {math.prod(self.grid)} has no {self.k} experts")
        if self.k_min > self.k:
            raise SchemaError("k_min", f"must not be above k ({self.k})")

    def check_run(self, run: RunSpec) -> None:
        """Refuse what this mode cannot train."""
        # The run's package imports this module.
        from protocols.run.model import ByteTransformerSpec, ScriptExpertsSpec

        if isinstance(run.model, ScriptExpertsSpec):
            _check_script(run, run.model)
            return
        if not isinstance(run.model, ByteTransformerSpec) or run.data.kind != "text":
            raise SchemaError("model.kind", "a moe run trains a byte-transformer on text")
        if run.model.layers * math.prod(self.grid) > EXPERTS_MAX:
            raise SchemaError("moe.grid", f"a run has at most {EXPERTS_MAX} experts in all layers")

    def grids(self, layers: int) -> tuple[Grid, ...]:
        """Return the grid of each layer of a model."""
        return tuple(Grid(f"ffn{index}", self.grid) for index in range(layers))

    def uids(self, layers: int) -> Iterator[ExpertUID]:
        """Yield all experts of a model."""
        for grid in self.grids(layers):
            yield from grid.uids()

    def averaging(self) -> GossipSpec:
        """Return how trainers keep the rest of the model together: plain averaging of all with all, from the same start."""
        return GossipSpec(
            neighbours="full",
            correct=False,
            clip=False,
            variance_factor=0.0,
            own_share=self.average_share,
            batches=self.average_every,
            average_after_batches=max(8, 2 * self.average_every),
            independent_averages=1,
            batch_every_s=self.batch_every_s,
            neighbours_to_start=self.nodes_to_start - 1,
        )


def _check_script(run: RunSpec, model: ScriptExpertsSpec) -> None:
    if run.start is not None:
        raise SchemaError("start", "the experts of this run live in scripts, which begin them")
    if run.data.kind != "script":
        raise SchemaError("data.kind", "scripts feed their experts themselves: kind is script")
    for layer, sizes in model.layers.items():
        try:
            Grid(layer, sizes)
        except ValueError as error:
            raise SchemaError(f"model.layers.{layer}", str(error)) from error
