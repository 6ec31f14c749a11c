"""How a model is cut in stages: contiguous runs of layers, as even as they can be."""

from __future__ import annotations

from dataclasses import dataclass

from protocols.errors import LocalProtocolError


@dataclass(frozen=True, slots=True)
class Cut:
    """One stage of a model: its layers, and whether it holds an end."""

    layers: range
    """Indices in the whole model, so that a layer has one name however the model is cut."""
    is_first: bool
    """Holds the embedding."""
    is_last: bool
    """Holds the head and the loss."""


def cut_of(*, layers: int, stages: int, stage: int) -> Cut:
    """Return the layers of one stage. Where they cannot be even, earlier stages get one layer more.

    The last stage has the head to compute, so it is the one to be spared.
    """
    if not 1 <= stages <= layers or not 0 <= stage < stages:
        raise LocalProtocolError(f"{layers} layers cannot give stage {stage} of {stages}")
    size, larger = divmod(layers, stages)
    start = stage * size + min(stage, larger)
    end = start + size + (stage < larger)
    return Cut(range(start, end), is_first=stage == 0, is_last=stage == stages - 1)
