"""A run: everything peers must agree on to train one model. Its hash is the RunID.

A volunteer's own wishes (threads, rates, paths) are not here but in node.config. Reading the TOML file, with its
line numbers and hints, is node.runfile's; here is the shape, the rules between keys, and the canonical bytes.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Annotated, Final, Literal

import msgpack

from protocols.errors import RemoteProtocolError
from protocols.frames import unpack_untrusted
from protocols.ids import RunID
from protocols.schema import Fraction, Natural, Positive, Range, SchemaError, Size, decode, encode

NonNegative = Annotated[float, Range(0.0)]
AboveZero = Annotated[float, Range(1e-12)]
Name = Annotated[str, Size(1, 64)]

RUN_BYTES_MAX: Final = 64 * 1024
"""The canonical form of a run is a page of settings; peers refuse to accept more than this."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """Which network. The defaults are the demo's: 0.66 M parameters."""

    kind: Name = "byte-transformer"
    """A built-in model or one installed locally under the entry-point group `murmura.models`."""
    layers: Annotated[int, Range(1, 1024)] = 3
    width: Annotated[int, Range(8, 65536)] = 128
    heads: Annotated[int, Range(1, 1024)] = 4
    context: Annotated[int, Range(8, 1 << 20)] = 128
    """Tokens a sequence has; the byte transformer predicts each from those before it."""
    dtype: Literal["float32", "float64"] = "float32"

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise SchemaError("heads", f"must divide width ({self.width}), {self.heads} does not")
        if self.width // self.heads % 2:  # rotary positions turn pairs of numbers
            raise SchemaError(
                "heads", f"must leave an even width per head, not {self.width // self.heads}"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class DataSpec:
    """Which text. A node whose files hash differently does not train."""

    pattern: Annotated[str, Size(1, 1024)]
    """Where a node looks by default: a file, a folder, or a glob such as `{stdlib}/**/*.py`."""
    sha256: Annotated[str, Size(64, 64)]
    """Of the files' names and contents in sorted order; `murmura config data PATH` prints it."""
    bytes_max: Annotated[int, Range(1024, 1 << 40)] = 16 * 1024 * 1024
    """Text past this, in sorted order, is not used: a folder of any size starts quickly and fits in memory."""
    held_out: Annotated[float, Range(0.001, 0.5)] = 0.05
    """Share of the text, at its end, that is never trained on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimizerSpec:
    """AdamW (arXiv:1711.05101) with linear warm-up and a cosine to `lr_min`."""

    lr: AboveZero = 3e-3
    lr_min: NonNegative = 3e-4
    warmup_steps: Natural = 10
    beta1: Fraction = 0.9
    beta2: Fraction = 0.95
    eps: AboveZero = 1e-8
    weight_decay: NonNegative = 0.1
    """For matrices only; norms, biases and embeddings are not decayed."""
    clip_norm: NonNegative = 1.0
    """Bound on the gradient's norm over all stages together; 0 turns clipping off."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PipelineSpec:
    """How a step is cut: stages of layers, microbatches of sequences (SWARM, arXiv:2301.11913)."""

    stages: Annotated[int, Range(1, 1024)] = 3
    microbatches: Annotated[int, Range(1, 65536)] = 16
    """Per optimizer step, over all trainers."""
    sequences: Annotated[int, Range(1, 4096)] = 2
    """Per microbatch; each has `model.context` tokens."""
    steps: Positive = 120
    replicas_to_start: Annotated[int, Range(1, 1024)] = 1
    """Every stage has so many replicas before the first step; afterwards one is enough to go on."""
    evaluate_every: Natural = 10
    """Steps between held-out evaluations; 0 turns them off."""
    evaluation_microbatches: Annotated[int, Range(1, 4096)] = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadlineSpec:
    """Bounds of deadlines; between them they follow what is observed."""

    floor_s: Annotated[float, Range(0.05, 600.0)] = 2.0
    """No peer is suspected of silence sooner: covers a scheduler hiccup on a loaded home machine. Hearts beat four times in
    it, and no request is given less time than it."""
    ceiling_s: Annotated[float, Range(0.1, 3600.0)] = 60.0
    """However slow a peer has been, its partners do not wait longer."""

    def __post_init__(self) -> None:
        if self.floor_s > self.ceiling_s:
            raise SchemaError("floor_s", f"must not be above ceiling_s ({self.ceiling_s})")


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSpec:
    """One run. Unknown keys are errors, so a typing mistake cannot train silently."""

    name: Name
    mode: Literal["pipeline"] = "pipeline"
    seed: Natural = 0
    """Fixes initial weights and which text is in which microbatch."""
    data: DataSpec
    model: ModelSpec = field(default_factory=ModelSpec)
    optimizer: OptimizerSpec = field(default_factory=OptimizerSpec)
    pipeline: PipelineSpec = field(default_factory=PipelineSpec)
    deadlines: DeadlineSpec = field(default_factory=DeadlineSpec)

    def __post_init__(self) -> None:
        if self.pipeline.stages > self.model.layers:
            raise SchemaError(
                "pipeline.stages",
                f"must be at most model.layers ({self.model.layers}): each stage has at least one layer",
            )

    @property
    def run_id(self) -> RunID:
        return RunID(hashlib.sha256(self.canonical_bytes()).digest())

    def canonical_bytes(self) -> bytes:
        """Return the form that is hashed and sent: msgpack with every key present, in the order of the shapes."""
        return bytes(msgpack.packb(encode(self)))


def run_from_canonical_bytes_untrusted(raw: bytes, expected: RunID) -> RunSpec:
    """Decode a run that a peer sent. Raises RemoteProtocolError when it is not the one asked for."""
    if len(raw) > RUN_BYTES_MAX or hashlib.sha256(raw).digest() != expected:
        raise RemoteProtocolError(
            "these bytes are not the run that was asked for: their hash differs"
        )
    try:
        return decode(RunSpec, unpack_untrusted(raw))
    except SchemaError as error:
        raise RemoteProtocolError(f"this version cannot read the run: {error}") from error
