"""`[data]`: what is learned from. A union by `kind`. A node whose files hash differently does not train."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal, TypeAlias

from protocols.schema import Range, Size

HeldOut: TypeAlias = Annotated[float, Range(0.001, 0.5)]
Sha256: TypeAlias = Annotated[str, Size(64, 64)]


@dataclass(frozen=True, slots=True, kw_only=True)
class TextSpec:
    """Text, as bytes."""

    kind: Literal["text"] = "text"
    pattern: Annotated[str, Size(1, 1024)]
    """Where a node looks by default: a file, a folder, or a glob such as `{stdlib}/**/*.py`."""
    sha256: Sha256
    """Of the files' names and contents in sorted order; `murmura config data PATH` prints it."""
    bytes_max: Annotated[int, Range(1024, 1 << 40)] = 16 * 1024 * 1024
    """Text past this, in sorted order, is not used: a folder of any size starts quickly and fits in memory."""
    held_out: HeldOut = 0.05
    """Share of the text, at its end, that is never trained on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PartitionSpec:
    """How labelled samples are cut between peers whose models differ (modes with a whole model on each peer)."""

    partition: Literal["iid", "dirichlet"] = "iid"
    """`dirichlet`: each partition has a mixture of labels of its own (Hsu et al. 2019, arXiv:1909.06335)."""
    alpha: Annotated[float, Range(1e-3, 1e3)] = 0.5
    """Of the Dirichlet distribution: the smaller, the fewer labels dominate a partition."""
    partitions: Annotated[int, Range(1, 65536)] = 8
    """Every peer takes one that is free, or shares one when none is."""
    held_out: HeldOut = 0.2
    """Share of the samples that is never trained on; the same for all peers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImagesSpec(PartitionSpec):
    """Labelled images in one `.npz` file: `x` (N, H, W) or (N, H, W, C) uint8, `y` (N,) whole numbers from 0."""

    kind: Literal["images"]
    pattern: Annotated[str, Size(1, 1024)]
    """The file."""
    sha256: Sha256
    """Of the file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DigitsSpec(PartitionSpec):
    """The 1,797 handwritten digits of 8 x 8 pixels that scikit-learn ships (the extra `digits`)."""

    kind: Literal["digits"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ScriptDataSpec:
    """Whatever somebody's own script feeds its model. Nobody checks it."""

    kind: Literal["script"]


DataSpec: TypeAlias = TextSpec | ImagesSpec | DigitsSpec | ScriptDataSpec
