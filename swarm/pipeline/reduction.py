"""Butterfly all-reduce of one stage's gradients among its replicas, over calls.

The group's members cut the vector into one part each. A member pulls its part from every contributor, sums, and the
others pull the sum from it: each gradient byte crosses the network twice per member, however many there are. Pulling
lets an answer wait until its data is there, and nothing arrives that was not asked for.

A lead that asks again, under the same ballot or a later one, begins a new exchange; whoever waited for the old one is
answered from the new one, or is told that the record is decided.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

import torch
import trio
from torch import Tensor

from protocols.errors import RemoteProtocolError
from protocols.frames import TensorSpec
from protocols.ids import PeerID
from protocols.ledger.calls import PartCall, call_untrusted
from protocols.ledger.events import StartReduce
from protocols.ledger.view import Ballot
from protocols.schema import encode
from swarm.averaging.butterfly import part_hash, part_slices, reduce_part, squared_norm
from swarm.calls import (
    Answer,
    Caller,
    CallError,
    CallTimeoutError,
    Incoming,
    PeerUnreachableError,
    Refusal,
    StreamClosedError,
)
from swarm.hosting.compute import ComputeThread
from swarm.tensors.wire import spec_of, tensor_untrusted, to_wire

T = TypeVar("T")

REDUCE_SERVICE: Final = "reduce"
_NOT_BEGUN_S: Final = 0.1
"""After this long a member that did not know the reduction yet is asked again."""


class ReductionFailedError(Exception):
    """The exchange cannot be finished because of one peer."""

    def __init__(self, peer: PeerID, reason: str) -> None:
        super().__init__(f"reducing failed at peer {peer.short}: {reason}")
        self.peer = peer


@dataclass(frozen=True, slots=True)
class ReducedGradient:
    """What a finished reduction leaves behind, until its step is committed or given up."""

    index: int
    ballot: Ballot
    mean: Tensor
    """(n,) over the step's microbatches."""
    gradient_hash: bytes
    squared_norm: float


@dataclass(slots=True)
class _Exchange:
    """One reduction, as the answering side sees it."""

    asked: StartReduce
    gradient: Tensor
    summed: Tensor | None = None
    """Our part, once it is summed."""


class Reduction:
    """Does the exchanges of one node, one at a time; answers the `reduce` service.

    Args:
      is_member: who may wait for us; a stranger is told to come back, which costs us nothing.
      wait_s: how long one peer may take for one part.
    """

    def __init__(
        self,
        me: PeerID,
        caller: Caller,
        codec: ComputeThread,
        *,
        is_member: Callable[[PeerID], bool],
        microbatches: int,
        wait_s: float,
    ) -> None:
        self._me = me
        self._caller = caller
        self._codec = codec
        self._is_member = is_member
        self._microbatches = microbatches
        self._wait_s = wait_s
        self._exchange: _Exchange | None = None
        self._decided = -1
        self._changed = trio.Event()
        self.bytes_received = 0

    def decided(self, index: int) -> None:
        """The record of this index is known: whatever was exchanged for it is over, and its gradient may change."""
        self._decided = max(self._decided, index)
        self._exchange = None
        self._wake()

    async def reduce(self, asked: StartReduce, gradient: Tensor) -> ReducedGradient:
        """Exchange with the group until we hold the whole mean gradient.

        Args:
          gradient: (n,), our sum over counted microbatches; not changed, must not change before `decided`.
        Raises:
          ReductionFailedError: names the peer that could not deliver.
        """
        self._exchange = exchange = _Exchange(asked, gradient)
        self._wake()
        slices = part_slices(gradient.numel(), len(asked.group))
        mine = asked.group.index(self._me)
        exchange.summed = await self._sum_my_part(exchange, mine, slices[mine])
        self._wake()
        parts: list[Tensor] = [exchange.summed] * len(asked.group)

        async def pull(part: int) -> None:
            expected = gradient[slices[part]]
            parts[part] = await self._pull(asked, asked.group[part], part, expected, summed=True)

        await _together(pull, [part for part in range(len(asked.group)) if part != mine])
        mean = torch.empty_like(gradient)
        digest, norm = await self._codec.run_own(self._finish, mean, slices, parts)
        return ReducedGradient(asked.index, asked.ballot, mean, digest, norm)

    def _wake(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    async def _sum_my_part(self, exchange: _Exchange, mine: int, span: slice) -> Tensor:
        asked = exchange.asked
        own = exchange.gradient[span]
        contributions: dict[PeerID, Tensor] = {self._me: own}

        async def pull(peer: PeerID) -> None:
            contributions[peer] = await self._pull(asked, peer, mine, own, summed=False)

        await _together(pull, [peer for peer in asked.contributors if peer != self._me])
        ordered = [contributions[peer] for peer in asked.contributors]
        return await self._codec.run_own(reduce_part, ordered)

    def _finish(
        self, mean: Tensor, slices: tuple[slice, ...], parts: list[Tensor]
    ) -> tuple[bytes, float]:
        for span, part in zip(slices, parts, strict=True):
            torch.div(part, self._microbatches, out=mean[span])
        return part_hash(mean), squared_norm(mean)

    async def _pull(
        self, asked: StartReduce, peer: PeerID, part: int, like: Tensor, *, summed: bool
    ) -> Tensor:
        """Get one part from one peer, asking again while it has not begun. Raises ReductionFailedError."""
        call = PartCall(index=asked.index, ballot=asked.ballot, part=part, summed=summed)
        deadline_s = trio.current_time() + self._wait_s
        try:
            answer = await self._ask(peer, call, deadline_s)
            with self._caller.guard.blaming(peer):
                if len(answer.tensors) != 1:
                    raise RemoteProtocolError("a part is one tensor", peer)
                expected: TensorSpec = spec_of(like)
                received = answer.tensors[0]
                self.bytes_received += received.data.nbytes
                return await self._codec.run_own(tensor_untrusted, received, expected, "the part")
        except (
            CallError, CallTimeoutError, PeerUnreachableError, RemoteProtocolError, StreamClosedError,
        ) as error:  # fmt: skip
            raise ReductionFailedError(peer, str(error)) from error

    async def _ask(self, peer: PeerID, call: PartCall, deadline_s: float) -> Answer:
        while True:
            left_s = max(0.0, deadline_s - trio.current_time())
            try:
                return await self._caller.call(
                    peer, REDUCE_SERVICE, encode(call), deadline_s=left_s
                )
            except CallError as error:
                if error.code != "busy" or left_s <= _NOT_BEGUN_S:
                    raise
            await trio.sleep(_NOT_BEGUN_S)

    # --- answering ---

    async def answer(self, incoming: Incoming) -> Answer:
        """Answer one call of the `reduce` service, once its data is there."""
        call = call_untrusted(PartCall, incoming.message)
        if not self._is_member(incoming.peer):
            raise Refusal("busy", "not a member, as far as this node knows", _NOT_BEGUN_S)
        with trio.move_on_after(self._wait_s):
            while True:
                part = self._part_now(call, incoming.peer)
                if part is not None:
                    return Answer(None, (to_wire(part),))
                await self._changed.wait()
        raise Refusal("busy", "this member has not begun that reduction", _NOT_BEGUN_S)

    def _part_now(self, call: PartCall, peer: PeerID) -> Tensor | None:
        """Return what is asked for, or None while it is not there yet. Raises Refusal."""
        if call.index <= self._decided:
            raise Refusal("step-passed", "that record is decided")
        exchange = self._exchange
        if exchange is None:
            return None
        asked = exchange.asked
        if asked.ballot > call.ballot and asked.index == call.index:
            raise Refusal("step-passed", "that record is reduced under a later ballot")
        if (asked.index, asked.ballot) != (call.index, call.ballot):
            return None
        if peer not in asked.group or call.part >= len(asked.group):
            raise Refusal("bad-request", "not in this group, or no such part")
        if call.summed:
            if asked.group[call.part] != self._me:
                raise Refusal("bad-request", f"part {call.part} is not this member's")
            return exchange.summed
        return exchange.gradient[
            part_slices(exchange.gradient.numel(), len(asked.group))[call.part]
        ]


async def _together(job: Callable[[T], Awaitable[None]], items: Sequence[T]) -> None:
    """Do the job for all items at once; the first failure ends the others and is raised as it is."""
    failures: list[ReductionFailedError] = []

    async def attempt(item: T, scope: trio.CancelScope) -> None:
        try:
            await job(item)
        except ReductionFailedError as error:
            failures.append(error)
            scope.cancel()

    async with trio.open_nursery() as nursery:
        for item in items:
            nursery.start_soon(attempt, item, nursery.cancel_scope)
    if failures:
        raise failures[0]
