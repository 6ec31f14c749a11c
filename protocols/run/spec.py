"""The run as a whole: the rules between its tables, its canonical bytes, and its hash."""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import dataclass, field
from typing import Annotated, Any, Final, TypeVar

import msgpack

from protocols.errors import RemoteProtocolError
from protocols.frames import unpack_untrusted
from protocols.ids import RunID
from protocols.run.data import DataSpec
from protocols.run.model import ByteTransformerSpec, ModelSpec
from protocols.run.optimizer import AdamWSpec, OptimizerSpec
from protocols.run.pipeline import PipelineSpec
from protocols.run.start import StartSpec
from protocols.run.tables import TABLES, ChecksRun
from protocols.run.training import DeadlineSpec, TrainingSpec
from protocols.schema import Natural, SchemaError, Size, decode, encode, unknown_key

RUN_BYTES_MAX: Final = 64 * 1024
"""The canonical form of a run is a page of settings; peers refuse to accept more than this."""
DEFAULT_MODE: Final = "pipeline"

TableT = TypeVar("TableT")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Common:
    """What a run of any mode says. Unknown keys are errors, so a typing mistake cannot train silently."""

    name: Annotated[str, Size(1, 64)]
    mode: Annotated[str, Size(1, 32)] = DEFAULT_MODE
    seed: Natural = 0
    """Fixes initial weights and which samples are in which batch."""
    data: DataSpec
    model: ModelSpec = field(default_factory=ByteTransformerSpec)
    optimizer: OptimizerSpec = field(default_factory=AdamWSpec)
    training: TrainingSpec = field(default_factory=TrainingSpec)
    deadlines: DeadlineSpec = field(default_factory=DeadlineSpec)
    start: StartSpec | None = None
    """Not hashed when there is none, so that runs from before this table are what they were."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSpec(_Common):
    """One run. In the file and in its canonical form the table stands under the mode's name."""

    table: Any = field(default_factory=PipelineSpec)
    """The mode's own settings, a dataclass of the shape that `protocols.run.tables` has for the mode."""

    def __post_init__(self) -> None:
        shape = TABLES.get(self.mode)
        if shape is None:
            raise SchemaError("mode", f"must be one of {', '.join(TABLES)}")
        if type(self.table) is not shape:
            raise SchemaError(self.mode, f"must be a {shape.__name__}")
        if isinstance(self.table, ChecksRun):
            self.table.check_run(self)
        if self.start is not None:
            self._check_start(self.start)

    def _check_start(self, start: StartSpec) -> None:
        if not getattr(self.table, "CAN_START", False):
            raise SchemaError(
                "start",
                f"a run of mode {self.mode} cannot begin from a checkpoint of another run",
            )
        if start.step >= self.training.steps:
            raise SchemaError(
                "training.steps",
                f"must be above start.step ({start.step}): steps count on from there",
            )

    @property
    def first_step(self) -> int:
        """What the run begins at: 0, or the step of the checkpoint that it goes on from."""
        return self.start.step if self.start is not None else 0

    def settings(self, shape: type[TableT]) -> TableT:
        """Return the mode's table. Raises TypeError when the run has another mode: that is a bug of the caller."""
        if not isinstance(self.table, shape):
            raise TypeError(f"a run of mode {self.mode} has no {shape.__name__}")
        return self.table

    @property
    def run_id(self) -> RunID:
        return RunID(hashlib.sha256(self.canonical_bytes()).digest())

    def canonical_bytes(self) -> bytes:
        """Return the form that is hashed and sent: msgpack with every key present, in the order of the shapes.

        Tables of other modes are absent, so that a new mode changes no run id.
        """
        plain = encode(self)
        plain[self.mode] = plain.pop("table")
        if self.start is None:
            del plain["start"]
        return bytes(msgpack.packb(plain))


def common_fields() -> tuple[str, ...]:
    """Name the keys that a run of any mode may have at the top level."""
    return tuple(item.name for item in dataclasses.fields(_Common))


def run_from_plain(data: Any) -> RunSpec:
    """Build a run from what TOML or msgpack gave. Raises SchemaError."""
    if not isinstance(data, dict):
        raise SchemaError("", "must be a table")
    mode = data.get("mode", DEFAULT_MODE)
    shape = TABLES.get(mode) if isinstance(mode, str) else None
    if shape is None:
        raise SchemaError("mode", f"must be one of {', '.join(TABLES)}")
    for other in TABLES:
        if other != mode and other in data:
            raise SchemaError(other, f"this run's mode is {mode}: leave this table out")
    for key in data:
        if key not in common_fields() and key != mode:
            raise unknown_key(key, (*common_fields(), mode))
    common = decode(_Common, {key: value for key, value in data.items() if key != mode})
    table: Any = decode(shape, data.get(mode, {}), mode)
    values = {name: getattr(common, name) for name in common_fields()}
    return RunSpec(**values, table=table)


def run_from_canonical_bytes_untrusted(raw: bytes, expected: RunID) -> RunSpec:
    """Decode a run that a peer sent. Raises RemoteProtocolError when it is not the one asked for."""
    if len(raw) > RUN_BYTES_MAX or hashlib.sha256(raw).digest() != expected:
        raise RemoteProtocolError(
            "these bytes are not the run that was asked for: their hash differs"
        )
    try:
        return run_from_plain(unpack_untrusted(raw))
    except SchemaError as error:
        raise RemoteProtocolError(f"this version cannot read the run: {error}") from error
