"""The tensors behind the core's handles: our model, its newest snapshots, and what neighbours sent.

Everything that touches a tensor runs on the compute thread, or on the codec thread where it is a received one's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from protocols.gossip.pushes import ModelLayout
from protocols.gossip.settings import GossipSpec
from protocols.ids import PeerID
from swarm.gossip.arithmetic import Averaging, Moments, average_, moments
from swarm.gossip.info import MODEL
from swarm.gossip.table import Table
from swarm.learner.learner import Learner
from swarm.state.snapshot import Snapshot


@dataclass(slots=True)
class Received:
    """A neighbour's part, or its whole model."""

    peer: PeerID
    vector: Tensor
    moments: Moments


class Models:
    """The store. Its methods that compute are called on the thread they name."""

    def __init__(self, learner: Learner, spec: GossipSpec) -> None:
        self.learner = learner
        self.spec = spec
        self.table = Table.of_shapes(
            (piece.name, piece.shape) for piece in learner.hosted.layout.pieces
        )
        self.parts = self.table.parts(spec.parts)
        dtype = str(learner.flat.dtype).removeprefix("torch.")
        self.layout: ModelLayout = self.table.layout(dtype=dtype, parts=spec.parts)
        self.received: dict[int, Received] = {}
        self._snapshots: dict[int, Tensor] = {}
        """By sequence: the newest, and those that pushes still read."""
        self._newest = 0
        self._readers: dict[int, int] = {}
        self._base = learner.flat.detach().cpu().clone()
        """Our model as it was pushed last, and averaged since; at first the initial one."""
        self._good: Tensor | None = None
        """The newest snapshot: what a roll-back returns to."""

    # --- on the compute thread ---

    def copy(self) -> Tensor | None:
        """Return a copy of the model; None when it is not finite, by the measure that neighbours apply to it."""
        copied = self.learner.flat.detach().cpu().clone()
        if not moments(copied, self.table).finite:
            return None
        self._base.copy_(copied)
        return copied

    def average(self, part: int, models: Sequence[Received]) -> Averaging:
        """Average these models into a part of ours."""
        table = self.parts[part]
        own = self.learner.flat[table.start : table.end]
        on_cpu = own if own.device.type == "cpu" else own.cpu()
        done = average_(
            on_cpu,
            [m.vector for m in models],
            [m.moments for m in models],
            table,
            self.spec,
            base=self._base[table.start : table.end],
        )
        if on_cpu is not own:
            own.copy_(on_cpu)
        return done

    def roll_back(self) -> None:
        """Return to the last good snapshot, or to the initial weights."""
        self.learner.replace_parameters(self._good)
        self._base.copy_(self.learner.flat.detach())

    def adopt(self, vector: Tensor, trained: int) -> None:
        """Take a fetched model for ours, with so many batches behind it."""
        self.learner.trained = max(self.learner.trained, trained)
        self.learner.replace_parameters(vector)
        self._good = vector
        self._base.copy_(vector)

    def try_out(self, vector: Tensor) -> tuple[float, float]:
        """Return the loss of a fetched model, and of our own, on a batch of ours."""
        batch = self.learner.batches(self.learner.trained)
        return self.learner.loss_on(vector, batch), self.learner.loss_on(
            self.learner.flat.clone(), batch
        )

    # --- on the codec thread ---

    def measure(self, vector: Tensor, part: int | None) -> Moments:
        """Return the moments of a part, or of a whole model."""
        return moments(vector, self.table if part is None else self.parts[part])

    def hashed(self, vector: Tensor, sequence: int) -> Snapshot:
        """Return a snapshot as it is fetched: the model's tensors by name, hashed."""
        return Snapshot.of(self.tensors_of(vector), part=MODEL, version=sequence)

    # --- on the event loop ---

    def keep(self, sequence: int, vector: Tensor) -> None:
        """This is our newest snapshot from now on."""
        self._snapshots[sequence] = vector
        self._newest = sequence
        self._good = vector
        for old in list(self._snapshots):
            self._forget(old)

    @property
    def newest(self) -> Tensor | None:
        return self._snapshots.get(self._newest)

    def tensors_of(self, vector: Tensor) -> dict[str, Tensor]:
        """Return views of a flat model under the names of its parameters."""
        return self.learner.hosted.layout.views(vector)

    def vector_of(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Return a whole model as one vector."""
        layout = self.learner.hosted.layout
        vector = torch.empty(layout.elements, dtype=self.learner.flat.dtype)
        return layout.flatten((tensors[piece.name] for piece in layout.pieces), vector)

    def open_part(self, sequence: int, part: int) -> Tensor:
        """Return a part of a snapshot to be sent; give it back with `close_part`. Raises KeyError."""
        table = self.parts[part]
        vector = self._snapshots[sequence]
        self._readers[sequence] = self._readers.get(sequence, 0) + 1
        return vector[table.start : table.end]

    def close_part(self, sequence: int) -> None:
        """The push is over."""
        self._readers[sequence] -= 1
        if not self._readers[sequence]:
            del self._readers[sequence]
        self._forget(sequence)

    @property
    def bytes_held(self) -> int:
        held = [*self._snapshots.values(), *(model.vector for model in self.received.values())]
        return sum(vector.nbytes for vector in held)

    def _forget(self, sequence: int) -> None:
        if sequence != self._newest and sequence not in self._readers:
            self._snapshots.pop(sequence, None)
