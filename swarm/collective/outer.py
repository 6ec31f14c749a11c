"""Outer parameters and their optimizer: what the peers of a run have in common while each trains a model of its own.

Elementwise on the CPU in float32, so that peers that take the same means have the same outer parameters. One fragment at a
time; the rest of the model is left alone.

Source: DiLoCo (Douillard et al. 2023, arXiv:2311.08105, algorithm 1); with fragments and mixing Streaming DiLoCo (2025,
arXiv:2501.18512, algorithm 2). The optimizer is what torch.optim.SGD(nesterov=True) computes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

from protocols.collective.settings import CollectiveSpec
from swarm.hosting.flat import Piece
from swarm.hosting.module import require_finite


class Layout(Protocol):
    """Where parameters lie in a flat vector."""

    @property
    def pieces(self) -> tuple[Piece, ...]: ...
    @property
    def elements(self) -> int: ...


class Fragments:
    """Where the fragments lie in a flat vector.

    Args:
      names: of the tensors in each, see `protocols.collective.fragments.cut`.
    """

    def __init__(self, layout: Layout, names: Sequence[Sequence[str]]) -> None:
        places = {piece.name: (piece.start, piece.end) for piece in layout.pieces}
        self._bounds = [_joined(sorted(places[name] for name in group)) for group in names]
        self.elements = layout.elements

    def __len__(self) -> int:
        return len(self._bounds)

    def size(self, fragment: int) -> int:
        """Return how many numbers a fragment has."""
        return sum(end - start for start, end in self._bounds[fragment])

    def gather(self, vector: Tensor, fragment: int) -> Tensor:
        """Return a copy of a fragment of a vector (n,) as one vector (size,)."""
        return torch.cat([vector[start:end] for start, end in self._bounds[fragment]])

    def scatter(self, values: Tensor, fragment: int, out: Tensor) -> None:
        """Write a fragment (size,) to its places in a vector (n,)."""
        at = 0
        for start, end in self._bounds[fragment]:
            out[start:end] = values[at : at + end - start]
            at += end - start


def _joined(bounds: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Make neighbours one."""
    joined: list[tuple[int, int]] = []
    for start, end in bounds:
        if joined and joined[-1][1] == start:
            joined[-1] = (joined[-1][0], end)
        else:
            joined.append((start, end))
    return joined


class Outer:
    """The outer parameters and momentum of a whole model.

    Args:
      parameters: (n,) float32, that all peers begin with; copied.
    """

    def __init__(self, spec: CollectiveSpec, fragments: Fragments, parameters: Tensor) -> None:
        self.fragments = fragments
        self._spec = spec
        self.parameters = parameters.detach().to("cpu", torch.float32, copy=True)  # (n,)
        self.momentum = torch.zeros_like(self.parameters)  # (n,)

    @torch.no_grad()
    def difference(self, local: Tensor, fragment: int) -> Tensor:
        """Return the outer gradient: how far a peer's own parameters (n,) have come, outer minus local, (size,).

        Raises NonFiniteError.
        """
        gathered = self.fragments.gather
        difference = gathered(self.parameters, fragment) - gathered(local, fragment).cpu()
        require_finite(difference)
        return difference

    @torch.no_grad()
    def step(self, fragment: int, mean: Tensor, *, last: bool = False) -> None:
        """Do the outer step of a fragment with the mean of its outer gradients (size,).

        Args:
          last: nothing follows that could make up for momentum: the outcome is the mean of the peers' parameters.
        Raises:
          NonFiniteError: the outcome is not finite, and nothing has changed.
        """
        spec, fragments = self._spec, self.fragments
        momentum = fragments.gather(self.momentum, fragment).mul_(spec.outer_momentum).add_(mean)
        ahead = mean if last else mean.add(momentum, alpha=spec.outer_momentum)  # Nesterov's
        rate = 1.0 if last else spec.outer_rate
        parameters = fragments.gather(self.parameters, fragment).sub_(ahead, alpha=rate)
        require_finite(parameters, momentum)
        fragments.scatter(parameters, fragment, self.parameters)
        fragments.scatter(momentum, fragment, self.momentum)

    @torch.no_grad()
    def mix_into(self, local: Tensor, fragment: int, *, kept: float) -> None:
        """Set a fragment of a peer's own parameters (n,) to `kept` of themselves and the rest of the outer ones."""
        outer = self.fragments.gather(self.parameters, fragment).to(local.device)
        if kept:
            own = self.fragments.gather(local, fragment)
            outer = outer.lerp_(own, kept)
        self.fragments.scatter(outer, fragment, local)

    @torch.no_grad()
    def adopt(
        self,
        fragment: int,
        state: Mapping[str, Tensor],
        local: Tensor,
        *,
        counted: Tensor | None = None,
    ) -> None:
        """Take a member's outer state of a fragment for ours. What this peer has learned since its last average stays: its own
        parameters (n,) move by as much as the outer ones.

        Args:
          counted: an outer gradient of ours (size,) that the state has in it already, so that it must not be in our next one.
        Raises:
          NonFiniteError: the outcome is not finite, and nothing has changed.
        """
        fragments = self.fragments
        parameters, momentum = state["parameters"], state["momentum"]
        moved = parameters - fragments.gather(self.parameters, fragment)
        if counted is not None:
            moved += counted
        own = fragments.gather(local, fragment).add_(moved.to(local.device))
        require_finite(parameters, momentum, own)
        fragments.scatter(parameters, fragment, self.parameters)
        fragments.scatter(momentum, fragment, self.momentum)
        fragments.scatter(own, fragment, local)

    def state(self, fragment: int) -> dict[str, Tensor]:
        """Return a copy of what `adopt` takes."""
        gathered = self.fragments.gather
        return {
            "parameters": gathered(self.parameters, fragment),
            "momentum": gathered(self.momentum, fragment),
        }
