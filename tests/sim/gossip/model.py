"""A model without tensors: whose training is in it, and how fresh that is. So a checker sees what was really averaged."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TypeAlias

from protocols.ids import PeerID


@dataclass(frozen=True, slots=True)
class Part:
    """The numbers of one part of a model."""

    trained_s: Mapping[PeerID, float]
    """When the newest batch was trained that is in these numbers, by who trained it, in seconds of the run."""
    finite: bool = True


Model: TypeAlias = tuple[Part, ...]


def initial(parts: int) -> Model:
    """Return an independent start: nobody has trained it."""
    return tuple(Part({}) for _ in range(parts))


def trained(model: Model, peer: PeerID, now_s: float, *, finite: bool) -> Model:
    """Add a batch."""
    return tuple(
        Part({**part.trained_s, peer: now_s}, finite=part.finite and finite) for part in model
    )


def averaged(own: Part, others: Iterable[Part]) -> Part:
    """Mix: the newest of each peer's training is what can be seen of it."""
    newest = dict(own.trained_s)
    finite = own.finite
    for other in others:
        finite = finite and other.finite
        for peer, at_s in other.trained_s.items():
            newest[peer] = max(at_s, newest.get(peer, at_s))
    return Part(newest, finite)


def with_part(model: Model, index: int, part: Part) -> Model:
    return (*model[:index], part, *model[index + 1 :])


def broken(part: Part) -> Part:
    return replace(part, finite=False)


def is_finite(model: Model) -> bool:
    return all(part.finite for part in model)
