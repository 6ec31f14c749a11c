"""The whole model of a moe run, gathered from the nodes: to be used, or for another run to begin from."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
import trio
from torch import Tensor

from moe.disk import part_name, part_of
from moe.info import TRUNK
from moe.keeping import ExpertKeeper
from moe.model import expert_parameter
from moe.peer import ExpertPeer
from protocols.experts.spec import MoeSpec
from protocols.experts.uid import ExpertUID
from protocols.run import ByteTransformerSpec, StartSpec, start_digest
from protocols.schema import encode
from swarm.gossip.models import Models
from swarm.gossip.peer import GossipPeer
from swarm.hosting.module import PARAMETERS
from swarm.mode import ExportRefusedError, RunContext
from swarm.resources import Resources
from swarm.state.checkpoint import WHOLE
from swarm.state.checkpoint_tensors import write_checkpoint
from swarm.state.export import write_tensors
from swarm.state.part import PartFacts
from swarm.state.transfer import Fetch, FetchError

_TRIES: Final = 8
"""For one expert, with a look at the directory in between."""


@dataclass(frozen=True, slots=True)
class Export:
    """Gathers, on a node that trains."""

    context: RunContext
    resources: Resources
    peer: ExpertPeer
    keeper: ExpertKeeper
    gossip: GossipPeer
    models: Models

    async def write(self, path: Path, *, checkpoint: bool) -> dict[str, Any]:
        """Write the mean of the trunks that can be had, and every expert, as one file; return facts about it.

        Args:
          checkpoint: write a whole checkpoint to this node's disk as well, for `[start]`.
        Raises:
          ExportRefusedError, OSError
        """
        run, model = self.context.run, self.context.run.model
        spec = run.settings(MoeSpec)
        assert isinstance(model, ByteTransformerSpec)
        trunks = await self._trunks()
        tensors = dict(self.models.tensors_of(torch.stack(trunks).mean(dim=0)))
        whole = _Whole(self.context, *await self.gossip.on_model(self.models.learner.snapshot))
        versions = []
        for uid in spec.uids(model.layers):
            version, state = await self._expert(uid)
            versions.append(version)
            tensors |= _in_model(uid, state)
            if checkpoint:
                await whole.add(part_name(uid), state)
        about = {
            "model": encode(model),
            "moe": encode(spec),
            "run": run.name,
            "run_id": str(run.run_id),
            "step": whole.step,
            "trunks": len(trunks),
            "expert_steps_min": min(versions),
            "expert_steps_max": max(versions),
        }
        size_bytes = await trio.to_thread.run_sync(write_tensors, path, tensors, about)
        facts = {"path": str(path), **about, "bytes": size_bytes}
        return facts | {"start": encode(await whole.finish())} if checkpoint else facts

    async def _trunks(self) -> list[Tensor]:
        own = await self.gossip.on_model(self.models.copy)
        neighbours = self.gossip.core.neighbourhood.in_order()
        found = [own] + [await self.gossip.fetch_newest(who) for who, _ in neighbours]
        trunks = [vector for vector in found if vector is not None]
        if not trunks:
            raise ExportRefusedError("no trunk is finite just now")
        return trunks

    async def _expert(self, uid: ExpertUID) -> tuple[int, Mapping[str, Tensor]]:
        """Return an expert's steps and state, from here or from its host."""
        own, resources = self.peer.server.experts.get(uid), self.resources
        if own is not None and not own.frozen and not own.replica:
            return await resources.compute.run_own(part_of(own).snapshot)
        fetch = Fetch(
            resources.caller, resources.codec, self.keeper.expected, part=part_name(uid), version=None,
        )  # fmt: skip
        problem = "nobody hosts it"
        for _ in range(_TRIES):
            hosts = [claim.peer for claim in self.peer.view.answering(uid, trio.current_time())]
            try:
                state = await fetch.run(hosts)
            except FetchError as error:  # it may be changing hands
                problem = str(error)
                self.peer.search.refresh()
                await trio.sleep(self.context.run.settings(MoeSpec).refresh_s)
                continue
            return state.version, state.tensors
        raise ExportRefusedError(f"expert {uid} cannot be fetched: {problem}")


class _Whole:
    """A whole checkpoint that is being written: its files are named by the trunk's step, whatever the experts' are."""

    def __init__(self, context: RunContext, step: int, trunk: Mapping[str, Tensor]) -> None:
        self.step = step
        self._context = context
        self._trunk = trunk
        self._files: dict[str, str] = {}
        """Part -> SHA-256."""

    async def add(self, part: str, state: Mapping[str, Tensor]) -> None:
        context = self._context
        write = functools.partial(
            write_checkpoint, context.folder / WHOLE, context.run.run_id, part, self.step, state,
            PartFacts(), now_unix_s=context.unix_s(),
        )  # fmt: skip
        self._files[part] = (await trio.to_thread.run_sync(write)).manifest.sha256

    async def finish(self) -> StartSpec:
        """Write the trunk, and return what names all of it."""
        if not self.step:
            raise ExportRefusedError("nothing is trained yet that another run could begin from")
        await self.add(TRUNK, self._trunk)
        run = str(self._context.run.run_id)
        return StartSpec(run=run, step=self.step, sha256=start_digest(self._files))


def _in_model(uid: ExpertUID, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return an expert's parameters under the names that they have in a whole model."""
    return {
        expert_parameter(uid, name.removeprefix(f"{PARAMETERS}/")): tensor
        for name, tensor in state.items()
        if name.startswith(f"{PARAMETERS}/")
    }
