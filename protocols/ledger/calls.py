"""What a trainer asks of a stage, and what members ask of each other: calls with one answer each.

Services: `stage` (work on microbatches) and `reduce` (the stage's gradient). The tensors that go
with them are listed at each message; their shapes follow from the run, so a wrong one is refused before it is used.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeAlias, TypeVar

from protocols.errors import RemoteProtocolError
from protocols.ledger.grants import Grant
from protocols.ledger.view import Ballot, IdSet, Loss
from protocols.schema import Natural, Range, SchemaError, decode

T = TypeVar("T")

StageIndex = Annotated[int, Range(0, 1023)]


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkCall:
    """Compute one microbatch at one stage.

    | kind | tensors of the call | tensors of the reply |
    |---|---|---|
    | forward | input | output |
    | backward | input, gradient of the output | gradient of the input (none at stage 0) |
    | loss | input, targets | gradient of the input (none at stage 0) |
    | evaluate | input, targets | none |
    """

    op: Literal["work"] = "work"
    kind: Literal["forward", "backward", "loss", "evaluate"]
    step: Natural
    microbatch: Natural
    stage: StageIndex
    count: bool
    generation: Natural
    attempt: Natural
    grant: Grant | None = None
    """With `count`: by which lease."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkReply:
    """`counted`: the member's gradient contains the microbatch, as of the record `index`."""

    index: Natural
    counted: bool
    loss: Loss | None = None
    """Nats per token, with loss and evaluate."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SettleCall:
    """Say what became of an attempt, and let nothing up to it begin any more."""

    op: Literal["settle"] = "settle"
    step: Natural
    microbatch: Natural
    attempt: Natural
    grant: Grant


@dataclass(frozen=True, slots=True, kw_only=True)
class SettleReply:
    settled: Literal["void", "counted", "pending"]
    index: Natural


@dataclass(frozen=True, slots=True, kw_only=True)
class ClaimCall:
    """Close all leases of these microbatches older than this one, and say what was counted under them."""

    op: Literal["claim"] = "claim"
    step: Natural
    ids: IdSet
    grant: Grant


@dataclass(frozen=True, slots=True, kw_only=True)
class ClaimReply:
    counted: IdSet
    pending: IdSet
    index: Natural


StageCall: TypeAlias = WorkCall | SettleCall | ClaimCall


@dataclass(frozen=True, slots=True, kw_only=True)
class PartCall:
    """Give me part `part` of your gradient (`summed` false) or of the group's sum (`summed` true).

    The answer waits until it is there. Tensors of the reply: the part, flat.
    """

    index: Natural
    ballot: Ballot
    part: Natural
    summed: bool


_STAGE_CALLS: dict[str, type[Any]] = {"work": WorkCall, "settle": SettleCall, "claim": ClaimCall}


def stage_call_untrusted(data: Any) -> StageCall:
    """Check and build a question to the `stage` service. Raises RemoteProtocolError only."""
    operation = data.get("op") if isinstance(data, dict) else None
    shape = _STAGE_CALLS.get(operation) if isinstance(operation, str) else None
    if shape is None:
        raise RemoteProtocolError("a stage call is work, settle or claim")
    call: StageCall = call_untrusted(shape, data)
    return call


def call_untrusted(shape: type[T], data: Any) -> T:
    """Check and build any other message of this file. Raises RemoteProtocolError only."""
    try:
        return decode(shape, data)
    except SchemaError as error:
        raise RemoteProtocolError(f"not a {shape.__name__}: {error.problem}") from error
