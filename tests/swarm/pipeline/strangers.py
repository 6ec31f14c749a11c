"""Somebody who knows the run and is no member: asks the services of a small swarm whatever a test wants."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import torch
import trio
from torch import Tensor

from protocols.handshake import protocol_of
from protocols.ids import PeerID, RunID
from protocols.ledger.calls import WorkCall
from protocols.ledger.grants import Grant, statement
from protocols.ledger.leases import first_generation
from protocols.ledger.messages import Message, encode_message
from protocols.ledger.view import pack_ids
from protocols.replies import ErrorCode, Hello
from protocols.run.pipeline import pipeline_of
from protocols.schema import encode
from swarm.calls import Answer, Caller, CallError
from swarm.tensors.wire import to_wire
from tests.fakes.signer import SeededSigner
from tests.swarm.pipeline.small_swarm import SmallSwarm, SwarmNode, open_swarm, small_run
from tests.swarm.tiny import tensors_of, tiny_dataset

_SEED = 1000


class Stranger:
    """Calls one node's services over the network."""

    def __init__(
        self, swarm: SmallSwarm, target: SwarmNode, caller: Caller, peer_id: PeerID
    ) -> None:
        self.swarm = swarm
        self.target = target
        self.caller = caller
        self.peer_id = peer_id
        self._attempts = 0

    async def call(self, service: str, message: Any, *tensors: Tensor) -> Answer:
        wires = [to_wire(tensor) for tensor in tensors]
        return await self.caller.call(self.target.peer_id, service, message, wires, deadline_s=10.0)

    async def cast(self, message: Message) -> None:
        """Send a ledger message as a call, so that it has been taken when this returns."""
        await self.call("ledger", encode_message(message))

    async def refused(self, service: str, message: Any, *tensors: Tensor) -> tuple[ErrorCode, str]:
        """Call and return the code and the reason of the refusal."""
        with pytest.raises(CallError) as caught:
            await self.call(service, message, *tensors)
        return caught.value.code, caught.value.reason

    def work(self, **changes: Any) -> Any:
        """Return a good request to count microbatch 0 at the target, with these changes."""
        self._attempts += 1
        peer = self.target.peer
        member, record = peer.ledger.member, peer.ledger.record
        assert member is not None
        assert record is not None
        last = member.stage == pipeline_of(self.swarm.run).stages - 1
        call = WorkCall(
            kind="loss" if last else "backward",
            step=peer.ledger.tally.step,
            microbatch=0,
            stage=member.stage,
            count=True,
            generation=first_generation(record.index, 0),
            attempt=self._attempts,
            grant=self.grant(step=changes.get("step")),
        )
        return encode(call) | changes

    def grant(
        self,
        *,
        step: int | None = None,
        generation: int | None = None,
        by: SeededSigner | None = None,
        to: PeerID | None = None,
    ) -> Grant:
        """Return a lease of all microbatches to this stranger, as the lead deals it, unless told otherwise."""
        ledger = self.target.peer.ledger
        assert ledger.record is not None
        lead = next(n.signer for n in self.swarm.nodes if n.peer_id == ledger.lead_peer)
        bare = Grant(
            (by or lead).peer_id,
            ledger.tally.step if step is None else max(0, step),
            first_generation(ledger.record.index, 0) if generation is None else generation,
            pack_ids((1 << pipeline_of(self.swarm.run).microbatches) - 1),
        )
        said = statement(self.swarm.run.run_id, to or self.peer_id, bare)
        return dataclasses.replace(bare, signature=(by or lead).sign(said))

    def inputs(self) -> tuple[Tensor, Tensor]:
        """Return tensors that fit `work`."""
        run = self.swarm.run
        tokens, targets = tensors_of(tiny_dataset(run).training_batch(0, 0))
        shape = (
            pipeline_of(run).sequences,
            pipeline_of(run).model.context,
            pipeline_of(run).model.width,
        )
        activation = torch.full(shape, 0.01, dtype=getattr(torch, pipeline_of(run).model.dtype))
        member = self.target.peer.ledger.member
        assert member is not None
        if member.stage == pipeline_of(run).stages - 1:
            return (activation if member.stage else tokens), targets
        return tokens, activation

    async def check_serves(self) -> None:
        """The target still computes, and nothing that was refused has been counted."""
        tally = self.target.peer.ledger.tally
        assert tally.counted == 0
        assert not tally.busy
        host = self.target.peer.host
        assert host is not None
        assert host.stage.counted == 0
        await self.call("stage", self.work(count=False), *self.inputs())
        assert self.target.guard.bytes_held == 0


@asynccontextmanager
async def hello_from_stranger(
    swarm: SmallSwarm, target: SwarmNode, *, run: RunID | None = None, seed: int = _SEED
) -> AsyncIterator[Stranger]:
    """Join the network as somebody who never asks to be a member."""
    host = swarm.network.join(SeededSigner(seed).peer_id)
    caller = Caller(host, hello=Hello(run=run or swarm.run.run_id))
    async with trio.open_nursery() as nursery:
        await nursery.start(caller.run)
        yield Stranger(swarm, target, caller, host.peer_id)
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def stranger_at(stage: int) -> AsyncIterator[Stranger]:
    """Open two stages that nobody trains, and a stranger at one of them."""
    async with open_swarm(small_run(replicas=1)) as swarm:
        for number in (0, 1):
            node = await swarm.node(train=False, stage=number)
            await swarm.until(node.serving.is_set)
        await swarm.until(lambda: len(swarm.newest.members) == 2)
        target = swarm.member_of(stage)
        await swarm.until(lambda: target.peer.ledger.record == swarm.newest)
        async with hello_from_stranger(swarm, target) as stranger:
            yield stranger


STRANGER_ID: PeerID = SeededSigner(_SEED).peer_id
__all__ = ["STRANGER_ID", "Stranger", "hello_from_stranger", "protocol_of", "stranger_at"]
