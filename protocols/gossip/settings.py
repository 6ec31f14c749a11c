"""How peers of a `gossip` run average: the run file's `[gossip]` table, and what the Python API takes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from protocols.schema import Fraction, Range, SchemaError

if TYPE_CHECKING:
    from protocols.run import RunSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class GossipSpec:
    """Gossip averaging with variance correction (arXiv:2404.04616): no rounds, and nobody waits for anybody."""

    CAN_START: ClassVar[bool] = True
    neighbours: Literal["random", "ring", "exponential", "full"] = "random"
    """With whom a peer exchanges models; both ends compute it from the run's seed (protocols.gossip.topology)."""
    degree: Annotated[int, Range(1, 64)] = 8
    """Neighbours of a peer in the random graph. The paper's 8 mixes 50 peers in three exchanges."""
    target: Literal["median", "mean", "own", "mix"] = "median"
    """The variance that a tensor gets after averaging: the median or the mean of the received models', our own, or
    own_share of our own and the rest of the mean. The paper's default is the mean, which one liar moves at will."""
    correct: bool = True
    """False leaves the variance as averaging made it: plain gossip, to compare with."""
    own_share: Fraction = 0.1
    """Weight of our own model in the average; c in the paper, which has 0.5. Measured: docs/decisions.md."""
    batches: Annotated[int, Range(1, 1 << 20)] = 1
    """Local batches between two pushes."""
    buffer_share: Annotated[float, Range(0.01, 1.0)] = 0.75
    """Average as soon as models of this share of the live neighbours are here. The last of them is late most often: with 1,
    as in the paper, peers average after 70 % of their batches, with 0.75 after 93 %."""
    average_after_batches: Annotated[int, Range(1, 1 << 20)] = 8
    """Average with whatever is here, one model at least, after so many batches: slow neighbours hold up nobody."""
    push_share: Annotated[float, Range(0.01, 1.0)] = 1.0
    """Share of the tensors in one push. 0.25 sends a quarter of them each time, in turn: a quarter of the traffic."""
    variance_factor: Annotated[float, Range(0.0, 1e6)] = 4.0
    """0 refuses nothing. Else a model is refused when a tensor's variance is more times off the median. Of honest peers'
    models 0.5 % were in the first ten rounds (Dirichlet(0.5), three layers), when they differ most."""
    clip: bool = True
    """Move each received model to at most the median distance from our own. It costs nothing without liars."""
    independent_averages: Annotated[int, Range(0, 1 << 20)] = 4
    """A newcomer starts from a neighbour's model when that has been averaged so often; before that from its own."""

    def __post_init__(self) -> None:
        if 0 < self.variance_factor < 1.5:
            raise SchemaError("variance_factor", "must be 0, or at least 1.5: honest peers differ")

    def check_run(self, run: RunSpec) -> None:
        """Refuse a model that cannot learn from the run's data."""
        data, model = run.data.kind, run.model.kind
        fits = {
            "text": model not in ("mlp", "convnet", "script"),
            "images": model not in ("byte-transformer", "script"),
            "digits": model not in ("byte-transformer", "script"),
            "script": model == "script",
        }
        if not fits[data]:
            raise SchemaError("model.kind", f"a model of kind {model!r} cannot learn from {data!r}")

    batch_every_s: Annotated[float, Range(0.0, 3600.0)] = 0.0
    """No peer begins a batch sooner than this after the one before: evens out fast and slow machines; 0 is flat out."""
    neighbours_to_start: Annotated[int, Range(0, 64)] = 0
    """Nobody trains its first batch before it knows so many neighbours: peers that are started together begin together."""

    @property
    def parts(self) -> int:
        """In how many pushes a whole model is sent."""
        return max(1, round(1 / self.push_share))

    def enough(self, live_neighbours: int) -> int:
        """How many models fill the buffer."""
        return max(1, math.ceil(self.buffer_share * live_neighbours))
