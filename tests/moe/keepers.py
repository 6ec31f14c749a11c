"""Nodes that keep experts, with real snapshots, signatures and transfers, over a network in memory."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast
from unittest.mock import patch

import torch
import trio

from moe.keeping import ExpertKeeper
from moe.model import build_feed_forward
from node.checkpoints import Checkpoints
from node.config import load
from node.identity import verify_signature
from protocols.experts import placement
from protocols.experts.messages import (
    EXPERTS_SERVICE,
    Message,
    decode_message_untrusted,
    encode_message,
)
from protocols.experts.spec import MoeSpec
from protocols.experts.uid import ExpertUID, Grid
from protocols.run import ByteTransformerSpec, RunSpec, TextSpec
from protocols.state_calls import STATE_SERVICE
from swarm.calls.rates import UNLIMITED
from swarm.endpoints import Endpoint
from swarm.hosting.compute import ComputeThread
from swarm.mode import Keeper, RunContext
from swarm.mode_info import Wishes
from swarm.resources import Resources
from swarm.state.transfer import Snapshots
from tests.fakes.host import MemoryNetwork
from tests.fakes.keeper import NothingKept
from tests.fakes.signer import SeededSigner
from tests.moe.nodes import RUN, Node, nodes

WIDTH = 8
GRID = Grid("ffn0", (2, 2))
UIDS = list(GRID.uids())
SPEC = MoeSpec(grid=(2, 2), hidden=8, nodes_to_start=3, snapshot_every_s=0.5, refresh_s=0.2)
MODEL = ByteTransformerSpec(layers=1, width=WIDTH, heads=2, context=8)
SPEC_OF_RUN = RunSpec(
    name="t", mode="moe", data=TextSpec(pattern="x", sha256="0" * 64), model=MODEL, table=SPEC
)


CONFIG = load({"checkpoint_every_s": 0.1}, environ={"HOME": "/"}).config


class Identified:
    """The run as the network in memory knows it."""

    run_id = RUN


@dataclass(slots=True)
class Keeping:
    node: Node
    keeper: ExpertKeeper
    left: trio.Event
    signer: SeededSigner

    @property
    def hosted(self) -> set[ExpertUID]:
        return {expert.uid for expert in self.node.peer.server.hosted}


@asynccontextmanager
async def keepers(
    count: int = 3,
    *,
    spec: MoeSpec = SPEC,
    folder: Path | None = None,
    back: Sequence[int] | None = None,
) -> AsyncIterator[tuple[MemoryNetwork, Sequence[Keeping]]]:
    """Open nodes that host experts.

    Args:
      folder: where each has a disk; opened again, they are the same nodes in another life, in an empty directory.
      back: which of them there are.
    """
    with patch.object(placement, "REBALANCE_S", 600.0):  # a slow test would see it, a quick one not
        async with _keepers(count, spec, folder, back) as opened:
            yield opened


@asynccontextmanager
async def _keepers(
    count: int, spec: MoeSpec, folder: Path | None, back: Sequence[int] | None
) -> AsyncIterator[tuple[MemoryNetwork, Sequence[Keeping]]]:
    async with (
        nodes(count) as (network, made),
        ComputeThread("codec") as codec,
        trio.open_nursery() as nursery,
    ):
        found = []
        for index, node in enumerate(made):
            if back is not None and index not in back:
                continue
            left, signer = trio.Event(), SeededSigner(index)
            at, disk = Path(), cast("Keeper", NothingKept())
            if folder is not None:
                at, disk = folder / str(index), Checkpoints(CONFIG, folder / str(index), RUN)
                at.mkdir(exist_ok=True)
            context = RunContext(
                run=cast("RunSpec", Identified()), signer=signer, verify=verify_signature,
                host=node.host, directory=cast("Any", None), guard=node.guard, rates=UNLIMITED,
                run_key=None, wishes=Wishes(), founding=lambda: None, folder=at,
                life=cast("Any", None), refuses_work=lambda: None, rng=random.Random(index),
                keeper=disk, unix_s=trio.current_time,
            )  # fmt: skip
            keeper = ExpertKeeper(
                context,
                Resources(node.caller, node.compute, codec),
                node.peer,
                spec=spec,
                grids=[GRID],
                make=lambda uid: build_feed_forward(MODEL, spec, uid, 1),
                optimizer=SPEC_OF_RUN.optimizer,
                row=(WIDTH,),
                room=99,
                left=left.set,
            )
            keeper.core.orphan_after_s = 0.3  # all see the same directory
            keeper.core.patience_s = 2.0
            node.peer.search._looked = keeper.looked
            node.peer.network._failed = keeper.suspect
            node.peer.watch([GRID])
            state = Snapshots(keeper.find_part, node.compute, codec, kept=keeper.find_kept)
            await nursery.start(keeper.run)
            await node.endpoints.open(
                {**node.peer.wire(), **keeper.wire(), STATE_SERVICE: Endpoint(state.answer)}
            )
            found.append(Keeping(node, keeper, left, signer))
        tell(found)
        try:
            yield network, found
        finally:
            nursery.cancel_scope.cancel()


def tell(found: Sequence[Keeping]) -> None:
    """Let all know who is there."""
    for one in found:
        one.keeper.nodes_seen({o.node.me: 99 for o in found if o is not one})


async def until(condition: Callable[[], Any]) -> None:
    with trio.fail_after(15):
        while not condition():  # noqa: ASYNC110 - several nodes' states
            await trio.sleep(0.02)


def spread(found: Sequence[Keeping]) -> bool:
    """Whether every expert has exactly one host."""
    return sorted(uid for one in found for uid in one.hosted) == UIDS


async def train(one: Keeping, uid: ExpertUID, steps: int) -> None:
    """Let a hosted expert step."""
    server = one.node.peer.server
    expert = server.experts[uid]
    for _ in range(steps):
        x = torch.randn(4, WIDTH)
        await server.backward(expert, x, x, epoch=expert.epoch, version=expert.hosted.version)


async def ask(asker: Keeping, host: Keeping, message: Message) -> Message:
    answer = await asker.node.caller.call(
        host.node.me, EXPERTS_SERVICE, encode_message(message), deadline_s=5.0
    )
    return decode_message_untrusted(answer.message)
