"""`[model]`: which network. A union by `kind`, each kind with keys of its own."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal, TypeAlias

from protocols.schema import Range, SchemaError, Size

Dtype: TypeAlias = Literal["float32", "float64"]
"""Both are exact enough that replicas agree; narrower ones are not offered yet."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ByteTransformerSpec:
    """A causal transformer over bytes. The defaults are the demo's: 0.66 M parameters."""

    kind: Literal["byte-transformer"] = "byte-transformer"
    layers: Annotated[int, Range(1, 1024)] = 3
    width: Annotated[int, Range(8, 65536)] = 128
    heads: Annotated[int, Range(1, 1024)] = 4
    context: Annotated[int, Range(8, 1 << 20)] = 128
    """Tokens a sequence has; the byte transformer predicts each from those before it."""
    dtype: Dtype = "float32"

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise SchemaError("heads", f"must divide width ({self.width}), {self.heads} does not")
        if self.width // self.heads % 2:  # rotary positions turn pairs of numbers
            raise SchemaError(
                "heads", f"must leave an even width per head, not {self.width // self.heads}"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class MlpSpec:
    """Fully connected layers with ReLU between them, over flattened samples."""

    kind: Literal["mlp"]
    layers: Annotated[int, Range(1, 256)] = 3
    """Weight matrices, the output's included."""
    width: Annotated[int, Range(1, 65536)] = 128
    dtype: Dtype = "float32"


@dataclass(frozen=True, slots=True, kw_only=True)
class ConvnetSpec:
    """Convolutions of 3 x 3 with ReLU and pooling, then one fully connected layer."""

    kind: Literal["convnet"]
    channels: Annotated[tuple[Annotated[int, Range(1, 4096)], ...], Size(1, 16)] = (16, 32)
    """Of each convolution; each halves height and width."""
    norm: bool = False
    """A batch normalisation after each convolution; its running statistics stay each peer's own."""
    dtype: Dtype = "float32"


@dataclass(frozen=True, slots=True, kw_only=True)
class ScriptModelSpec:
    """The model of somebody's own script (`murmura.join`). No daemon can train it: it has no code for it."""

    kind: Literal["script"]
    sha256: Annotated[str, Size(64, 64)]
    """Of the parameters' names, shapes and dtypes, so that only scripts with the same model take part."""
    parameters: Annotated[int, Range(1, 1 << 40)]
    """How many numbers it has, for people and for bounds on messages."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScriptExpertsSpec:
    """Experts of any kind that scripts host and ask (`murmura.Server`, `murmura.RemoteMixtureOfExperts`)."""

    kind: Literal["script-experts"]
    width: Annotated[int, Range(1, 65536)]
    """Of an expert's input and output: it maps (rows, width) to (rows, width)."""
    layers: Annotated[
        dict[
            Annotated[str, Size(1, 32)],
            Annotated[tuple[Annotated[int, Range(1, 65536)], ...], Size(1, 4)],
        ],
        Size(1, 256),
    ]
    """The grid of each layer; it may stay mostly empty."""
    dtype: Dtype = "float32"


@dataclass(frozen=True, slots=True, kw_only=True)
class InstalledModelSpec:
    """A model that every volunteer has installed, as an entry point of the group `murmura.models` with this name."""

    kind: Annotated[str, Size(1, 64)]
    layers: Annotated[int, Range(1, 1024)] = 1
    """What a pipeline cuts into stages."""
    width: Annotated[int, Range(1, 65536)] = 128
    """Numbers per token, or per sample, that pass between stages."""
    context: Annotated[int, Range(1, 1 << 20)] = 1
    dtype: Dtype = "float32"
    options: Annotated[
        dict[Annotated[str, Size(1, 64)], bool | int | float | Annotated[str, Size(0, 256)]],
        Size(0, 64),
    ] = field(default_factory=dict)
    """Whatever else the model wants to know."""


ModelSpec: TypeAlias = (
    ByteTransformerSpec
    | MlpSpec
    | ConvnetSpec
    | ScriptModelSpec
    | ScriptExpertsSpec
    | InstalledModelSpec
)

LayeredModelSpec: TypeAlias = ByteTransformerSpec | InstalledModelSpec
"""Models that can be cut between layers."""
