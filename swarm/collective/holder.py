"""A peer's own model and the outer state, and everything that is done to them: on the compute thread, one job at a time."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from protocols.averaging.messages import MEMBERS_MAX
from protocols.collective.fragments import cut
from protocols.collective.messages import HISTORY_MAX
from protocols.collective.rounds import FIRST_LINE, Fragment
from protocols.collective.settings import CollectiveSpec
from protocols.errors import RemoteProtocolError
from protocols.ids import PeerID
from swarm.collective.outer import Fragments, Outer
from swarm.hosting.errors import NonFiniteError
from swarm.hosting.module import PARAMETERS, STEP
from swarm.learner.learner import Learner, TrainedBatch
from swarm.learner.task import Evaluation

MOMENTUM: Final = "momentum"
LINES: Final = "lines"
MEMBERS: Final = "members"
_LINE_BYTES: Final = 16
_MEMBER_BYTES: Final = 8


@dataclass(frozen=True, slots=True)
class History:
    """What a fragment's outer state is called."""

    version: int = 0
    lines: tuple[bytes, ...] = (FIRST_LINE,)
    members: tuple[bytes, ...] = ()
    """Whose outer gradients were in its newest round: `member_name` of each."""


class Holder:
    """The model of one peer.

    Args:
      learner: with the run's initial parameters, which are the outer ones of all peers.
    """

    def __init__(self, learner: Learner, spec: CollectiveSpec) -> None:
        named = [(name, parameter.numel()) for name, parameter in learner.named_parameters()]
        names = cut(named, count=spec.fragments, order=spec.order)
        self.learner = learner
        self.spec = spec
        self.fragments = Fragments(learner.hosted.layout, names)
        self.outer = Outer(spec, self.fragments, learner.flat)
        self.histories = [History() for _ in names]
        """Written on the compute thread together with the state they name."""
        self.step = 0
        """Local steps of the run that are behind the own model: the core's, kept over its restarts."""

    # --- on the compute thread ---

    def train(self, step: int) -> TrainedBatch:
        """Train local step `step`, counted from 0."""
        self.learner.trained = step
        try:
            return self.learner.train_batch()
        except NonFiniteError:
            return TrainedBatch(float("nan"), finite=False)

    def difference(self, fragment: int) -> Tensor:
        """Return the outer gradient of a fragment. Raises NonFiniteError."""
        return self.outer.difference(self.learner.flat, fragment)

    def apply(
        self, fragment: int, mean: Tensor, history: History, *, overlapped: bool, last: bool
    ) -> None:
        """Do the outer step of a fragment. Raises NonFiniteError; then nothing has changed."""
        self.outer.step(fragment, mean, last=last)
        self.histories[fragment] = history
        kept = self.spec.kept_share(overlapped=overlapped)
        self.outer.mix_into(self.learner.flat, fragment, kept=kept)

    def adopt(
        self,
        fragment: int,
        state: Mapping[str, Tensor],
        history: History,
        *,
        counted: Tensor | None = None,
    ) -> None:
        """Take a member's outer state of a fragment. Raises NonFiniteError; then nothing has changed."""
        self.outer.adopt(fragment, state, self.learner.flat, counted=counted)
        self.histories[fragment] = history

    def roll_back(self) -> None:
        """Go on from the outer parameters, with a new optimizer state."""
        self.learner.replace_parameters(self.outer.parameters)

    def evaluate(self) -> Evaluation:
        """Look at held-out samples with the outer parameters: they are better than any peer's own."""
        return self.learner.evaluate_on(self.outer.parameters)

    def state(self, fragment: int) -> tuple[int, Mapping[str, Tensor]]:
        """Return version and tensors of a fragment's outer state, as members fetch it."""
        history = self.histories[fragment]
        return history.version, self.outer.state(fragment) | {
            LINES: _packed(history.lines, HISTORY_MAX, _LINE_BYTES),
            MEMBERS: _packed(history.members, MEMBERS_MAX, _MEMBER_BYTES),
            STEP: torch.tensor(history.version, dtype=torch.int64),
        }

    def whole(self) -> tuple[int, Mapping[str, Tensor]]:
        """Return version and tensors of the whole outer state, as it is kept on disk."""
        views = self.learner.hosted.layout.views
        tensors = {
            **{f"{PARAMETERS}/{n}": v for n, v in views(self.outer.parameters.clone()).items()},
            **{f"{MOMENTUM}/{n}": v for n, v in views(self.outer.momentum.clone()).items()},
            STEP: torch.tensor(self.version, dtype=torch.int64),
        }
        return self.version, tensors

    def load(self, tensors: Mapping[str, Tensor], histories: Sequence[History]) -> None:
        """Go on from a whole outer state; the own model begins there."""
        layout = self.learner.hosted.layout
        for group, vector in ((PARAMETERS, self.outer.parameters), (MOMENTUM, self.outer.momentum)):
            for name, view in layout.views(vector).items():
                view.copy_(tensors[f"{group}/{name}"])
        self.histories = list(histories)
        self.roll_back()

    # --- anywhere ---

    @property
    def version(self) -> int:
        """Of the whole outer state: the step after which a fragment was averaged last."""
        return max(history.version for history in self.histories)

    def kept(self) -> list[Fragment]:
        """Return what the core must know of the fragments when it begins."""
        return [Fragment(history.version, history.lines) for history in self.histories]


def history_untrusted(version: int, tensors: Mapping[str, Tensor]) -> History:
    """Read what a fetched state is called. Raises RemoteProtocolError."""
    lines = _unpacked(tensors[LINES])
    if not lines:
        raise RemoteProtocolError("a fetched outer state has no history")
    return History(version, lines, _unpacked(tensors[MEMBERS]))


def member_name(peer: PeerID) -> bytes:
    """Return what stands for a peer in a state: short, so that a group takes half a kilobyte."""
    return hashlib.blake2b(b"murmura member" + peer, digest_size=_MEMBER_BYTES).digest()


def _packed(names: Sequence[bytes], rows: int, width: int) -> Tensor:
    """Return (rows, width) uint8: a name in each row, and zeros in the rest."""
    packed = torch.zeros(rows, width, dtype=torch.uint8)
    for row, name in zip(packed, names, strict=False):
        row.copy_(torch.tensor(list(name), dtype=torch.uint8))
    return packed


def _unpacked(packed: Tensor) -> tuple[bytes, ...]:
    return tuple(name for row in packed if any(name := bytes(row.tolist())))
